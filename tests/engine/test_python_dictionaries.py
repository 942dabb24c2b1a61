"""Dictionaries from Python: out of the store with their place, and into folders of other toolkits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import xarray as xr

import prisma_steps
from prisma_steps import datasets
from prisma_steps.plan import plan_experiment
from prisma_steps.progress import StatusFile
from prisma_steps.python_api import NotThere
from prisma_steps.runner import run_jobs
from prisma_steps.sae.formats.folders import read_folder, write_folder
from prisma_steps.sae.formats.published import Published
from prisma_steps.step import StepError
from prisma_steps.store import Store
from tests.sae.published import activations, dictionary

PLACE = {"site": "resid_post", "layer": 3, "tokens": "patch"}
NODES = """
nodes:
  images: {step: load_images, dataset: digits}
  sae: {step: load_sae, path: {grid: [../relu, ../topk]}}
"""


@pytest.fixture
def artifacts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Two dictionaries in folders, and an experiment that has taken both into its store."""
    monkeypatch.chdir(tmp_path)
    for name in ("relu", "topk"):
        write_folder(Published(dictionary(name), PLACE), Path(name), "sae_lens")
    Path("experiments").mkdir()
    Path("experiments/x.yaml").write_text(NODES)
    store, jobs = (
        Store(Path("artifacts")),
        plan_experiment("x", Store(Path("artifacts"))).grids["sae"].values(),
    )
    for job in jobs:
        list(run_jobs([job.spec("x")], store, {job.key: StatusFile(tmp_path / "status" / job.key, "log")}))
    return [store.artifact("load_sae", job.key).folder for job in jobs]


def test_a_dictionary_is_a_node_or_an_artifact(artifacts: list[Path]) -> None:
    x = activations(8, 20)
    for source, select in (("x/sae", {"path": "../topk"}), (artifacts[1], {}), ("topk", {})):
        found = prisma_steps.load_sae(source, **select)
        assert found.writes == found.reads == ("resid_post", 3) and found.tokens == "patch"
        assert torch.equal(found.dictionary.encode(x), dictionary("topk").encode(x))


@pytest.mark.parametrize("format", ["sae_lens", "vit_prisma"])
def test_a_dictionary_goes_out_as_another_toolkit_reads_it(artifacts: list[Path], format: str) -> None:
    x = activations(8, 20)
    data = prisma_steps.load("x", "sae").isel(path=0)
    sources = [("x/sae", {"path": "../topk"}), (artifacts[1], {})]
    for number, (source, select) in enumerate(sources):
        folder = prisma_steps.save_sae(source, f"out/{number}", format=format, **select)
        found = read_folder(folder)
        assert found.place == PLACE
        assert torch.equal(found.autoencoder(x)[1], dictionary("topk")(x)[1])
    with pytest.raises(StepError, match="A grid of them keeps no settings that differ: give the node"):
        prisma_steps.save_sae(data, "out/grid")
    with pytest.raises(StepError, match="already: name another folder"):
        prisma_steps.save_sae("x/sae", "out/0", format=format, path="../relu")


@pytest.mark.usefixtures("artifacts")
def test_what_is_no_dictionary_is_refused() -> None:
    with pytest.raises(NotThere, match="2 points of sae are selected, expected one of"):
        prisma_steps.load_sae("x/sae")
    with pytest.raises(NotThere, match="images is made by load_images, which leaves images, expected a dict"):
        prisma_steps.save_sae("x/images", "out")
    datasets.write(xr.Dataset({"l0": 1}), Path("other") / "data.zarr")
    with pytest.raises(NotThere, match="other holds l0, expected a dictionary"):
        prisma_steps.save_sae("other", "out")
    with pytest.raises(StepError, match="experiments is no folder of a dictionary: it holds x.yaml"):
        prisma_steps.load_sae("experiments")
    with pytest.raises(TypeError, match="only a node of an experiment has axes"):
        prisma_steps.load_sae("relu", path="../relu")
