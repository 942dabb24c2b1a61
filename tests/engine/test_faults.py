"""What runs survive: kills at any moment, each other, full disks, Ctrl-C, users' mistakes, and leftovers."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import random
import shutil
import signal
import subprocess
import sys
import termios
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from matplotlib.figure import Figure
from safetensors.torch import save_file

from prisma_steps import datasets
from prisma_steps.job import Checkpoint
from prisma_steps.store import no_space
from tests.engine.fault_session import (
    Disturbance,
    Going,
    Study,
    costs,
    leaving_nobody,
    wait_for,
    watched,
)

IMAGES = "  images: {step: load_images, dataset: digits, n_images: 600}\n"
SMALL = "images: images, n_layers: 2, d_model: 16, n_heads: 2, d_mlp: 32, patch_size: 2"
VIT = f"  vit: {{step: train_vit, {SMALL}, batch_size: 32, epochs: 6}}\n"
SAE = "step: train_sae, activations: activations, expansion: 4, n_tokens: 60000, batch_size: 256"
TINY = f"""\
title: All that a run does, small
nodes:
{IMAGES}{VIT}
  activations: {{step: extract_activations, model: vit, images: images, sites: [resid_post]}}
  sae: {{{SAE}, k: {{grid: [2, 4]}}}}
  quality: {{step: evaluate_sae, sae: sae, model: vit, images: images}}
  curves: {{figure: training_curves, model: vit}}
