from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import xarray as xr

import prisma_steps
from prisma_steps import datasets
from prisma_steps.plan import JobPlan, Plan, plan_experiment
from prisma_steps.problems import ExperimentError
from prisma_steps.python_api import NotThere
from prisma_steps.store import DATA, Store

NODES = """
nodes:
  images: {step: load_images, dataset: digits}
  vit:
    step: train_vit
    images: images
    n_layers: {grid: [1, 2, 3]}
    d_mlp: {grid: [64, 128], axis: width}
    warmup: {grid: [10, 20], axis: width}
    attention_only: {grid: [false, true]}
"""


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.chdir(tmp_path)
    Path("experiments").mkdir()
    Path("experiments/x.yaml").write_text(NODES)
    return plan_experiment("x", Store(Path("artifacts")))


def fill(plan: Plan, node: str, make: Callable[[JobPlan], xr.Dataset]) -> None:
    """Artifacts for every job of a node."""
    for job in plan.grids[node].values():
        folder = plan.store.partial(job.key) / "artifact"
        folder.mkdir()
        datasets.write(make(job), folder / DATA)
        plan.store.commit(job.step, job.key, folder, {})


def trained(job: JobPlan) -> xr.Dataset:
    """A number made of the job's point, and a curve."""
    point = job.point
    number = 1000 * point["n_layers"] + point["d_mlp"] + 0.5 * point["attention_only"]
    return xr.Dataset({"number": ((), number), "loss": ("step", np.arange(3.0))}, {"step": [1, 2, 4]})


def test_every_axis_is_a_dimension_and_every_point_is_its_own(plan: Plan) -> None:
    fill(plan, "vit", trained)
    data = prisma_steps.load("x", "vit")
    assert data["loss"].dims == ("n_layers", "width", "attention_only", "step")
    assert (
        data["number"].sel(n_layers=2, attention_only=True).where(data.d_mlp == 128, drop=True).item()
        == 2128.5
    )
    assert data["warmup"].values.tolist() == [10, 20]
    for job in plan.grids["vit"].values():
        width = [64, 128].index(job.point["d_mlp"])
        point = {name: job.point[name] for name in ("n_layers", "attention_only")}
        assert data["number"].sel(point).isel(width=width).item() == trained(job)["number"].item()


def test_it_is_lazy_and_labelled(plan: Plan) -> None:
    fill(plan, "vit", trained)
    data = prisma_steps.load("x", "vit")
    assert isinstance(data["loss"].data, da.Array)
    assert data["n_layers"].attrs == {"long_name": "n layers", "units": "1"}


def test_select(plan: Plan) -> None:
    fill(plan, "vit", trained)
    data = prisma_steps.load("x", "vit", n_layers=2, step=[1, 4])
    assert data["loss"].dims == ("width", "attention_only", "step")
    assert data.sizes["step"] == 2
    with pytest.raises(KeyError):
        prisma_steps.load("x", "vit", n_layers=7)


def test_a_store_elsewhere(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(plan, "images", lambda _job: xr.Dataset({"pixels": ("image", [1])}))
    Path("artifacts").rename(tmp_path / "elsewhere")
    assert prisma_steps.load("x", "images", store=tmp_path / "elsewhere").sizes == {"image": 1}
    monkeypatch.setenv("PRISMA_STEPS_STORE", str(tmp_path / "elsewhere"))
    assert prisma_steps.load("x", "images").sizes == {"image": 1}


@pytest.mark.usefixtures("plan")
def test_what_is_not_there_is_named_with_what_to_do() -> None:
    with pytest.raises(NotThere, match=r"x has no node 'vits'; did you mean 'vit'\?"):
        prisma_steps.load("x", "vits")
    with pytest.raises(
        NotThere, match=r"12 of 12 artifacts of vit .*\(vit\[n_layers=1.*, …\): prisma-steps run"
    ):
        prisma_steps.load("x", "vit")
    with pytest.raises(ExperimentError, match="did you mean 'xx'|no such experiment"):
        prisma_steps.load("y", "vit")
