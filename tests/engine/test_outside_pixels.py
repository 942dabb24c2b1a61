"""Images whose pixels stay outside the store: found again, wherever they are, and never other ones."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import prisma_steps
from prisma_steps.execution import open_artifact
from prisma_steps.plan import Plan, plan_experiment
from prisma_steps.progress import StatusFile
from prisma_steps.runner import JobError, run_jobs
from prisma_steps.step import StepError
from prisma_steps.store import Store, Stored, walk

NODES = (
    "nodes:\n  {kind}: {{step: load_images, dataset: image_folder, path: {path}, size: 8, pixels: {kind}}}\n"
)


def make_photos(folder: Path) -> None:
    random = np.random.default_rng(0)
    for number in range(9):
        file = folder / f"class{number % 3}" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(file)
        os.utime(file, ns=(10**18, 10**18))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    make_photos(tmp_path / "photos")
    return tmp_path


def planned(kind: str = "lazy", path: str = "photos", store: str = "artifacts") -> Plan:
    Path("x.yaml").write_text(NODES.format(kind=kind, path=path))
    return plan_experiment("x.yaml", Store(Path(store)))


def run(plan: Plan) -> Stored:
    (job,) = plan.jobs.values()
    status = StatusFile(Path("status.json"), "log")
    ((_, outcome),) = run_jobs([job.spec("x")], plan.store, {job.key: status}, threads=2)
    if isinstance(outcome, Exception):
        raise outcome
    plan.refresh()
    return plan.store.artifact(job.step, job.key)


def test_downstream_and_from_python_the_pixels_are_the_stored_ones() -> None:
    stored = run(planned("stored"))
    lazy = run(plan := planned("lazy"))
    expected = open_artifact(plan.store, stored).load()
    for found in (open_artifact(plan.store, lazy), prisma_steps.load("x.yaml", "lazy")):
        assert found.drop_vars("pixel_hash").drop_attrs(deep=False).load().identical(expected)
    assert prisma_steps.load("x.yaml", "lazy")["pixels"].chunks is not None


def test_no_pixel_is_stored() -> None:
    lazy = run(planned())
    assert not (lazy.data / "pixels").exists() and (lazy.data / "pixel_hash").exists()


def test_neither_place_nor_machine_is_in_the_artifact(here: Path) -> None:
    first = run(planned())
    shutil.copytree("photos", "elsewhere/other", copy_function=shutil.copy)
    second = run(planned(path="elsewhere/other", store="another"))
    assert second.key == first.key and second.manifest["digest"] == first.manifest["digest"]
    for artifact in (first, second):
        assert not [name for name, file in walk(artifact.folder) if str(here).encode() in file.read_bytes()]
        names = open_artifact(Store(artifact.folder.parents[1]), artifact)["image"].values
        assert sorted(names) == sorted(f"class{n % 3}/{n}.png" for n in range(9))


def test_other_pixels_are_another_digest() -> None:
    """What reads the images must not be taken for done because names and labels are the same."""
    before = run(planned())
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save("photos/class0/3.png")
    after = run(planned())
    assert after.key != before.key and after.manifest["digest"] != before.manifest["digest"]


def test_a_folder_that_was_moved_is_missed_and_found_again_by_its_content() -> None:
    plan = planned()
    artifact = run(plan)
    Path("photos").rename("moved")
    with pytest.raises(StepError) as caught:
        open_artifact(plan.store, artifact)
    assert str(caught.value).startswith(
        "lazy: its pixels are read from a folder that is no longer where it was"
    )
    assert f"({Path('photos').absolute()}). Put it back; or set `path`" in str(caught.value)
    again = planned(path="moved")
    assert artifact.key in again.present
    assert open_artifact(again.store, artifact)["pixels"].load().shape == (9, 3, 8, 8)


def test_a_copy_does_when_the_latest_place_is_gone() -> None:
    artifact = run(planned())
    shutil.copytree("photos", "copy")
    plan = planned(path="copy")
    shutil.rmtree("copy")
    assert open_artifact(plan.store, artifact)["pixels"].load().shape == (9, 3, 8, 8)


@pytest.mark.parametrize("keep_date", [True, False])
def test_a_file_changed_since_is_named_and_not_served(keep_date: bool) -> None:
    plan = planned()
    images = open_artifact(plan.store, run(plan))
    file = Path("photos/class0/3.png")
    kept = file.read_bytes()
    other = Image.open(file).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    other.save(file)
    if keep_date:
        os.utime(file, ns=(10**18, 10**18))
    with pytest.raises(StepError, match=r"class0/3\.png: its pixels are others than when it was loaded"):
        images["pixels"].load()
    assert images["pixels"].sel(image=["class0/0.png", "class1/4.png"]).load().shape[0] == 2
    file.write_bytes(kept)
    assert images["pixels"].load().shape[0] == 9


@pytest.mark.parametrize("kind", ["stored", "lazy"])
def test_a_folder_that_changes_between_plan_and_job_is_not_loaded_under_the_old_key(kind: str) -> None:
    plan = planned(kind)
    Path("photos/class0/3.png").unlink()
    with pytest.raises(JobError, match=f"{kind}: the content of path changed after this run was planned"):
        run(plan)
    assert not list(plan.store)


def test_what_was_left_out_is_in_the_manifest() -> None:
    broken = Path("photos/class1/4.png")
    broken.write_bytes(broken.read_bytes()[:50])
    Path("x.yaml").write_text(NODES.format(kind="lazy", path="photos").replace("}\n", ", on_broken: skip}\n"))
    manifest = run(plan_experiment("x.yaml", Store(Path("artifacts")))).manifest
    assert manifest["data"]["attrs"]["left_out"] == ["class1/4.png"]
    assert manifest["data"]["dims"]["image"] == 8
