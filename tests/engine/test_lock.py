from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from prisma_steps import lock
from prisma_steps.lock import Lock, Owner, read_owner, this_process
from prisma_steps.store import write_json

# Takes the lock again and again, writes its name while it holds it, and looks whether another wrote over it.
# With "dies", a process ends now and then while it holds the lock, and another takes its turns.
CONTENDER = """
import os, random, sys, time
from pathlib import Path
from prisma_steps.lock import Lock

folder, number, dies = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "dies"
chance = random.Random(number)
for turn in range(12):
    dying = dies and chance.random() < 0.6
    if dies and os.fork():
        os.wait()
        continue
    with Lock(folder / "lock", lambda owner: None, poll=0.002):
        (folder / "holder").write_text(f"{number} {turn}")
        with open(folder / "turns", "a") as turns:
            turns.write(f"{number} {turn}\\n")
        time.sleep(0.002)
        if (folder / "holder").read_text() != f"{number} {turn}":
            (folder / "violated").touch()
        if dying:
            os._exit(9)
    if dies:
        os._exit(0)
    time.sleep(0.002)
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "locks" / "key"


def silent(_owner: Owner) -> None:
    """Wait without a word."""


def left_by(file: Path, owner: Owner) -> None:
    """A lock whose owner did not let go."""
    file.parent.mkdir(exist_ok=True)
    write_json(file, asdict(owner))


@pytest.fixture
def other_process() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


def owner_of(process: subprocess.Popen[bytes]) -> Owner:
    started = lock._started(process.pid)
    assert started is not None
    return replace(this_process(), pid=process.pid, started=started, token="other")


def waits(file: Path, then: Callable[[], object]) -> list[Owner]:
    """Whom a lock waits for before ``then``, done half a second later, lets it through."""
    seen: list[Owner] = []
    threading.Timer(0.5, then).start()
    began = time.monotonic()
    with Lock(file, seen.append, poll=0.02):
        assert time.monotonic() - began > 0.4
    return seen


def test_held_within_the_block_and_let_go_after_it(file: Path) -> None:
    with Lock(file, silent):
        owner = read_owner(file)
        assert owner is not None and owner.pid == os.getpid()
    assert read_owner(file) is None
    assert list(file.parent.iterdir()) == []


def test_let_go_after_an_exception(file: Path) -> None:
    with pytest.raises(KeyError), Lock(file, silent):
        raise KeyError
    assert read_owner(file) is None


def test_waits_for_a_process_that_lives(file: Path, other_process: subprocess.Popen[bytes]) -> None:
    owner = owner_of(other_process)
    left_by(file, owner)
    assert waits(file, file.unlink) == [owner]


def test_takes_over_when_the_owner_dies(file: Path, other_process: subprocess.Popen[bytes]) -> None:
    left_by(file, owner_of(other_process))
    assert len(waits(file, other_process.kill)) == 1


def test_takes_over_from_a_process_id_that_is_used_again(file: Path, other_process) -> None:
    owner = owner_of(other_process)
    left_by(file, replace(owner, started=owner.started - 100))
    with Lock(file, pytest.fail):
        pass


def test_takes_over_from_a_process_that_is_gone(file: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    owner = replace(this_process(), pid=gone.pid, token="gone")
    gone.wait()
    left_by(file, owner)
    with Lock(file, pytest.fail):
        pass


@pytest.mark.parametrize("elsewhere", [{"host": "elsewhere"}, {"namespace": "pid:[1]"}])
def test_an_owner_elsewhere_lives_as_long_as_it_gives_signs_of_life(file: Path, elsewhere) -> None:
    owner = replace(this_process(), **elsewhere)
    left_by(file, owner)
    now = time.time()
    os.utime(file, (now, now - lock.DEAD_AFTER + 30))
    assert waits(file, lambda: os.utime(file, (now, now - lock.DEAD_AFTER - 30))) == [owner]


def test_gives_signs_of_life(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT", 0.02)
    with Lock(file, silent):
        os.utime(file, (0, 0))
        time.sleep(0.3)
        assert file.stat().st_mtime > time.time() - 60


def test_does_not_let_go_of_what_another_took(file: Path) -> None:
    other = replace(this_process(), token="other")
    with Lock(file, silent):
        left_by(file, other)
    assert read_owner(file) == other


@pytest.mark.parametrize("way", ["lives", "dies"])
def test_eight_processes_are_never_two_holders(tmp_path: Path, way: str) -> None:
    command = [sys.executable, "-W", "ignore", "-c", CONTENDER, str(tmp_path)]
    processes = [subprocess.Popen([*command, str(number), way]) for number in range(8)]
    assert [process.wait(100) for process in processes] == [0] * 8
    assert not (tmp_path / "violated").exists()
    assert len((tmp_path / "turns").read_text().splitlines()) == 8 * 12


def test_a_slow_takeover_does_not_touch_the_lock_of_a_faster_one(file: Path, other_process) -> None:
    dead = replace(this_process(), pid=-1, token="dead")
    left_by(file, owner_of(other_process))
    before = file.stat()
    Lock(file, silent)._remove(dead)
    # Were it moved aside and put back, a third process could take the free name in between.
    assert file.stat().st_ctime_ns == before.st_ctime_ns
