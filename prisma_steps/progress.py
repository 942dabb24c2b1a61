"""Where a job of a run is: one small file a job, written by the job and read by the command."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

#: The states in which a job has ended; before, it is ``running`` or ``waiting``.
ENDED = ("cached", "linked", "computed", "failed")


@dataclass
class Status:
    """The latest word of a job.

    Attributes:
        done, total: how far it is, in the step's own units (images, optimiser steps).
        note: what the step wants shown beside the bar.
        message: why it failed, or whom it waits for.
        log: where the job's output is.
    """

    state: str
    started: float
    seconds: float = 0.0
    done: int = 0
    total: int = 0
    note: str = ""
    message: str = ""
    log: str = ""


class StatusFile:
    """A job's end of the file."""

    def __init__(self, file: Path, log: str) -> None:
        """Start to report into ``file``."""
        self._file = file
        self._status = Status("running", time.time(), log=log)
        self._written = 0.0

    @property
    def folder(self) -> Path:
        """Where the statuses of the step's jobs are."""
        return self._file.parent

    def update(self, state: str, message: str = "") -> None:
        """Tell a new state, at once."""
        self._status.state, self._status.message = state, message
        self._write()

    def progress(self, done: int, total: int, note: str) -> None:
        """Tell how far the job is, at most three times a second."""
        self._status.done, self._status.total, self._status.note = done, total, note
        if time.monotonic() - self._written > 0.3:
            self._write()

    def _write(self) -> None:
        self._status.seconds = time.time() - self._status.started
        self._file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self._file.with_name(f".{self._file.name}.{os.getpid()}")
        unfinished.write_text(json.dumps(asdict(self._status)), encoding="utf-8")
        unfinished.replace(self._file)
        self._written = time.monotonic()


def read_status(file: Path) -> Status | None:
    """The command's end: the latest word of a job, or None when it has not begun."""
    try:
        return Status(**json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