"""

# Long enough to be stopped several times: attention over 65 tokens on every one of many small batches.
LONG_VIT = f"{SMALL.replace('patch_size: 2', 'patch_size: 1')}, batch_size: 16, epochs: 60"
LONG = f"title: A long training\nnodes:\n{IMAGES}  vit: {{step: train_vit, {LONG_VIT}}}\n"


def undisturbed(folder: Path, name: str, text: str) -> Study:
    study = Study(folder, name).write(text)
    study.finish()
    return study


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The tiny experiment, run through without a disturbance."""
    return undisturbed(tmp_path_factory.mktemp("tiny"), "tiny", TINY)


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The long training, run through without a disturbance."""
    return undisturbed(tmp_path_factory.mktemp("long"), "long", LONG)


@pytest.fixture
def study(tmp_path: Path) -> Iterator[Study]:
    """A folder for a study; nobody works in it when the test has ended."""
    with leaving_nobody(Study(tmp_path, "tiny")) as found:
        yield found


def take_over(old: Study, new: Study, *steps: str) -> None:
    """Give a study the artifacts of some steps that another has made."""
    for step in steps:
        shutil.copytree(old.root / step, new.root / step)


def titles(going: Going) -> dict[str, str]:
    return {
        f"{job['node']}{list(job['point'].values()) or ''}": job["state"] for job in going.answer()["jobs"]
    }


def training_status(study: Study) -> dict[str, Any] | None:
    """The word of the training that began last."""
    found = [status for status in study.statuses() if "/train_vit/" in status["log"]]
    return max(found, key=lambda status: status["started"], default=None)


# --- kill -9


def test_killed_at_random_moments_and_run_again(tiny: Study, study: Study, tmp_path: Path) -> None:
    study.write(TINY)
    dice = random.Random(20260101)
    shares = [0.0, *(dice.uniform(0.0, 0.8) for _ in range(9))]  # some come too late to kill anybody
    with watched(study.root, tmp_path / "watched"):
        kills = list(Disturbance(study, costs(tiny), dice).kills(shares))
        study.finish()
        study.alone()
    assert len(kills) >= 6
    assert len({kill.victim for kill in kills}) > 1, "seed that kills only one kind of process"
    assert study.digests() == tiny.digests()
    assert study.held_locks() == []


def test_killed_training_goes_on_from_its_checkpoint(long: Study, study: Study) -> None:
    study.write(LONG)
    take_over(long, study, "load_images")
    going = study.start()
    wait_for(lambda: saved_share(study) > 0.2, "a checkpoint of the training")
    (job,) = study.processes()["job"]
    job.kill()
    assert going.process.wait(60) == 1
    (message,) = going.answer()["failures"].values()
    assert "killed" in message
    saved = saved_share(study)
    runs = {status["run"] for status in study.statuses()}
    again = study.start()
    resumed_at = wait_for(lambda: trained_share(study, runs), "the training to go on")
    assert resumed_at >= saved
    assert again.process.wait(300) == 0, again.told()
    assert study.digests() == long.digests()


def checkpoints(study: Study) -> list[Path]:
    return list(study.root.glob(".partial/*/scratch/checkpoint.pt"))


def saved_share(study: Study) -> float:
    """How far the training was when it was last saved."""
    status = training_status(study)
    found = checkpoints(study)
    if status is None or not status["total"] or not found:
        return 0.0
    return torch.load(found[0], weights_only=True)["progress"]["step"] / status["total"]


def trained_share(study: Study, before: set[str]) -> float:
    """How far the training is in a run that is not one of ``before``."""
    status = training_status(study)
    known = status is not None and status["run"] not in before and status["total"]
    return status["done"] / status["total"] if status is not None and known else 0.0


def test_killed_between_shards_goes_on_after_the_last_whole_one(study: Study, tmp_path: Path) -> None:
    images = "{step: load_images, dataset: dsprites, n_images: 140000}"
    text = f"title: Several shards\nnodes:\n  images: {images}\n"
    whole = Study(tmp_path / "whole", "tiny").write(text)
    whole.finish()
    study.write(text)
    going = study.start()
    (state,) = wait_for(lambda: list(study.root.glob(".partial/*/blocks.json")), "the first shard")
    (job,) = study.processes()["job"]
    job.kill()
    done = json.loads(state.read_text())["next"]
    assert 0 < done < 140_000
    assert going.process.wait(60) == 1
    (state.parent / "artifact" / "data.zarr" / "pixels" / "0.partial").write_bytes(b"half a shard")
    (state.parent / "artifact" / ".manifest.json.1").write_bytes(b"half a manifest")
    kept = state.parent / "artifact" / "data.zarr" / "pixels" / "c" / "0" / "0" / "0" / "0"
    inode = kept.stat().st_ino
    study.finish()
    assert study.digests() == whole.digests()
    (made,) = study.root.glob("load_images/*/data.zarr/pixels/c/0/0/0/0")
    assert made.stat().st_ino == inode, "the first shard was made again"


# --- two runs at once

ONE = TINY.replace("title: All", "title: One").replace("grid: [2, 4]", "grid: [2]")
TWO = TINY.replace("title: All", "title: Two").replace("grid: [2, 4]", "grid: [2, 8]")


@pytest.mark.parametrize("where", ["one folder", "two folders"])
def test_two_runs_at_once_compute_everything_once(tiny: Study, tmp_path: Path, where: str) -> None:
    store = tmp_path / "shared"
    folders = [tmp_path / "a", tmp_path / ("a" if where == "one folder" else "b")]
    one, two = (
        Study(folder, name, store).write(text)
        for folder, name, text in zip(folders, ("one", "two"), (ONE, TWO), strict=True)
    )
    take_over(tiny, one, "load_images")
    with leaving_nobody(one), leaving_nobody(two), watched(store, tmp_path / "watched"):
        going = [one.start(), two.start()]
        codes = [each.process.wait(300) for each in going]
    assert codes == [0, 0], [each.told() for each in going]
    by_answers = Counter(key for each in going for key, state in each.states().items() if state == "computed")
    by_jobs = Counter(
        status["key"]
        for each in {one.folder: one, two.folder: two}.values()
        for status in each.statuses()
        if status["state"] == "computed"
    )
    made = {name.rpartition("/")[2] for name in one.digests()} - {
        name.rpartition("/")[2] for name in tiny.digests() if name.startswith("load_images/")
    }
    assert by_answers == by_jobs == dict.fromkeys(made, 1)
    common = tiny.digests().keys() & one.digests().keys()
    assert len(common) >= 6
    assert {name: one.digests()[name] for name in common} == {name: tiny.digests()[name] for name in common}


# --- a full disk


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    """A filesystem of ``size`` bytes at ``folder``. Mounting takes root: without it the test fails."""
    folder.mkdir(parents=True)
    _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder))
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def test_a_full_store_says_so_and_goes_on_once_there_is_room(tiny: Study, tmp_path: Path) -> None:
    study = Study(tmp_path, "tiny", tmp_path / "disk" / "store").write(TINY)
    images, vit = (on_disk(tiny.root / step) for step in ("load_images", "train_vit"))
    # Room for the images only, then for the model too: what a job is made of needs more than is to spare.
    stages = {"vit": images + 64 * 2**10, "activations": images + vit + 200 * 2**10}
    with small_disk(tmp_path / "disk", 2**20), leaving_nobody(study):
        for node, size in stages.items():
            _mount("-o", f"remount,size={size}", str(tmp_path / "disk"))
            going = study.start()
            assert going.process.wait(300) == 1, going.told()
            message = going.answer()["failures"][node]
            assert str(study.root) in message
            assert "no space left" in message
            assert "make room" in message
            assert "Traceback" not in going.told()
            assert verified(study)
        _mount("-o", "remount,size=1g", str(tmp_path / "disk"))
        study.finish()
        assert verified(study)
        assert study.digests() == tiny.digests()


def on_disk(folder: Path) -> int:
    """Bytes that the files below a folder take, in whole blocks."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def verified(study: Study) -> bool:
    done = subprocess.run(study.words("verify"), cwd=study.folder, env=study.environment, check=False)
    return done.returncode == 0


