"""Figures beside pictures of how they looked when somebody last found them good.

``REGENERATE_BASELINES=1 pytest tests/figures/test_baselines.py`` makes the pictures anew. Look at every one
that changed before you commit it.
"""

from __future__ import annotations

import os
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from prisma_steps.figures import style
from prisma_steps.step import load_step
from tests.examples import cases, drawn

BASELINE = Path(__file__).parent / "baseline"

#: Figures and which of their cases. Between them they have all that the house style draws: lines with error
#: bars and bands, bars, tables of cells, maps over images, colour bars, legends.
SHOWN = [
    ("ablation_bars", 0),
    ("attention_maps", 2),
    ("lens_maps", 0),
    ("patching_heatmap", 5),
    ("sae_pareto", 1),
    ("training_curves", 0),
]

#: Width of the pictures, in pixels: enough to see what lies where, in which colour and how heavy.
WIDTH = 300

#: Root mean square difference of two pictures, in levels of 0 to 255, up to which they are the same. Drawn
#: again, each makes 0. The least change that was tried, no grid lines (pale and thin), makes 1.4 to 2.0 in
#: the three that have such lines; labels of axes half a point smaller make 3.4 to 20.
TOLERANCE = 1.0


def picture(name: str, number: int, folder: Path) -> Image.Image:
    """A figure as it is printed, made small."""
    declared = load_step(name)
    drawn(declared, cases(declared)[number]).output.files["figure.png"](folder / "figure.png")
    full = Image.open(folder / "figure.png").convert("RGB")
    return full.resize((WIDTH, round(WIDTH * full.height / full.width)), Image.Resampling.BOX)


def difference(one: Image.Image, other: Image.Image) -> float:
    if one.size != other.size:
        return np.inf
    first, second = (np.asarray(found, float) for found in (one, other))
    return float(((first - second) ** 2).mean() ** 0.5)


@pytest.mark.parametrize(("name", "number"), SHOWN)
def test_figures_look_as_they_did(name: str, number: int, tmp_path: Path) -> None:
    file, found = BASELINE / f"{name}.png", picture(name, number, tmp_path)
    if os.environ.get("REGENERATE_BASELINES"):
        made_by = PngInfo()
        made_by.add_text("matplotlib", mpl.__version__)
        found.save(file, optimize=True, pnginfo=made_by)
    with Image.open(file) as before:
        apart, version = difference(found, before.convert("RGB")), before.info["matplotlib"]
    found.save(tmp_path / "now.png")
    assert apart <= TOLERANCE, (
        f"{name} differs by {apart:.2f} from {file} (made by matplotlib {version}, this is "
        f"{mpl.__version__}). Compare it with {tmp_path / 'now.png'}; if it is meant to look so, run this "
        "test with REGENERATE_BASELINES=1"
    )
    assert file.stat().st_size < 30_000


def test_a_change_that_is_hardly_seen_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = picture("sae_pareto", 1, tmp_path)
    monkeypatch.setitem(style.STYLE, "axes.grid", False)
    assert difference(before, picture("sae_pareto", 1, tmp_path)) > TOLERANCE


def test_every_picture_is_of_a_figure() -> None:
    assert {file.stem for file in BASELINE.iterdir()} == {name for name, _ in SHOWN}
