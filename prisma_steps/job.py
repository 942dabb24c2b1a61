"""What a step may ask of the job that runs it: where to compute, where to keep what is done, whom to tell.

Importing this module imports neither torch nor xarray: planning stays fast.
"""

from __future__ import annotations

import atexit
import os
import pickle
import platform
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

from prisma_steps.step import StepParams


class Checkpoint:
    """The state of a long job, kept beside its unfinished artifact.

    A state is a nest of dicts and lists of tensors, numbers and strings. A job that goes on from it must
    leave what an undisturbed job leaves, bit for bit, whenever it was saved.

    The state is saved every second, or as seldom as it takes to spend no more than a fiftieth of the time on
    saving; but never more seldom than every ``every`` seconds (times the members of a company).
    """

    def __init__(self, file: Path, every: float = 15.0, since: float | None = None) -> None:
        """Keep the state in ``file``; at most about ``every`` seconds of work are lost by a kill.

        Args:
            file: where; its folder is made when it is needed.
            every: seconds.
            since: when the work began, by the monotonic clock; now if None.
        """
        self._file = file
        self._every = every
        self._cost = 0.0
        self._saved = time.monotonic() if since is None else since

    def load(self) -> dict[str, Any] | None:
        """The last state saved, or None when the job starts afresh."""
        if not self._file.exists():
            return None
        import torch

        try:
            return torch.load(self._file, weights_only=True, map_location="cpu")
        except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
            warnings.warn(f"{self._file} is damaged ({error}); starting afresh", stacklevel=2)
            return None

    def due(self, members: int = 1) -> bool:
        """Whether enough time has passed since the last save to make another worth it.

        Args:
            members: how many take turns in one process and save as seldom for each other's sake.
        """
        return time.monotonic() - self._saved >= members * min(self._every, max(1.0, 50 * self._cost))

    def save(self, state: Mapping[str, Any]) -> None:
        """Replace the state on disk in one move, so that a kill leaves the old one or the new one."""
        import torch

        self._file.parent.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        unfinished = self._file.with_suffix(".unfinished")
        with unfinished.open("wb") as file:  # of a path that it cannot write to, torch does not say why
            torch.save(dict(state), file)
        unfinished.replace(self._file)
        self._saved = time.monotonic()
        self._cost = self._saved - began


def _no_report(_done: int, _total: int, _note: str) -> None:
    """Report progress to nobody."""


class Job:
    """What a pure step may ask of the world: where to compute, and where to tell how far it is.

    ``Job()`` serves a call from Python; the runner makes one for each job of a run.
    """

    def __init__(
        self,
        scratch: Path | None = None,
        threads: int = 1,
        report: Callable[[int, int, str], None] = _no_report,
        checkpoint_every: float = 15.0,
    ) -> None:
        """Work in ``scratch`` (if None in a temporary folder) with ``threads`` threads."""
        self._scratch = scratch
        self._checkpoint_every = checkpoint_every
        self._began = time.monotonic()
        self.threads = threads
        self.report = report

    @cached_property
    def scratch(self) -> Path:
        """A folder for unfinished work; a temporary one lasts as long as the process: results may read it."""
        if self._scratch is None:
            temporary = Path(tempfile.mkdtemp(prefix="prisma-steps-"))
            atexit.register(shutil.rmtree, temporary, ignore_errors=True)
            return temporary
        self._scratch.mkdir(parents=True, exist_ok=True)
        return self._scratch

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """What the job has done so far, for the next attempt at it."""
        return Checkpoint(self.scratch / "checkpoint.pt", self._checkpoint_every, self._began)

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Tell how far the job is; ``note`` is shown beside the bar (a loss, say)."""
        self.report(done, total, note)

    @cached_property
    def device(self) -> str:
        """The device to compute on: ``PRISMA_STEPS_DEVICE``, else a GPU where there is one, else the CPU.

        Asking for it makes torch deterministic, so that the same job leaves the same bytes.
        """
        import torch

        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # As torch.use_deterministic_algorithms(True), which imports the compiler: more than a second.
        torch.set_deterministic_debug_mode("error")
        # Deterministic mode would write NaN into all memory first: a third of the time of a forward pass.
        torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
        torch.set_num_threads(self.threads)
        return os.environ.get("PRISMA_STEPS_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def device_name(self) -> str:
        """The device that was used, as people call it."""
        if not self.__dict__.get("device", "cpu").startswith("cuda"):
            return platform.machine()
        import torch

        return torch.cuda.get_device_name(self.device)


P = TypeVar("P", bound=StepParams)


@dataclass(frozen=True)
class Member(Generic[P]):
    """One of the points of a grid that are computed together.

    Attributes:
        params: its parameters.
        job: its own, with a checkpoint and progress of its own. Members need not be equally far: after an
            interruption another company may go on with them.
    """

    params: P
    job: Job