def save_checkpoint(folder: Path) -> None:
    Checkpoint(folder / "checkpoint.pt").save({"weights": torch.rand(10**6)})


def save_weights(folder: Path) -> None:
    save_file({"weights": torch.rand(10**6)}, folder / "model.safetensors")


def save_data(folder: Path) -> None:
    datasets.write(
        xr.Dataset({"weights": ("image", np.random.default_rng(0).random(10**6))}), folder / "data"
    )


def save_figure(folder: Path) -> None:
    Figure((100, 100), dpi=100).savefig(folder / "figure.raw", format="raw")


@pytest.mark.parametrize("save", [save_checkpoint, save_weights, save_data, save_figure])
def test_a_full_disk_is_recognised_in_whatever_a_library_raises(
    tmp_path: Path, save: Callable[[Path], None]
) -> None:
    with small_disk(tmp_path / "disk", 2**20):
        with pytest.raises(Exception) as raised:
            save(tmp_path / "disk")
        assert no_space(raised.value)
    assert not no_space(OSError(13, "Permission denied"))


@pytest.mark.parametrize("left", [0, 4096 * 2, 4096 * 6])
def test_a_full_disk_of_results_is_named(tiny: Study, tmp_path: Path, left: int) -> None:
    folder = tmp_path / "disk"
    with small_disk(folder, 4 * 2**20):
        study = Study(folder, "tiny", tmp_path / "store").write(f"title: Few\nnodes:\n{IMAGES}{VIT}")
        take_over(tiny, study, "load_images")
        said = tmp_path / "said"
        filler = folder / "filler"
        with leaving_nobody(study):
            filler.write_bytes(b"x" * (shutil.disk_usage(folder).free - left))
            with said.open("wb") as file:
                code = study_outside(study, file)
            told = said.read_text()
            assert code == 1, told
            assert "no space left" in told
            assert str(folder) in told
            assert "make room" in told
            assert "Traceback" not in told
            filler.unlink()
            study.finish()


def study_outside(study: Study, file: Any) -> int:
    """Run in the study's folder, but write what is said elsewhere; the exit code."""
    words = study.words("run", study.name, "--json", "--cores", "2")
    return subprocess.run(
        words, cwd=study.folder, env=study.environment, stdout=file, stderr=file, check=False, timeout=300
    ).returncode


# --- asked to stop


def heed_interrupts() -> None:
    """As a shell does for a command in the foreground, wherever the tests themselves run."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def ignore_interrupts() -> None:
    """As a shell does for a command that a script starts in the background."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def terminal(study: Study) -> Iterator[tuple[Going, int]]:
    """The command in a terminal of its own, and the keyboard's end of it."""
    keyboard, screen = pty.openpty()
    shown = threading.Thread(target=_drain, args=(keyboard,), daemon=True)
    words = study.words("run", study.name, "--cores", "2")

    def own() -> None:
        heed_interrupts()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        words,
        cwd=study.folder,
        env=study.environment | {"TERM": "xterm"},
        stdin=screen,
        stdout=screen,
        stderr=screen,
        start_new_session=True,
        preexec_fn=own,
    )
    os.close(screen)
    shown.start()
    yield Going(study, process, study.folder / "unsaid"), keyboard
    shown.join(10)
    os.close(keyboard)


