"""The command ``prisma-steps``: running an experiment, and asking what would run and why."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from prisma_steps import claims_command, store_commands
from prisma_steps.command_line import (
    DEFAULT_STORE,
    FAILED,
    INTERRUPTED,
    OK,
    AsJson,
    ExperimentName,
    StoreRoot,
    console,
    errors,
    fail,
    job_json,
    planned,
)
from prisma_steps.problems import nearest
from prisma_steps.store import no_space

if TYPE_CHECKING:
    from prisma_steps.explain import Difference, Explainer
    from prisma_steps.plan import JobPlan, Plan
    from prisma_steps.session import Run
    from prisma_steps.store import Stored

app = typer.Typer(
    name="prisma-steps",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Run experiments on vision transformers; recompute only what changed.

    An experiment is one YAML file: images, model, activations, sparse autoencoders, figures.
    Every intermediate result is kept in a store, for all experiments that need it.

    [bold]prisma-steps run quickstart[/bold]           makes the figures of experiments/quickstart.yaml

    [bold]prisma-steps plan quickstart[/bold]          what would run, and why

    [bold]prisma-steps why quickstart sae[/bold]       which parameter, function or input changed

    [bold]prisma-steps show quickstart/quality[/bold]  what a result holds, and where it comes from

    [bold]prisma-steps claims quickstart[/bold]        which claims of the experiment hold

    Exit codes: 0 done, 1 a job failed, an artifact is damaged or (--strict) a claim does not hold,
    2 a mistake in the experiment or the command, 130 interrupted.
    """,
)


