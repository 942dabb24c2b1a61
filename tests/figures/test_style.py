from __future__ import annotations

import io
import os
import subprocess
import sys
import zlib
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from matplotlib.figure import Figure
from PIL import Image

from prisma_steps import schema, step
from prisma_steps.figures.style import (
    WIDTHS,
    FigureParams,
    Plot,
    axis_label,
    figure,
    house_style,
    require,
    subplots,
)
from prisma_steps.job import Job
from prisma_steps.schema import Quality
from prisma_steps.step import Output, StepError, gather, load_step

FIGURES = [
    name
    for name, declared in step.all_steps().items()
    if declared.is_figure and declared.module.startswith("prisma_steps.figures.")
]
FILES = ["figure.pdf", "figure.png", "numbers.csv"]

DRAW = """
import sys
import pandas as pd
from prisma_steps.job import Job
from prisma_steps.figures.style import FigureParams, Plot, figure, subplots
from prisma_steps.schema import Quality

@figure(inputs={"quality": Quality})
def line(quality, params: FigureParams) -> Plot:
    drawing, axes = subplots(params.inches, 2)
    axes[0, 0].plot([1, 2], [3, 4], label="é ± x̂")
    drawing.legend()
    return Plot(drawing, pd.DataFrame({"x": [1, 2]}), "")

found = line(None, FigureParams(), Job())
for name, write in found.files.items():
    write(__import__("pathlib").Path(sys.argv[1]) / name)
"""


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "_REGISTRY", dict(step._REGISTRY))


def contents(output: Output, folder: Path) -> dict[str, bytes]:
    for name, write in output.files.items():
        write(folder / name)
    return {name: (folder / name).read_bytes() for name in output.files}


@pytest.fixture
def line(registry: None) -> object:  # noqa: ARG001
    @figure(inputs={"quality": Quality})
    def line(quality: xr.Dataset, params: FigureParams) -> Plot:
        """Draw a line."""
        drawing, axes = subplots(params.inches, 2)
        numbers = pd.DataFrame({"l0": quality["l0"], "l0_standard_error": 1 / 3, "n_layers": 2, "shape": "ä"})
        axes[0, 0].plot(numbers["l0"])
        return Plot(drawing, numbers, "As drawn.")

    return line


@pytest.fixture
def l0() -> xr.Dataset:
    return xr.Dataset({"l0": ("token_kind", [0.1, 2.0, 1e-12])})


def test_a_figure_is_a_step(line: object) -> None:
    declared = load_step("line")
    assert declared.function is line
    assert declared.output is schema.Figure
    assert declared.params is FigureParams
    assert declared.inputs["quality"].kind is Quality
    assert declared.module == __name__
    assert declared.summary == "Draw a line."


def test_signature_must_say_what_the_declaration_says(registry: None) -> None:  # noqa: ARG001
    with pytest.raises(TypeError, match=r"signature is \['quality', 'options'\]"):

        @figure(inputs={"quality": gather(Quality)})
        def wrong(quality: xr.Dataset, options: FigureParams) -> Plot: ...


def test_numbers_are_the_data_and_the_csv(line: object, l0: xr.Dataset, tmp_path: Path) -> None:
    found = line(l0, FigureParams(), Job())
    schema.check(schema.label(found.data), schema.Figure)
    assert found.data["l0"].values.tolist() == [0.1, 2.0, 1e-12]
    assert found.data["l0"].attrs == {"long_name": "L0", "units": "latent/token"}
    assert found.data["l0_standard_error"].attrs == {
        "long_name": "standard error of L0",
        "units": "latent/token",
    }
    assert found.data["n_layers"].attrs == {"long_name": "n layers", "units": "1"}
    assert found.data["shape"].values.tolist() == ["ä"] * 3
    csv = contents(found, tmp_path)["numbers.csv"].decode()
    assert csv.splitlines()[:2] == ["l0,l0_standard_error,n_layers,shape", "0.1,0.333333333,2,ä"]
    read = pd.read_csv(io.StringIO(csv))
    np.testing.assert_allclose(read["l0"], found.data["l0"], rtol=1e-9)


