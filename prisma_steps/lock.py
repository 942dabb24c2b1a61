"""One owner for each artifact: a lock file whose owner is checked to be alive, on shared filesystems too."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

#: Seconds between two signs of life, and after how many without one an owner on another host is dead.
HEARTBEAT = 10.0
DEAD_AFTER = 90.0


@dataclass(frozen=True)
class Owner:
    """Who holds a lock.

    Attributes:
        namespace: the PID namespace: containers of one host share its name but not its process ids.
        started: when the process started, since process ids are used again.
    """

    host: str
    namespace: str
    pid: int
    started: float
    token: str

    def __str__(self) -> str:
        """Host and process, for messages."""
        return f"{self.host}:{self.pid}"


def this_process() -> Owner:
    """The calling process as an owner, with a token of its own."""
    return Owner(
        socket.gethostname(), _namespace(), os.getpid(), _started(os.getpid()) or 0.0, uuid.uuid4().hex
    )


def _namespace() -> str:
    link = Path("/proc/self/ns/pid")
    return os.readlink(link) if link.exists() else ""


def _started(pid: int) -> float | None:
    """When a process of this host started, or None when there is none (a zombie is none)."""
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.NoSuchProcess:
        return None


class Lock:
    """A lock file, held within a ``with`` block.

    The file is made by a hard link, which is atomic on NFS as well. A lock whose owner is dead is taken over:
    on the owner's host dead means that the process is gone, elsewhere that it has given no sign of life for
    ``DEAD_AFTER`` seconds of the filesystem's clock.
    """

    def __init__(self, file: Path, on_wait: Callable[[Owner], None], poll: float = 0.3) -> None:
        """Lock ``file``; ``on_wait`` is told whom we wait for."""
        self._file = file
        self._on_wait = on_wait
        self._poll = poll
        self._me = this_process()
        self._stop = threading.Event()

    def __enter__(self) -> Lock:
        """Wait for the lock, take it, and start giving signs of life."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        told = None
        while not self._take():
            owner = read_owner(self._file)
            if owner is None:
                continue
            if not is_alive(owner, self._file):
                self._remove(owner)
                continue
            if owner != told:
                self._on_wait(owner)
                told = owner
            time.sleep(self._poll)
        threading.Thread(target=self._beat, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Let go."""
        self._stop.set()
        if read_owner(self._file) == self._me:
            self._file.unlink(missing_ok=True)

    def _take(self) -> bool:
        mine = self._file.with_name(f"{self._file.name}.{self._me.token}")
        mine.write_text(json.dumps(asdict(self._me)))
        try:
            os.link(mine, self._file)
        except FileExistsError:
            return False
        finally:
            mine.unlink()
        return True

    def _remove(self, dead: Owner) -> None:
        """Take a dead owner's lock away.

        One process at a time: otherwise a slower one would take away the lock of a faster one that took it
        over in between, and for a moment there would be two holders.
        """
        with Lock(self._file.with_name(f"{self._file.name}.takeover"), self._on_wait, self._poll):
            if read_owner(self._file) == dead:
                self._file.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT):
            if read_owner(self._file) != self._me:
                return
            with suppress(FileNotFoundError):  # let go just now
                os.utime(self._file)


def holder(file: Path) -> Owner | None:
    """The living owner of a lock file, or None."""
    owner = read_owner(file)
    return owner if owner is not None and is_alive(owner, file) else None


def is_alive(owner: Owner, file: Path) -> bool:
    """Whether the owner of the lock ``file`` still works."""
    if (owner.host, owner.namespace) == (socket.gethostname(), _namespace()):
        started = _started(owner.pid)
        return started is not None and abs(started - owner.started) < 1.0
    return _silence(file) < DEAD_AFTER


def _silence(file: Path) -> float:
    """Seconds since the last sign of life in a lock file, by the filesystem's clock."""
    probe = file.with_name(f"{file.name}.{uuid.uuid4().hex}")
    probe.touch()
    try:
        return probe.stat().st_mtime - file.stat().st_mtime
    except FileNotFoundError:
        return 0.0
    finally:
        probe.unlink()


def read_owner(file: Path) -> Owner | None:
    """The owner written in a lock file, or None when there is no lock."""
    try:
        return Owner(**json.loads(file.read_text()))
    except FileNotFoundError:
        return None
