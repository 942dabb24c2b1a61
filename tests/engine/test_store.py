from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from prisma_steps import store as stores
from prisma_steps.maintenance import artifacts_of, collect, damaged, garbage, plans_in, repair
from prisma_steps.plan import Plan, plan_experiment
from prisma_steps.store import MANIFEST, Store, Stored, content_digest, link_tree, walk

KEY = "0123456789abcdef"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "artifacts")


def made(store: Store, key: str = KEY, text: str = "numbers") -> Path:
    """An unfinished artifact of two files, one in a folder, beside a checkpoint."""
    folder = store.partial(key) / "artifact"
    (folder / "data.zarr").mkdir(parents=True)
    (folder / "data.zarr" / "0").write_text(text)
    (folder / "weights").write_bytes(b"\0\1")
    (store.partial(key) / "checkpoint.pt").touch()
    return folder


def commit(store: Store, key: str = KEY, text: str = "numbers", **manifest: Any) -> Stored:
    return store.commit("train_sae", key, made(store, key, text), {"computation": f"c{key}", **manifest})


def test_an_artifact_is_there_once_it_is_committed(store: Store) -> None:
    folder = made(store)
    assert not store.has("train_sae", KEY)
    artifact = store.commit("train_sae", KEY, folder, {"title": "é"})
    assert store.has("train_sae", KEY)
    assert store.keys("train_sae") == {KEY}
    assert [str(found) for found in store] == [f"train_sae/{KEY}"]
    assert artifact.manifest["title"] == "é"
    assert artifact.manifest["key"] == KEY
    assert artifact.manifest["files"]["weights"]["size"] == 2
    assert artifact.manifest["digest"] == content_digest_without_manifest(artifact)
    assert not store.partial(KEY).joinpath("checkpoint.pt").exists()


def content_digest_without_manifest(artifact: Stored) -> str:
    manifest = (artifact.folder / MANIFEST).read_text()
    (artifact.folder / MANIFEST).unlink()
    found = content_digest(artifact.folder)
    (artifact.folder / MANIFEST).write_text(manifest)
    return found


def test_the_digest_is_of_names_and_contents_alone(store: Store) -> None:
    first = commit(store, title="a")
    second = commit(store, "1" * 16, title="b", computation="other")
    assert first.manifest["digest"] == second.manifest["digest"]
    assert commit(store, "2" * 16, text="numberz").manifest["digest"] != first.manifest["digest"]