@app.command()
def run(
    experiment: ExperimentName,
    options: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- SNAKEMAKE OPTIONS]", help="Options for Snakemake, after --."),
    ] = None,
    store: StoreRoot = DEFAULT_STORE,
    cores: Annotated[int | None, typer.Option(help="Cores to use (default: all).", min=1)] = None,
    profile: Annotated[str | None, typer.Option(help="A folder of workflow/profiles/, or a path.")] = None,
    repair: Annotated[
        bool, typer.Option(help="First check every artifact, and make damaged ones again.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make everything that the experiment names and the store has not yet, then its figures and page."""
    from prisma_steps import live, session
    from prisma_steps.publish import page_of, publish

    plan = planned(experiment, store, as_json)
    if repair:
        _repair(plan, as_json)
    begun = session.start(plan)
    if begun.jobs:
        shown = live.Silent() if as_json else _observer()
        with shown:
            session.follow(begun, shown, [*_snakemake_options(cores, profile), *(options or [])])
    # A run that failed leaves the figures of the last whole one, if there was one, as they are.
    page = page_of(plan)
    if begun.code == OK or not page.exists():
        publish(plan)
    _report_run(begun, page, as_json)
    raise typer.Exit(begun.code)


def _observer() -> Any:
    from prisma_steps import live

    return live.LiveTable(console) if console.is_terminal else live.PlainLog(console)


def _snakemake_options(cores: int | None, profile: str | None) -> list[str]:
    from prisma_steps.session import workflow_folder

    options = ["--cores", str(cores)] if cores else []
    if profile:
        named = workflow_folder() / "profiles" / profile
        options += ["--workflow-profile", str(named if named.is_dir() else profile)]
    return options


def _repair(plan: Plan, as_json: bool) -> None:
    from prisma_steps.maintenance import repair

    for damage in repair(plan, lambda _: None):
        if not as_json:
            console.print(f"removed {damage.artifact}: {', '.join(damage.files)} damaged")


def _report_run(run: Run, page: Path, as_json: bool) -> None:
    from prisma_steps.live import summary

    if as_json:
        jobs = [job_json(job, run.state(key)) for key, job in run.plan.jobs.items()]
        errors_ = {job.title: status.message for job, status in run.failures()}
        problem = {"error": run.problem} if run.problem else {}
        outcome = {"jobs": jobs, "failures": errors_, "page": str(page), "code": run.code}
        typer.echo(json.dumps(outcome | problem))
        return
    for job, status in run.failures() if run.code == FAILED else []:
        errors.print(f"\n[bold red]failed[/bold red] {escape(job.title)}")
        errors.print(f"  {escape(status.message)}\n  log: {status.log}", soft_wrap=True)
    if run.problem:
        errors.print(f"[bold red]failed[/bold red] {escape(run.problem)}", soft_wrap=True)
    if run.code == INTERRUPTED:
        errors.print("interrupted; what was finished is kept, run again to go on")
    if not (run.jobs and console.is_terminal):
        console.print(summary(run), soft_wrap=True)
    if run.code == OK:
        console.print(str(page), soft_wrap=True)


@app.command()
def plan(experiment: ExperimentName, store: StoreRoot = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """Show what a run would make, and why; run nothing."""
    from prisma_steps.explain import Explainer

    found = planned(experiment, store, as_json)
    explainer = Explainer(found)
    if as_json:
        jobs = [
            job_json(job, "cached" if key in found.present else "missing") for key, job in found.jobs.items()
        ]
        typer.echo(json.dumps({"jobs": jobs}))
        return
    _print_plan(found, explainer)


def _print_plan(found: Plan, explainer: Explainer) -> None:
    table = Table(box=None, padding=(0, 1))
    for name in ("node", "step", "points", "to run", "why"):
        table.add_column(name, justify="right" if name in ("points", "to run") else "left")
    for node, grid in found.grids.items():
        keys = dict.fromkeys(job.key for job in grid.values())
        missing = [found.jobs[key] for key in keys if key not in found.present]
        found_causes = [cause for job in missing[:3] for cause in explainer.why(job)]
        causes = dict.fromkeys(cause.text if cause.node == node else str(cause) for cause in found_causes)
        shown = [*list(causes)[:3], *(["…"] if len(causes) > 3 else [])]
        step = found.experiment.nodes[node].step.name
        table.add_row(node, step, str(len(keys)), str(len(missing) or "–"), escape("\n".join(shown)))
    console.print(table)
    missing, alone = len(found.missing()), len(found.leaders())
    together = "" if missing == alone else f", together in {alone} processes"
    console.print(f"{missing} of {len(found.jobs)} jobs to run{together}")


@app.command()
def why(
    experiment: ExperimentName,
    node: Annotated[str, typer.Argument(help="A node of the experiment.")],
    store: StoreRoot = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Say what differs between a node's jobs and the most similar artifacts in the store.

    Names the parameter, the function of the module, the outside data or the input that changed, down to the
    node where the cause lies.
    """
    from prisma_steps.explain import Explainer

    found = planned(experiment, store, as_json)
    if node not in found.grids:
        fail(f"{experiment} has no node {node!r}; {nearest(node, found.grids)}", as_json)
    explainer = Explainer(found)
    answers = [(job, explainer.nearest(job), explainer.why(job)) for job in found.grids[node].values()]
    if as_json:
        typer.echo(json.dumps([_why_json(found, *answer) for answer in answers]))
        return
    for job, other, causes in answers:
        state = "in the store" if job.key in found.present else "to run"
        console.print(f"[bold]{escape(job.title)}[/bold]  {job.key}  {state}", soft_wrap=True)
        if other is not None:
            compared = f"  compared with {other} ({escape(other.manifest['title'])})"
            console.print(compared, soft_wrap=True)
        for cause in causes:
            console.print(f"  {cause.kind:<12} {escape(str(cause))}", soft_wrap=True)


def _why_json(found: Plan, job: JobPlan, other: Stored | None, causes: list[Difference]) -> dict[str, Any]:
    state = "cached" if job.key in found.present else "missing"
    compared = str(other) if other is not None else None
    return {
        **job_json(job, state),
        "compared_with": compared,
        "differences": [vars(cause) for cause in causes],
    }


@app.command()
def status(experiment: ExperimentName, store: StoreRoot = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """Show which artifacts of an experiment are there, which are being made, and which are missing."""
    from prisma_steps.lock import holder

    found = planned(experiment, store, as_json)
    working = {
        key: holder(found.store.root / ".locks" / key) for key in found.jobs if key not in found.present
    }
    states = {
        key: "present" if key in found.present else "being made" if working[key] else "missing"
        for key in found.jobs
    }
    if as_json:
        typer.echo(json.dumps({"jobs": [job_json(job, states[key]) for key, job in found.jobs.items()]}))
        return
    table = Table(box=None, padding=(0, 1))
    for name in ("node", "present", "being made", "missing"):
        table.add_column(name, justify="left" if name == "node" else "right")
    for node, grid in found.grids.items():
        mine = [states[key] for key in {job.key for job in grid.values()}]
        table.add_row(
            node, *(str(mine.count(state) or "–") for state in ("present", "being made", "missing"))
        )
    console.print(table)
    for key, owner in working.items():
        if owner is not None:
            console.print(f"{escape(found.jobs[key].title)} is being made by {owner}")


app.command()(claims_command.claims)
store_commands.add_to(app)


def main() -> None:
    """Entry point of the command."""
    try:
        app()
    except BrokenPipeError:
        # The reader of a pipe (… | head) has seen enough: no mistake of anybody's.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(OK) from None
    except OSError as error:
        if not no_space(error):
            raise
        where = f"to write {error.filename}" if error.filename else f"on the disk of {Path.cwd()}"
        errors.print(f"[bold red]error[/bold red] no space left {where}; make room and run again")
        raise SystemExit(FAILED) from None
