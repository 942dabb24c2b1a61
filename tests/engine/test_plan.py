from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prisma_steps import node
from prisma_steps.plan import Plan, plan_experiment
from prisma_steps.schema import Images, Model
from prisma_steps.step import Slot, all_steps, gather
from prisma_steps.store import Store

#: Values along an axis, wherever an axis of this name is made.
AXES = {"a": [1, 2], "b": [4, 5, 6], "c": [7], "d": [8, 9]}

#: Parameters that a grid may be over, and the axis of each; None for none.
own = st.lists(st.sampled_from([None, *AXES]), min_size=2, max_size=2).filter(
    lambda axes: len(set(axes) - {None}) == len([axis for axis in axes if axis])
)


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def plan(nodes: str) -> Plan:
    Path("x.yaml").write_text(f"nodes:\n{nodes}")
    return plan_experiment("x.yaml", Store(Path("artifacts")))


def gridded(names: tuple[str, str], axes: list[str | None]) -> str:
    return "".join(
        f", {name}: {{grid: {AXES[axis]}, axis: {axis}}}"
        for name, axis in zip(names, axes, strict=True)
        if axis
    )


def keys(planned: Plan, node: str) -> xr.DataArray:
    """The key at every point of a node's grid."""
    axes = planned.experiment.axes[node]
    array = np.empty([len(axis) for axis in axes], dtype=object)
    for index, job in planned.grids[node].items():
        array[index] = job.key
    return xr.DataArray(array, {a.name: list(a.coords[a.name]) for a in axes}, [a.name for a in axes])


def read(planned: Plan, node: str, slot: str) -> xr.DataArray:
    """The key that fills a slot at every point of a node's grid."""
    axes = planned.experiment.axes[node]
    array = np.empty([len(axis) for axis in axes], dtype=object)
    for index, job in planned.grids[node].items():
        (array[index],) = job.inputs[slot].keys
    return xr.DataArray(array, {a.name: list(a.coords[a.name]) for a in axes}, [a.name for a in axes])


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(own, own, own, st.data())
def test_grids_meet_by_name_as_arrays_of_xarray_do(
    images: list[str | None], vit: list[str | None], sae: list[str | None], data: st.DataObject
) -> None:
    axes = sorted({axis for axis in [*images, *vit] if axis})
    chosen = data.draw(st.sampled_from(axes)) if axes and data.draw(st.booleans()) else None
    select = {chosen: data.draw(st.sampled_from(AXES[chosen]))} if chosen else {}
    model = f"{{node: vit, select: {{{chosen}: {select[chosen]}}}}}" if chosen else "vit"
    planned = plan(
        "  images: {step: load_images, dataset: dsprites, n_images: 5"
        f"{gridded(('seed', 'skip'), images)}}}\n"
        f"  vit: {{step: train_vit, images: images{gridded(('seed', 'warmup'), vit)}}}\n"
        "  acts: {step: extract_activations, model: vit, images: images, sites: [embed]}\n"
        f"  sae: {{step: train_sae, activations: acts{gridded(('seed', 'batch_size'), sae)}}}\n"
        f"  quality: {{step: evaluate_sae, sae: sae, model: {model}, images: images}}\n"
    )
    quality = keys(planned, "quality")
    slots = {"sae": keys(planned, "sae"), "model": keys(planned, "vit").sel(select, drop=True)}
    slots["images"] = keys(planned, "images")
    # A scalar select of one slot does not drop the axis that another slot brings.
    expected = xr.broadcast(*slots.values())
    assert dict(quality.sizes) == dict(expected[0].sizes)
    for slot, array in zip(slots, expected, strict=True):
        found = read(planned, "quality", slot)
        assert found.equals(array.transpose(*found.dims)), slot
    assert len(set(quality.values.ravel())) == quality.size, "every point is a job of its own"


VIT = "  images: {step: load_images, dataset: digits}\n  vit: {step: train_vit, images: images"
ACTS = "  acts: {step: extract_activations, model: vit, images: images, sites: [embed]}\n"


def test_a_zip_is_one_axis() -> None:
    planned = plan(
        f"{VIT}, n_layers: {{grid: [1, 2], axis: size}}, d_model: {{grid: [32, 64], axis: size}}}}\n"
    )
    points = [job.point for job in planned.grids["vit"].values()]
    assert points == [{"n_layers": 1, "d_model": 32}, {"n_layers": 2, "d_model": 64}]
    assert [job.parameters["d_model"] for job in planned.grids["vit"].values()] == [32, 64]


def test_two_seeds_are_crossed_when_one_has_an_axis_of_its_own_name() -> None:
    planned = plan(
        f"{VIT}, seed: {{grid: [0, 1]}}}}\n{ACTS}"
        "  sae: {step: train_sae, activations: acts, seed: {grid: [0, 1, 2], axis: sae_seed}}\n"
    )
    points = [job.point for job in planned.grids["sae"].values()]
    assert points == [{"seed": v, "sae_seed": s} for v, s in itertools.product([0, 1], [0, 1, 2])]