def _drain(keyboard: int) -> None:
    with suppress(OSError):  # the other end is closed
        while os.read(keyboard, 65536):
            pass


WAYS = ["Ctrl-C in a terminal", "SIGINT", "SIGTERM", "SIGTERM in the background"]


@pytest.fixture(scope="module")
def stopped(long: Study, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Study]:
    """One long training, stopped in every way, each time to go on from where it was."""
    with leaving_nobody(Study(tmp_path_factory.mktemp("stopped"), "long").write(LONG)) as study:
        take_over(long, study, "load_images")
        yield study


@pytest.mark.parametrize("way", WAYS)
def test_asked_to_stop_it_stops_soon_and_leaves_nobody(stopped: Study, way: str) -> None:
    runs = {status["run"] for status in stopped.statuses()}
    if way == "Ctrl-C in a terminal":
        with terminal(stopped) as (going, keyboard):
            wait_for(lambda: trained_share(stopped, runs), "the training")
            os.write(keyboard, b"\x03")
            code = going.process.wait(30)
    else:
        going = stopped.start(preexec_fn=ignore_interrupts if "background" in way else heed_interrupts)
        wait_for(lambda: trained_share(stopped, runs), "the training")
        going.process.send_signal(getattr(signal, way.split()[0]))
        code = going.process.wait(30)
    assert code == 130
    assert not any(stopped.processes().values())
    assert stopped.held_locks() == []
    assert checkpoints(stopped)


def test_stopped_in_every_way_it_ends_with_the_same_digests(long: Study, stopped: Study) -> None:
    stopped.finish()
    assert stopped.digests() == long.digests()


# --- mistakes and leftovers


def test_a_failed_job_stops_no_other_and_only_it_runs_again(tiny: Study, study: Study) -> None:
    vit = SMALL.replace("patch_size: 2", "epochs: 1, patch_size: {grid: [3, 4]}")
    study.write(f"title: One mistake\nnodes:\n{IMAGES}  vit: {{step: train_vit, {vit}}}\n")
    take_over(tiny, study, "load_images")
    expected = [("computed", "failed"), ("cached", "failed")]
    for good, bad in expected:
        going = study.start()
        assert going.process.wait(120) == 1
        states = titles(going)
        assert states == {"images": "cached", "vit[3]": bad, "vit[4]": good}
        assert list(going.answer()["failures"]) == ["vit[patch_size=3]"]
        assert "patch" in going.answer()["failures"]["vit[patch_size=3]"]
    words = study.words("run", study.name)
    shown = subprocess.run(
        words, cwd=study.folder, env=study.environment, capture_output=True, text=True, check=False
    )
    assert shown.returncode == 1
    assert going.answer()["failures"]["vit[patch_size=3]"] in shown.stderr
    assert "Traceback" not in shown.stderr


def test_what_dead_processes_left_does_no_harm(tiny: Study, study: Study) -> None:
    study.write(TINY)
    take_over(tiny, study, "load_images")
    for name in tiny.digests():
        step, key = name.split("/")
        if step != "load_images":
            leave_traces(study, step, key)
    study.finish()
    assert study.digests() == tiny.digests()
    assert verified(study)


def leave_traces(study: Study, step: str, key: str) -> None:
    """The lock of a dead process, garbage where an artifact is made, and half an artifact in its place."""
    lock = (
        "import os, sys; from pathlib import Path; from prisma_steps.lock import Lock\n"
        "with Lock(Path(sys.argv[1]), print): os._exit(0)"
    )
    words = [sys.executable, "-c", lock, str(study.root / ".locks" / key)]
    subprocess.run(words, env=study.environment, check=True)
    partial = study.root / ".partial" / key
    for file in ("artifact/data.zarr/zarr.json", "artifact/junk", "blocks.json", "scratch/checkpoint.pt"):
        (partial / file).parent.mkdir(parents=True, exist_ok=True)
        (partial / file).write_bytes(b"garbage")
    (study.root / step / key).mkdir(parents=True)
    (study.root / step / key / "junk").write_bytes(b"garbage")
