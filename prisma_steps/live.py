"""What a user sees of a run: a live table on a terminal, a line an event elsewhere."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from prisma_steps.plan import JobPlan
from prisma_steps.progress import ENDED
from prisma_steps.session import Run

_STYLES = {
    "computed": "green",
    "linked": "cyan",
    "cached": "dim",
    "running": "bold yellow",
    "waiting": "magenta",
    "failed": "bold red",
    "pending": "dim",
}


class Row(NamedTuple):
    """One line of the table: a job, or all jobs of a node that do not fit singly."""

    node: str
    values: str
    done: float
    total: float
    note: str
    seconds: float | None
    state: str


def rows(run: Run, height: int) -> list[Row]:
    """The table in at most about ``height`` lines: the largest nodes are drawn together until it fits."""
    nodes: dict[str, list[JobPlan]] = defaultdict(list)
    for job in run.plan.jobs.values():
        nodes[job.node].append(job)
    together: set[str] = set()
    while _lines(run, nodes, together) > height and len(together) < len(nodes):
        together.add(max((name for name in nodes if name not in together), key=lambda name: len(nodes[name])))
    found = []
    for name, jobs in nodes.items():
        found.extend(_together(run, name, jobs) if name in together else (_row(run, job) for job in jobs))
    return found


def _lines(run: Run, nodes: dict[str, list[JobPlan]], together: set[str]) -> int:
    return sum(
        1 + sum(run.state(job.key) == "running" for job in jobs) if name in together else len(jobs)
        for name, jobs in nodes.items()
    )


def _row(run: Run, job: JobPlan) -> Row:
    values = ", ".join(f"{name}={value}" for name, value in job.point.items())
    state, status = run.state(job.key), run.statuses.get(job.key)
    if status is None:
        return Row(job.node, values, float(state == "cached"), 1.0, "", None, state)
    running = state == "running"
    seconds = time.time() - status.started if running else status.seconds
    done, total = (status.done, status.total) if running and status.total else (float(not running), 1.0)
    note = (
        status.message if state == "waiting" else _eta(done, total, seconds, status.note) if running else ""
    )
    return Row(job.node, values, done, total, note, seconds, state)


def _eta(done: float, total: float, seconds: float, note: str) -> str:
    if not 0 < done < total:
        return note
    left = seconds * (total - done) / done
    return f"{clock(left)} left" + (f" · {note}" if note else "")


def _together(run: Run, name: str, jobs: Sequence[JobPlan]) -> Iterator[Row]:
    states = [run.state(job.key) for job in jobs]
    counts = {state: states.count(state) for state in _STYLES if state in states}
    ended = sum(state in ENDED for state in states)
    told = [status for job in jobs if (status := run.statuses.get(job.key)) is not None]
    # Jobs that are computed together have one log, and each says the time of all of them.
    seconds = sum({status.log: status.seconds for status in told}.values())
    text = ", ".join(f"{count} {state}" for state, count in counts.items())
    overall = "failed" if "failed" in counts else "computed" if ended == len(jobs) else "running"
    yield Row(name, f"{len(jobs)} points", ended, len(jobs), text, seconds or None, overall)
    yield from (_row(run, job) for job in jobs if run.state(job.key) == "running")


def clock(seconds: float) -> str:
    """Seconds as people read them."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02} min"


def table(run: Run, height: int) -> RenderableType:
    """The run as a rich table."""
    drawn = Table(box=None, padding=(0, 1), title=run.plan.experiment.title, title_justify="left")
    for name in ("node", "axis values", "progress", "", "time", "state"):
        drawn.add_column(name, justify="right" if name == "time" else "left", no_wrap=name != "axis values")
    shown = None
    for row in rows(run, height):
        bar = ProgressBar(total=row.total, completed=row.done, width=18)
        seconds = "" if row.seconds is None else clock(row.seconds)
        name = "" if row.node == shown else row.node
        drawn.add_row(
            Text(name), Text(row.values), bar, Text(row.note), seconds, Text(row.state, _STYLES[row.state])
        )
        shown = row.node
    drawn.caption = summary(run)
    drawn.caption_justify = "left"
    return drawn


def summary(run: Run) -> str:
    """How many jobs are in which state, and the time taken."""
    counts = [(state, run.count(state)) for state in _STYLES]
    text = ", ".join(f"{count} {state}" for state, count in counts if count)
    return f"{text or 'nothing to do'} · {clock(time.time() - run.began)}"


class LiveTable:
    """Redraws the table in place."""

    def __init__(self, console: Console) -> None:
        """Draw on ``console``."""
        self._console = console
        self._live = Live(console=console, auto_refresh=False)

    def __enter__(self) -> LiveTable:
        """Begin to draw."""
        self._live.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        """Leave the last table on the screen."""
        self._live.__exit__(None, None, None)

    def update(self, run: Run) -> None:
        """Draw the run as it is."""
        self._live.update(table(run, max(8, self._console.size.height - 5)), refresh=True)


class PlainLog:
    """Writes one line for each job that starts or ends."""

    def __init__(self, console: Console) -> None:
        """Write to ``console``."""
        self._console = console
        self._seen: dict[str, str] = {}

    def __enter__(self) -> PlainLog:
        """Begin."""
        return self

    def __exit__(self, *error: object) -> None:
        """End."""

    def update(self, run: Run) -> None:
        """Write what changed since the last call."""
        for key, status in run.statuses.items():
            if status.state == self._seen.get(key):
                continue
            self._seen[key] = status.state
            ended = sum(status.state in ENDED for status in run.statuses.values())
            took = f" in {clock(status.seconds)} ({ended}/{len(run.jobs)})" if status.state in ENDED else ""
            text = f": {status.message}" if status.message else ""
            line = f"{time.strftime('%H:%M:%S')} {run.jobs[key].title} {status.state}{took}{text}"
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class Silent:
    """Shows nothing: the outcome is printed as JSON."""

    def __enter__(self) -> Silent:
        """Begin."""
        return self

    def __exit__(self, *error: object) -> None:
        """End."""

    def update(self, run: Run) -> None:
        """Show nothing."""
