"""Nodes in parts: which jobs they are, and that whatever reads them sees one Dataset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import prisma_steps
from prisma_steps import datasets, node, runner
from prisma_steps.execution import open_input
from prisma_steps.fingerprint import parameters_in_key
from prisma_steps.hypercube import combine
from prisma_steps.job import Job
from prisma_steps.parts import images_of_part, part_slice
from prisma_steps.plan import JobPlan, Plan, plan_experiment
from prisma_steps.schema import Activations, Images, Model, Quality
from prisma_steps.step import InParts, Slot, StepError, all_steps, gather, step
from prisma_steps.steps.extract_activations import Params
from prisma_steps.store import DATA, Store
from prisma_steps.store_commands import _wholes

NODES = """\
  images: {step: load_images, dataset: digits}
  vit: {step: train_vit, images: images, n_layers: {grid: [1, 2]}}
  acts: {step: extract_activations, model: vit, images: images, sites: [embed], parts: 3}
  sae: {step: train_sae, activations: acts, k: {grid: [2, 4]}}
"""


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def plan(nodes: str = NODES) -> Plan:
    Path("x.yaml").write_text(f"nodes:\n{nodes}")
    return plan_experiment("x.yaml", Store(Path("artifacts")))


# --- which images


@given(st.integers(1, 1000), st.data())
def test_parts_are_a_partition_into_near_equal_sizes(count: int, data: st.DataObject) -> None:
    parts = data.draw(st.integers(1, count))
    slices = [range(count)[part_slice(count, parts, part)] for part in range(parts)]
    assert [i for part in slices for i in part] == list(range(count))
    sizes = {len(part) for part in slices}
    assert max(sizes) - min(sizes) <= 1


def test_the_images_of_a_part_keep_their_labels() -> None:
    images = xr.Dataset({"pixels": ("image", np.arange(7))}, {"image": list("abcdefg")})
    found = [images_of_part(images, InParts(parts=3, part=part)) for part in range(3)]
    assert ["".join(part["image"].values) for part in found] == ["ab", "cd", "efg"]
    xr.testing.assert_identical(images_of_part(images, InParts()), images)


def test_more_parts_than_images_are_a_mistake() -> None:
    with pytest.raises(StepError, match="parts is 4, but there are only 3 images"):
        part_slice(3, 4, 0)


# --- which jobs


def test_one_part_leaves_keys_as_they_were() -> None:
    assert parameters_in_key(Params(sites=["embed"])).keys() & {"parts", "part"} == set()
    without = plan(NODES.replace(", parts: 3", ""))
    assert plan(NODES.replace("parts: 3", "parts: 1")).jobs.keys() == without.jobs.keys()
    assert plan().jobs.keys() & without.jobs.keys() == {
        job.key for job in without.jobs.values() if job.node in ("images", "vit")
    }


def test_every_part_is_a_job_and_whoever_reads_the_node_reads_them_all() -> None:
    planned = plan()
    assert [axis.name for axis in planned.experiment.axes["acts"]] == ["n_layers", "part"]
    assert [axis.name for axis in planned.experiment.axes["sae"]] == ["n_layers", "k"]
    for (layers, part), job in planned.grids["acts"].items():
        assert (job.parameters["parts"], job.parameters["part"]) == (3, part)
        assert job.title == f"acts[n_layers={layers + 1}, part={part + 1} of 3]"
    assert len({job.key for job in planned.grids["acts"].values()}) == 6
    for (layers, _), job in planned.grids["sae"].items():
        keys = [planned.grids["acts"][layers, part].key for part in range(3)]
        assert list(job.inputs["activations"].keys) == keys
        assert job.identity["inputs"]["activations"]["keys"] == keys


def test_another_number_of_parts_is_another_key_of_all_that_reads_them() -> None:
    three, four = plan(), plan(NODES.replace("parts: 3", "parts: 4"))
    for name in ("acts", "sae"):
        assert not {j.key for j in three.grids[name].values()} & {j.key for j in four.grids[name].values()}


def test_a_step_whose_parts_could_not_be_joined_is_refused() -> None:
    def made(params: InParts, job: Job) -> None:
        """Make nothing."""

    made.__annotations__["params"] = InParts
    for kind, what in {Quality: "quality has no such dimension", Model: "model has (no such|files)"}.items():
        with pytest.raises(TypeError, match=f"step made: parts are joined along image, and {what}"):
            step(inputs={}, output=kind)(made)
    filed = replace(Activations, files=("x",))
    with pytest.raises(TypeError, match="activations has files"):
        step(inputs={}, output=filed)(made)


# --- what is read


def whole(layers: int, count: int = 7) -> xr.Dataset:
    """Activations of a model of so many layers."""
    values = np.random.default_rng(layers).normal(size=(count, 2))
    return xr.Dataset(
        {"embed": (("image", "d_model"), values, {"units": "1"}), "scale": ("d_model", [1.0, layers])},
        {
            "image": [f"i{n}" for n in range(count)],
            "label": ("image", np.arange(count)),
            "class_name": ("class", ["a", "b"]),
        },
    )


def fill(planned: Plan, missing: Sequence[JobPlan] = ()) -> None:
    """Artifacts for every job of ``acts``."""
    for (layers, _), job in planned.grids["acts"].items():
        if job in missing:
            continue
        folder = planned.store.partial(job.key) / "artifact"
        folder.mkdir()
        made = images_of_part(whole(layers + 1), InParts(parts=3, part=job.parameters["part"]))
        datasets.write(made, folder / DATA)
        facts = {**job.spec("x"), "data": datasets.describe(made)}
        planned.store.commit(job.step, job.key, folder, facts)


def test_a_slot_receives_the_whole_and_lazily() -> None:
    planned = plan()
    fill(planned)
    for (layers, _), job in planned.grids["sae"].items():
        data = open_input(planned.store, job.inputs["activations"].spec(), Activations)
        assert isinstance(data, xr.Dataset)
        assert not data["embed"].variable._in_memory
        xr.testing.assert_identical(data.load(), whole(layers + 1))


def test_loaded_from_python_the_parts_are_no_dimension() -> None:
    planned = plan()
    fill(planned)
    data = prisma_steps.load("x.yaml", "acts")
    assert data["embed"].dims == ("n_layers", "image", "d_model")
    for layers in (1, 2):
        xr.testing.assert_equal(data.sel(n_layers=layers, drop=True).load(), whole(layers))


def test_a_missing_part_is_named() -> None:
    planned = plan()
    fill(planned, missing=[planned.grids["acts"][1, 2]])
    with pytest.raises(prisma_steps.python_api.NotThere, match=r"1 of 6 .*acts\[n_layers=2, part=3 of 3\]"):
        prisma_steps.load("x.yaml", "acts")


@pytest.mark.parametrize("own", ["", ", parts: 2"])
def test_a_gathered_slot_receives_the_grid_of_wholes(monkeypatch: pytest.MonkeyPatch, own: str) -> None:
    """Whether the node that gathers is in parts of its own or not."""
    inputs = {"images": Slot(Images), "model": gather(Activations)}
    gathers = replace(all_steps()["extract_activations"], name="gathers", inputs=inputs)
    monkeypatch.setattr(node, "all_steps", lambda: {**all_steps(), "gathers": gathers})
    planned = plan(f"{NODES}  all: {{step: gathers, model: acts, images: images, sites: [embed]{own}}}\n")
    fill(planned)
    for job in planned.grids["all"].values():
        data = open_input(planned.store, job.inputs["model"].spec(), Activations)
        xr.testing.assert_identical(data, prisma_steps.python_api.load_node(planned, "acts"))


def test_parts_that_do_not_belong_together_are_not_joined() -> None:
    planned = plan()
    axis = planned.experiment.axes["acts"][-1]
    parts = [whole(1).isel(image=slice(i, i + 2)) for i in (0, 2, 4)]
    parts[1] = parts[1].assign(scale=("d_model", [5.0, 5.0]))
    with pytest.raises(ValueError, match="scale"):
        combine(parts, [axis])


def test_digests_of_all_parts_tell_whether_a_computation_was_done_before() -> None:
    planned = plan()
    fill(planned)
    job = planned.grids["sae"][0, 0]
    found = runner._input_digests(job.spec("x"), planned.store)["activations"]
    stored = [planned.store.artifact("extract_activations", key) for key in job.inputs["activations"].keys]
    assert found["digests"] == [artifact.manifest["digest"] for artifact in stored]
    assert len(set(found["digests"])) == 3


def test_show_tells_what_the_parts_are_together() -> None:
    planned = plan()
    absent = planned.grids["acts"][1, 2]
    fill(planned, missing=[absent])
    acts = [job for job in planned.grids["acts"].values() if job is not absent]
    first, second = _wholes([planned.store.artifact(job.step, job.key) for job in acts])
    assert "acts[n_layers=1]: 3 of 3 parts, read as one: image: 7, d_model: 2" in first.replace("\\[", "[")
    assert "acts[n_layers=2]: 2 of 3 parts, read as one: image: 4, d_model: 2" in second.replace("\\[", "[")
