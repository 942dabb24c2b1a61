"""The quickstart, end to end with the real command: what it finds, and what it leaves to look at."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from PIL import Image

import prisma_steps

ROOT = Path(__file__).parent.parent
FIGURES = ("training", "attention", "pareto", "l0_by_layer", "patching_map")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the quickstart was run from an empty store."""
    folder = tmp_path_factory.mktemp("quickstart")
    shutil.copytree(ROOT / "experiments", folder / "experiments")
    command = [str(Path(sys.executable).with_name("prisma-steps")), "run", "quickstart"]
    environment = {name: value for name, value in os.environ.items() if name != "PRISMA_STEPS_STORE"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture
def load(made: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(made)
    return lambda node: prisma_steps.load("quickstart", node)


def test_the_deeper_transformer_learned_what_the_shallow_one_could_not(load) -> None:
    accuracy = load("vit").test_accuracy
    assert accuracy.dims == ("n_layers",)
    assert float(accuracy.sel(n_layers=3)) > 0.8
    assert float(accuracy.sel(n_layers=3)) > float(accuracy.sel(n_layers=1)) > 0.4


def test_more_latents_reconstruct_better(load) -> None:
    quality = load("quality").sel(token_kind="all").compute()
    assert dict(quality.fvu.sizes) == {"architecture": 2, "sparsity": 3}
    for architecture in quality.architecture.values:
        front = quality.sel(architecture=architecture).sortby("l0")
        assert (np.diff(front.fvu) < 0).all()
    topk = quality.sel(architecture="topk")
    np.testing.assert_allclose(topk.l0, topk.k, atol=0.01)
    assert float(quality.fvu.max()) < 0.3


def test_spliced_reconstructions_lie_between_the_model_and_nothing(load) -> None:
    quality = load("quality").compute()
    np.testing.assert_allclose(quality.ce_error_term, quality.ce, rtol=1e-4)
    assert (quality.ce_recovered > 80).all()
    assert (quality.ce_zero_ablation > 3 * quality.ce).all()


def test_the_class_moves_from_patches_to_cls(load) -> None:
    effect = load("patching").normalised_logit_difference.mean("pair").compute()
    cls = effect.isel(token=0)
    assert float(effect.sel(layer=0).isel(token=slice(1, None)).max()) > 5 * abs(float(cls.sel(layer=0)))
    assert float(cls.sel(layer=2)) > float(effect.sel(layer=2).isel(token=slice(1, None)).max())


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_there_with_its_numbers(made: Path, name: str) -> None:
    folder = made / "results/quickstart/figures"
    assert (folder / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    assert np.asarray(Image.open(folder / f"{name}.png").convert("L")).std() > 5
    assert len(pd.read_csv(folder / f"{name}.csv")) > 0


def test_plotted_numbers_are_those_of_the_data(made: Path, load) -> None:
    plotted = pd.read_csv(made / "results/quickstart/figures/pareto.csv")
    plotted = plotted.set_index(["architecture", "sparsity"]).fvu.to_xarray()
    stored = load("quality").fvu.sel(token_kind="all").compute()
    xr.testing.assert_allclose(plotted, stored.drop_vars(set(stored.coords) - {"architecture", "sparsity"}))


def test_the_page_shows_them_and_where_they_come_from(made: Path) -> None:
    page = (made / "results/quickstart/index.html").read_text(encoding="utf-8")
    targets = [unquote(target) for target in re.findall(r'(?:href|src)="([^"#]+)"', page)]
    assert {f"figures/{name}.png" for name in FIGURES} <= set(targets)
    assert all((made / "results/quickstart" / target).exists() for target in targets)
    for step in ("load_images", "train_vit", "extract_activations", "train_sae", "evaluate_sae"):
        assert step in page


def test_running_it_again_runs_nothing(made: Path) -> None:
    command = [str(Path(sys.executable).with_name("prisma-steps")), "plan", "quickstart"]
    shown = subprocess.run(command, cwd=made, capture_output=True, text=True, check=True).stdout
    assert "0 of 29 jobs to run" in shown
