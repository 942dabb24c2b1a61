"""The command that says which claims of an experiment hold."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from prisma_steps.command_line import (
    DEFAULT_STORE,
    FAILED,
    OK,
    AsJson,
    ExperimentName,
    StoreRoot,
    console,
    planned,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prisma_steps.claims.table import Row

_STYLES = {"holds": "green", "fails": "bold red", "error": "red", "not yet run": "yellow"}


def claims(
    experiment: ExperimentName,
    strict: Annotated[
        bool, typer.Option("--strict", help="Leave with 1 unless every claim holds, for scripts.")
    ] = False,
    store: StoreRoot = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Say which claims of an experiment hold: published, reproduced, spread over seeds, verdict."""
    from prisma_steps.claims import table
    from prisma_steps.judging import verdicts

    found = verdicts(planned(experiment, store, as_json))
    if as_json:
        typer.echo(json.dumps({"claims": [table.as_json(verdict) for verdict in found]}, ensure_ascii=False))
    else:
        _show([table.row(verdict) for verdict in found], experiment)
    whole = all(verdict.state == "holds" for verdict in found)
    raise typer.Exit(FAILED if strict and not whole else OK)


def _show(rows: Sequence[Row], experiment: str) -> None:
    if not rows:
        console.print(f"{escape(experiment)} claims nothing: add claims: to it")
        return
    shown = Table(box=None, padding=(0, 1))
    for name in ("claim", "published", "expected", "reproduced", "over seeds", "verdict"):
        shown.add_column(name, overflow="fold")
    for row in rows:
        cells = (row.says, row.cited, row.expected, row.reproduced, row.spread)
        verdict = f"[{_STYLES[row.state]}]{row.state}[/]"
        shown.add_row(*(escape(cell or "–") for cell in cells), verdict)
    console.print(shown)
    # What is missing is missing for many claims.
    whose = (
        (row.state if row.state == "not yet run" else row.says, row.reason) for row in rows if row.reason
    )
    for subject, reason in dict.fromkeys(whose):
        console.print(f"{escape(subject)}: {escape(reason)}", soft_wrap=True)
    counts = {state: sum(row.state == state for row in rows) for state in _STYLES}
    console.print(", ".join(f"{state}: {count}" for state, count in counts.items() if count))