def test_two_seeds_on_axes_of_one_name_are_matched() -> None:
    planned = plan(
        f"{VIT}, seed: {{grid: [0, 1]}}}}\n{ACTS}"
        "  sae: {step: train_sae, activations: acts, seed: {grid: [0, 1]}}\n"
    )
    assert [job.parameters["seed"] for job in planned.grids["sae"].values()] == [0, 1]
    assert len(planned.grids["sae"]) == 2


def test_a_gather_slot_reads_every_point_of_what_is_left() -> None:
    planned = plan(
        f"{VIT}, n_layers: {{grid: [1, 2]}}, seed: {{grid: [0, 1, 2]}}}}\n"
        "  curves: {figure: training_curves, model: {node: vit, select: {seed: [2, 0]}}}\n"
    )
    (job,) = planned.grids["curves"].values()
    vits = [planned.grids["vit"][i, j].key for i in (0, 1) for j in (0, 2)]
    assert list(job.inputs["model"].keys) == vits
    assert [(axis.name, axis.coords[axis.name]) for axis in job.inputs["model"].axes] == [
        ("n_layers", (1, 2)),
        ("seed", (0, 2)),
    ]


@pytest.fixture
def beside_a_gather(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step with a gathered slot beside one that is not."""
    inputs = {"images": Slot(Images), "model": gather(Model)}
    declared = replace(all_steps()["extract_activations"], inputs=inputs)
    monkeypatch.setattr(node, "all_steps", lambda: {**all_steps(), "extract_activations": declared})


@pytest.mark.usefixtures("beside_a_gather")
def test_a_gather_slot_is_matched_along_axes_that_another_slot_brings() -> None:
    planned = plan(
        f"{VIT.replace('digits', 'digits, seed: {grid: [0, 1, 2]}')}, n_layers: {{grid: [1, 2]}}}}\n{ACTS}"
    )
    assert [axis.name for axis in planned.experiment.axes["acts"]] == ["seed"]
    for (seed,), job in planned.grids["acts"].items():
        assert [axis.name for axis in job.inputs["model"].axes] == ["n_layers"]
        assert list(job.inputs["model"].keys) == [planned.grids["vit"][seed, i].key for i in (0, 1)]


def test_nodes_that_are_the_same_computation_share_jobs() -> None:
    planned = plan(
        f"{VIT}, seed: {{grid: [0, 1]}}}}\n  other: {{step: train_vit, images: images, seed: 1}}\n"
    )
    assert len(planned.jobs) == 3
    (other,) = planned.grids["other"].values()
    assert other.key == planned.grids["vit"][1,].key


@pytest.mark.parametrize(
    "spelling",
    [
        "  vit: {images: images, learning_rate: 0.0010, step: train_vit}\n"
        "  images: {dataset: digits, step: load_images}\n",
        "  vit:\n    step: train_vit\n    learning_rate: 1.0e-3 # default\n    images: {node: images}\n"
        "  images: {step: load_images, dataset: digits, seed: 0, skip: 0, n_images: null, size: 224}\n",
        "  elsewhere: {step: load_images, dataset: digits}\n"
        "  vit: {step: train_vit, images: elsewhere, n_layers: 2, seed: 0}\n",
        "  images: {step: load_images, dataset: digits}\n"
        "  vits: {step: train_vit, images: images, n_layers: {grid: [3, 2]}}\n"
        "  vit: {step: train_vit, images: images}\n",
    ],
)
def test_order_spelling_defaults_and_names_of_nodes_are_not_in_the_key(spelling: str) -> None:
    (usual,) = plan(f"{VIT}}}\n").grids["vit"].values()
    (other,) = plan(spelling).grids["vit"].values()
    assert other.key == usual.key


def test_the_seed_of_the_experiment_is_that_of_every_node_without_one() -> None:
    Path("x.yaml").write_text(f"seed: 3\nnodes:\n{VIT}, seed: 5}}\n")
    planned = plan_experiment("x.yaml", Store(Path("artifacts")))
    assert [job.parameters["seed"] for job in planned.jobs.values()] == [3, 5]


def test_a_change_above_is_a_new_key_below_and_nowhere_else() -> None:
    text = f"{VIT}}}\n{ACTS}  other: {{step: load_images, dataset: dsprites, n_images: 3}}\n"
    before, after = plan(text), plan(text.replace("train_vit, ", "train_vit, n_layers: 5, "))
    changed = {node for node in before.grids if before.grids[node][()].key != after.grids[node][()].key}
    assert changed == {"vit", "acts"}


def test_content_of_a_folder_is_in_the_key_its_place_is_not() -> None:
    text = "  images: {step: load_images, dataset: image_folder, path: here}\n"
    Path("here").mkdir()
    Path("here/1.png").write_text("1")
    (before,) = plan(text).jobs
    Path("here").rename("there")
    assert list(plan(text.replace("here", "there")).jobs) == [before]
    Path("there/1.png").write_text("22")
    assert list(plan(text.replace("here", "there")).jobs) != [before]


def test_present_is_asked_once_and_again_on_demand() -> None:
    planned = plan(f"{VIT}}}\n")
    assert planned.present == set()
    job = next(iter(planned.jobs.values()))
    folder = planned.store.partial(job.key) / "artifact"
    folder.mkdir()
    planned.store.commit(job.step, job.key, folder, {})
    assert planned.missing() == list(planned.jobs.values())
    planned.refresh()
    assert planned.present == {job.key}