@pytest.mark.parametrize("stop", ["_hashed", "write_json", "rename"])
def test_nobody_sees_an_artifact_whose_commit_was_cut_short(
    store: Store, stop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(*_: object) -> None:
        raise KeyboardInterrupt

    folder = made(store)
    monkeypatch.setattr(*((Path, "rename") if stop == "rename" else (stores, stop)), cut)
    with pytest.raises(KeyboardInterrupt):
        store.commit("train_sae", KEY, folder, {"computation": "c"})
    monkeypatch.undo()
    (folder / f".{MANIFEST}.1234").touch()  # a kill while the manifest is written leaves one
    assert not store.has("train_sae", KEY)
    assert store.keys("train_sae") == set()
    assert list(store) == []
    assert store.outcome("c") is None
    # What the next run does: the same, to the end.
    again = store.commit("train_sae", KEY, folder, {"computation": "c"})
    assert again.damaged() == []
    assert sorted(again.manifest["files"]) == ["data.zarr/0", "weights"]
    assert store.outcome("c") is not None


def test_the_manifest_is_written_after_all_else_and_before_the_move(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, seen = made(store), []
    real = stores.write_json

    def watch(file: Path, value: Any) -> None:
        real(file, value)
        if file.name == MANIFEST:
            seen.append((file.parent == folder, sorted(name for name, _ in walk(folder))))

    monkeypatch.setattr(stores, "write_json", watch)
    store.commit("train_sae", KEY, folder, {})
    assert seen == [(True, ["data.zarr/0", MANIFEST, "weights"])]


def test_a_folder_without_manifest_is_no_artifact(store: Store) -> None:
    (store.root / "train_sae" / KEY).mkdir(parents=True)
    assert store.keys("train_sae") == set()
    assert list(store) == []


def test_find_by_the_first_digits(store: Store) -> None:
    commit(store)
    commit(store, "02" * 8)
    assert [found.key for found in store.find("01")] == [KEY]
    assert len(store.find("0")) == 2
    assert [found.key for found in store.find("train_sae/012")] == [KEY]
    assert store.find("train_vit/01") == []


@pytest.mark.parametrize(
    ("harm", "files"),
    [
        (lambda folder: (folder / "weights").write_bytes(b"\0\2"), ["weights"]),
        (lambda folder: (folder / "data.zarr/0").unlink(), ["data.zarr/0"]),
        (lambda folder: (folder / "data.zarr/1").touch(), ["data.zarr/1"]),
        (lambda folder: os.utime(folder / "weights", (1, 1)), []),
    ],
)
def test_damage_is_named(store: Store, harm: Any, files: list[str]) -> None:
    artifact = commit(store)
    harm(artifact.folder)
    assert artifact.damaged() == files
    outcome = store.outcome(f"c{KEY}")
    assert (outcome is None) == bool(files), "a damaged artifact is never linked"


def test_remove_takes_it_out_of_sight_at_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = commit(store)

    def cut(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(stores.shutil, "rmtree", cut)
    with pytest.raises(KeyboardInterrupt):
        store.remove(artifact)
    assert not store.has("train_sae", KEY)
    assert store.outcome(f"c{KEY}") is None


def test_links_share_bytes_and_leave_the_manifest_behind(store: Store, tmp_path: Path) -> None:
    artifact = commit(store)
    link_tree(artifact.folder, tmp_path / "again")
    assert [name for name, _ in walk(tmp_path / "again")] == ["data.zarr/0", "weights"]
    assert (tmp_path / "again/weights").samefile(artifact.folder / "weights")


@pytest.mark.parametrize("error", [errno.EPERM, errno.EXDEV, errno.EMLINK, errno.ENOTSUP])
def test_where_there_are_no_hard_links_files_are_copied(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(error, "no")

    artifact = commit(store)
    monkeypatch.setattr(os, "link", refuse)
    link_tree(artifact.folder, tmp_path / "again")
    assert (tmp_path / "again/weights").read_bytes() == b"\0\1"
    assert not (tmp_path / "again/weights").samefile(artifact.folder / "weights")


def test_code_is_kept_once(store: Store) -> None:
    store.save_code("abc", lambda: {"module": {"f": "1"}})
    store.save_code("abc", pytest.fail)
    assert store.code("abc") == {"module": {"f": "1"}}


# --- with experiments


@pytest.fixture
def plan(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """An experiment with every artifact in the store."""
    monkeypatch.chdir(tmp_path)
    Path("experiments").mkdir()
    Path("experiments/x.yaml").write_text(
        "nodes:\n  images: {step: load_images, dataset: digits}\n"
        "  vit: {step: train_vit, images: images, n_layers: {grid: [1, 2]}}\n"
    )
    plan = plan_experiment("x", store)
    for job in plan.jobs.values():
        spec = job.spec("x")
        store.commit(job.step, job.key, made(store, job.key), {**spec, "computation": f"c{job.key}"})
    return plan


def test_gc_keeps_what_experiments_reach_and_takes_the_rest(plan: Plan, store: Store) -> None:
    assert len(plan.present) == 3
    text = Path("experiments/x.yaml").read_text()
    Path("experiments/x.yaml").write_text(text.replace("[1, 2]", "[1]"))
    made(store, "f" * 16)
    found = garbage(store, plans_in(Path("experiments"), store))
    assert [artifact.manifest["point"] for artifact in found.artifacts] == [{"n_layers": 2}]
    assert [folder.name for folder in found.partial] == ["f" * 16]
    assert found.bytes > 0
    collect(store, found)
    assert len(list(store)) == 2
    assert not (store.root / ".partial" / ("f" * 16)).exists()
    assert garbage(store, plans_in(Path("experiments"), store)).artifacts == []
    entries = [json.loads(file.read_text())["key"] for file in (store.root / ".computations").glob("??/*")]
    assert sorted(entries) == sorted(artifact.key for artifact in store)


def test_gc_leaves_alone_the_checkpoint_of_a_job_that_is_needed(plan: Plan, store: Store) -> None:
    store.partial(next(iter(plan.jobs))).joinpath("checkpoint.pt").touch()
    assert garbage(store, [plan]).partial == []


def test_gc_leaves_alone_what_somebody_works_on(plan: Plan, store: Store) -> None:
    made(store, "f" * 16)
    with store.lock("f" * 16, pytest.fail):
        assert garbage(store, [plan]).partial == []


def test_repair_removes_the_damaged_and_only_those(plan: Plan, store: Store) -> None:
    victim = artifacts_of(plan)[1]
    (victim.folder / "weights").write_bytes(b"?")
    assert [(bad.artifact, bad.files) for bad in damaged(store, lambda _: None)] == [(victim, ["weights"])]
    assert [bad.artifact for bad in repair(plan, lambda _: None)] == [victim]
    assert [job.key for job in plan.missing()] == [victim.key]
