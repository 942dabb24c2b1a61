from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr

import prisma_steps
from prisma_steps import datasets
from prisma_steps.models.hub import HubError
from prisma_steps.plan import JobPlan, Plan, plan_experiment
from prisma_steps.problems import ExperimentError
from prisma_steps.python_api import NotThere
from prisma_steps.store import DATA, Store

if TYPE_CHECKING:
    from prisma_steps.models.hooked import HookedViT

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


# --- models


def saved(folder: Path, seed: int) -> HookedViT:
    """A tiny trained model, as transformers leaves it in a folder."""
    import torch
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

    torch.manual_seed(seed)
    sizes = {"hidden_size": 12, "num_attention_heads": 3, "intermediate_size": 20, "num_hidden_layers": 1}
    config = ViTConfig(**sizes, image_size=8, patch_size=4, id2label={0: "cat", 1: "dog"})
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(folder)
    return prisma_steps.load_model(folder)


MODELS = """
nodes:
  images: {step: load_images, dataset: digits}
  vit: {step: load_model, path: {grid: [../a, ../b]}, class_names: [newt, frog]}
"""


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[HookedViT]:
    """Two models in folders a and b; the experiment y has made an artifact of the second."""
    from prisma_steps.progress import StatusFile
    from prisma_steps.runner import run_jobs

    monkeypatch.chdir(tmp_path)
    models = [saved(tmp_path / name, seed) for seed, name in enumerate("ab")]
    Path("experiments").mkdir()
    Path("experiments/y.yaml").write_text(MODELS)
    job = list(plan_experiment("y", Store(Path("artifacts"))).grids["vit"].values())[1]
    told = run_jobs([job.spec("y")], Store(Path("artifacts")), {job.key: StatusFile(tmp_path / "s", "log")})
    assert list(told) == [(job.key, "computed")]
    return models


def same(one: HookedViT, other: HookedViT) -> bool:
    import torch

    pixels = torch.rand(2, 3, 8, 8)
    return torch.equal(one(pixels), other(pixels))


def test_a_model_of_a_node_a_folder_and_an_artifact(made: list[HookedViT]) -> None:
    from_node = prisma_steps.load_model("y/vit", path="../b")
    assert same(from_node, made[1]) and not same(from_node, made[0])
    assert from_node.class_names == ("newt", "frog") and made[1].class_names == ("cat", "dog")
    (artifact,) = Path("artifacts/load_model").iterdir()
    from_artifact = prisma_steps.load_model(artifact)
    assert same(from_artifact, made[1]) and from_artifact.class_names == ("newt", "frog")
    with pytest.raises(TypeError, match="an artifact has its image processor"):
        prisma_steps.load_model(artifact, normalisation=([0.5] * 3, [0.5] * 3))
    assert same(prisma_steps.load_model("experiments/y.yaml/vit", path="../b"), made[1])
    assert same(prisma_steps.load_model(Path("a")), made[0])


@pytest.mark.usefixtures("made")
@pytest.mark.parametrize(
    ("source", "select", "error", "message"),
    [
        ("y/vit", {}, NotThere, "2 points of vit are selected, expected one of"),
        ("y/vit", {"path": "../c"}, NotThere, "0 points of vit"),
        ("y/vit", {"paht": "../a"}, NotThere, "no axis 'paht'; did you mean 'path'?"),
        ("y/vit", {"path": "../a"}, NotThere, "1 of 1 artifacts of vit are not there yet"),
        ("y/vti", {}, NotThere, "no node 'vti'; did you mean 'vit'?"),
        ("y/images", {}, NotThere, "images is made by load_images, which leaves images, expected a model"),
        ("a", {"path": "../a"}, TypeError, "only a node of an experiment has axes"),
        ("y/vit", {"path": "../b", "normalisation": ([0], [1])}, TypeError, "normalisation is for a folder"),
        (
            "z/vit",
            {},
            HubError,
            "'z/vit' is no folder and no node of an experiment here. As a hub model: the com",
        ),
    ],
)
def test_a_model_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, source: str, select: dict[str, Any], error: type, message: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(error, match=re.escape(message)):
        prisma_steps.load_model(source, **select)


def test_a_model_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commits = ("a" * 40, "b" * 40)
    repository = tmp_path / "models--org--tiny"
    models = [saved(repository / "snapshots" / commit, seed) for seed, commit in enumerate(commits)]
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commits[1])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert same(prisma_steps.load_model("org/tiny"), models[1])
    assert same(prisma_steps.load_model("org/tiny", revision=commits[0]), models[0])