def test_arguments_by_position_and_by_name(line: object, l0: xr.Dataset) -> None:
    assert line(quality=l0, params=FigureParams(), job=Job()).data.equals(
        line(l0, FigureParams(), Job()).data
    )


def test_caption_is_the_users_or_the_figures(line: object, l0: xr.Dataset) -> None:
    assert line(l0, FigureParams(), Job()).data.attrs["caption"] == "As drawn."
    assert line(l0, FigureParams(caption="Mine."), Job()).data.attrs["caption"] == "Mine."


@pytest.mark.parametrize("width", WIDTHS)
def test_width_is_that_of_the_column(line: object, l0: xr.Dataset, tmp_path: Path, width: str) -> None:
    files = contents(line(l0, FigureParams(width=width), Job()), tmp_path)
    picture = Image.open(io.BytesIO(files["figure.png"]))
    assert picture.size == (round(WIDTHS[width] * 200), 400)
    assert picture.info["dpi"] == pytest.approx((200, 200), abs=0.1)


def test_pdf_embeds_true_type_and_holds_no_date(line: object, l0: xr.Dataset, tmp_path: Path) -> None:
    files = contents(line(l0, FigureParams(), Job()), tmp_path)
    assert b"/FontFile2" in files["figure.pdf"]
    assert b"/Type3" not in files["figure.pdf"]
    assert b"Date" not in files["figure.pdf"]
    assert b"atplotlib" not in files["figure.pdf"] + files["figure.png"]


def test_every_process_writes_the_same_bytes(tmp_path: Path) -> None:
    found = []
    for seed, time_zone in (("1", "UTC"), ("2", "Asia/Tokyo")):
        folder = tmp_path / seed
        folder.mkdir()
        environment = {**os.environ, "PYTHONHASHSEED": seed, "TZ": time_zone}
        subprocess.run([sys.executable, "-c", DRAW, str(folder)], check=True, env=environment)
        found.append([zlib.crc32((folder / name).read_bytes()) for name in FILES])
    assert found[0] == found[1]


def test_style_does_not_leak(line: object, l0: xr.Dataset) -> None:
    before = dict(mpl.rcParams)
    line(l0, FigureParams(), Job())
    assert dict(mpl.rcParams) == before
    with house_style():
        assert mpl.rcParams["pdf.fonttype"] == 42


def test_figures_are_declared_without_heavy_imports() -> None:
    heavy = ["matplotlib", "seaborn", "numpy", "pandas", "xarray", "torch"]
    code = (
        "import sys; from prisma_steps.step import load_step\n"
        f"for name in {FIGURES}: load_step(name)\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert run.stdout.strip() == "[]"


def test_what_is_missing_and_what_is_there() -> None:
    data = xr.Dataset({"l0": ("seed", [1.0, 2.0])}, coords={"layer": 3})
    require(data, "l0", "seed", "layer", of="pareto")
    with pytest.raises(
        StepError, match=r"pareto: the data has no fvu, token_kind; .* dims seed \(2\) .* l0, layer"
    ):
        require(data, "l0", "fvu", "token_kind", of="pareto")


def test_axis_labels_have_units() -> None:
    data = xr.Dataset({"l0": 1.0, "mine": ((), 1.0, {"long_name": "my number", "units": "m"}), "bare": 1.0})
    assert axis_label(data, "l0") == "L0 (latent/token)"
    assert axis_label(data, "fvu") == "FVU"
    assert axis_label(data, "mine") == "My number (m)"
    assert axis_label(data, "bare") == "Bare"


def test_no_figure_is_held_by_pyplot(line: object, l0: xr.Dataset) -> None:
    from matplotlib._pylab_helpers import Gcf

    line(l0, FigureParams(), Job())
    assert Gcf.get_all_fig_managers() == []
    assert isinstance(subplots(1, 1)[0], Figure)
