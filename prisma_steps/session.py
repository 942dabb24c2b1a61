"""One run of an experiment: Snakemake in a process group of its own, followed by the jobs' status files."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from prisma_steps.lock import Lock, holder
from prisma_steps.plan import JobPlan, Plan
from prisma_steps.progress import ENDED, Status, read_status

#: Seconds that a stopped run is given to end by itself before it is killed.
GRACE = 10.0

#: Folders of earlier runs (logs) that are kept.
RUNS_KEPT = 5

#: The file in a run's folder that says whose run it is; it lasts as long as the run.
OWNER = "owner"


def workflow_folder() -> Path:
    """Where the Snakefile is: in the repository, or inside the installed package."""
    package = Path(__file__).parent
    beside = package.parent / "workflow"
    return beside if (beside / "Snakefile").exists() else package / "workflow"


class Observer(Protocol):
    """Who is shown a run: a live table, or a plain log."""

    def update(self, run: Run) -> None:
        """The statuses of ``run`` may have changed."""


@dataclass
class Run:
    """A run under way, or done.

    Attributes:
        statuses: the latest word of every job of the plan, by key.
        problem: why the run failed although no job says so.
    """

    plan: Plan
    jobs: dict[str, JobPlan]
    folder: Path
    statuses: dict[str, Status] = field(default_factory=dict)
    began: float = field(default_factory=time.time)
    code: int = 0
    problem: str = ""

    def state(self, key: str) -> str:
        """``cached``, ``linked``, ``computed``, ``failed``, ``running``, ``waiting``, or ``pending``."""
        if key not in self.jobs:
            return "cached"
        status = self.statuses.get(key)
        return status.state if status is not None else "pending"

    def read(self) -> None:
        """Read the status files of the jobs that have not ended."""
        for key, job in self.jobs.items():
            if self.state(key) not in ENDED:
                status = read_status(self.folder / job.step / f"{key}.json")
                if status is not None:
                    self.statuses[key] = status

    def count(self, state: str) -> int:
        """How many of the plan's jobs are in a state."""
        return sum(self.state(key) == state for key in self.plan.jobs)

    def failures(self) -> list[tuple[JobPlan, Status]]:
        """Failed jobs with what they said."""
        return [(self.jobs[key], status) for key, status in self.statuses.items() if status.state == "failed"]


def start(plan: Plan) -> Run:
    """A run of what is missing of ``plan``, not begun yet; logs of old runs are cleared away."""
    runs = Path("results") / plan.experiment.name / ".runs"
    over = [folder for folder in sorted(runs.glob("*")) if holder(folder / OWNER) is None]
    for folder in over[: -RUNS_KEPT + 1]:
        shutil.rmtree(folder, ignore_errors=True)  # another run may be clearing it away just now
    name = f"{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}"
    return Run(plan, {job.key: job for job in plan.missing()}, runs / name)


def follow(run: Run, observer: Observer, options: Sequence[str]) -> int:
    """Run Snakemake to its end and keep ``observer`` informed.

    Args:
        run: what to run.
        observer: whom to show it.
        options: further options for Snakemake (``--cores 4``, ``--workflow-profile …``).

    Returns:
        0 when every artifact was made, 1 when a job failed, 130 when the user stopped it.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    with (
        _stop_requests() as asked,
        Lock(run.folder / OWNER, lambda _: None),
        (run.folder / "snakemake.log").open("w") as log,
    ):
        process = subprocess.Popen(
            _command(run.plan, options),
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=os.environ
            | {"PRISMA_STEPS_RUN": run.folder.name, "PRISMA_STEPS_STORE": str(run.plan.store.root)},
            start_new_session=True,
        )
        while process.poll() is None and not asked:
            run.read()
            observer.update(run)
            time.sleep(0.2)
        if asked:
            _stop(process, asked)
    run.read()
    run.code = 130 if asked else 1 if process.returncode else 0
    if run.code == 1:
        _blame(run, process.returncode)
    observer.update(run)
    return run.code


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """Collect Ctrl-C and its like, to be looked at when it suits; what was ignored stays ignored.

    An ignored signal gets a handler too: a process started meanwhile would otherwise ignore it for ever, and
    could not be stopped by it.
    """
    asked: list[int] = []
    before = {sign: signal.getsignal(sign) for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}

    def ask(sign: int, _frame: object) -> None:
        if before[signal.Signals(sign)] is not signal.SIG_IGN:
            asked.append(sign)

    for sign in before:
        signal.signal(sign, ask)
    try:
        yield asked
    finally:
        for sign, handler in before.items():
            signal.signal(sign, handler)


def _blame(run: Run, returncode: int) -> None:
    """Say of a failed run what no job could say for itself."""
    if shutil.disk_usage(run.folder).free < 2**20:
        run.problem = f"no space left on the disk of {run.folder.resolve()}; make room and run again"
    elif returncode < 0:
        run.problem = (
            f"Snakemake was killed ({signal.Signals(-returncode).name}). Jobs that it had started go on by "
            "themselves; run again to wait for them and to make the rest"
        )
    else:
        silent = [status for status in run.statuses.values() if status.state not in ENDED]
        for status in silent:
            status.state = "failed"
            status.message = (
                "killed before it could say why, perhaps for lack of memory; run again to go on from its "
                "last checkpoint"
            )
        if not run.failures():
            log = run.folder / "snakemake.log"
            run.problem = f"Snakemake failed before any job did: {log}\n{last_lines(log)}"


def _command(plan: Plan, options: Sequence[str]) -> list[str]:
    workflow = workflow_folder()
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(workflow / "Snakefile")]
    if "--workflow-profile" not in options:
        command += ["--workflow-profile", str(workflow / "profiles" / "default")]
        command += ["--resources", f"gpu={1 if _has_gpu() else os.cpu_count()}"]
    return [*command, *options, "--config", f"experiment={plan.experiment.file}"]


def _has_gpu() -> bool:
    """Whether this machine has a GPU. Without one, jobs that could use it need not wait for each other."""
    if shutil.which("nvidia-smi") is None:
        return False
    return subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, check=False).returncode == 0


def _stop(process: subprocess.Popen[bytes], asked: Sequence[int]) -> None:
    """Stop Snakemake and its jobs as Ctrl-C in a terminal does, and wait until all of them are gone.

    What does not stop within ``GRACE`` seconds, or until the user asks again, is stopped less gently.
    """
    for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        before, deadline = len(asked), time.monotonic() + GRACE
        while process.poll() is None or _lives(process.pid):
            if time.monotonic() > deadline or len(asked) > before:
                break
            time.sleep(0.1)
        else:
            return


def _lives(group: int) -> bool:
    """Whether a process of a group still runs."""
    import psutil

    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                return True
    return False


def last_lines(file: Path, count: int = 20) -> str:
    """The end of a log."""
    return "\n".join(file.read_text(encoding="utf-8", errors="replace").splitlines()[-count:])
