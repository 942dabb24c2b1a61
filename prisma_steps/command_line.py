"""What all commands of ``prisma-steps`` share: options, consoles, exit codes, and how errors are shown."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from prisma_steps.problems import ExperimentError
from prisma_steps.store import Store

if TYPE_CHECKING:
    from prisma_steps.plan import JobPlan, Plan

OK, FAILED, WRONG, INTERRUPTED = 0, 1, 2, 130

ExperimentName = Annotated[str, typer.Argument(help="A YAML file, or its name within experiments/.")]
StoreRoot = Annotated[
    Path, typer.Option("--store", envvar="PRISMA_STEPS_STORE", help="Where artifacts lie; can be shared.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
DEFAULT_STORE = Path("artifacts")

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)


def fail(message: str, as_json: bool, code: int = WRONG, **details: Any) -> NoReturn:
    """Print an error and leave."""
    if as_json:
        typer.echo(json.dumps({"error": message, **details}, ensure_ascii=False))
    else:
        errors.print(f"[bold red]error[/bold red] {escape(message)}", soft_wrap=True, highlight=False)
    raise typer.Exit(code)


@contextmanager
def mistakes(as_json: bool) -> Iterator[None]:
    """Show a user's mistake as a message, with exit code 2."""
    try:
        yield
    except ExperimentError as error:
        problems = [vars(problem) for problem in error.problems]
        fail(str(error), as_json, file=error.file, problems=problems)


def planned(experiment: str, store: Path, as_json: bool) -> Plan:
    """Plan an experiment, or leave with everything that is wrong with it."""
    from prisma_steps.plan import plan_experiment

    with mistakes(as_json):
        return plan_experiment(experiment, Store(store))


def job_json(job: JobPlan, state: str) -> dict[str, Any]:
    """A job as scripts get it."""
    return {"node": job.node, "point": dict(job.point), "step": job.step, "key": job.key, "state": state}


def human(size: float) -> str:
    """Bytes as people read them."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
