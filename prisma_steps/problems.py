"""What is wrong with a user's file, where, and what was expected: all of it at once."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, order=True)
class Problem:
    """One mistake in a file.

    Attributes:
        line: 1-based line, 0 when the mistake has no place in the file.
        column: 1-based column.
        where: the node and the key, as ``sae.k``.
        what: what is wrong and what was expected.
        hint: what to do, or the nearest valid name.
    """

    line: int
    column: int
    where: str
    what: str
    hint: str = ""

    def text(self, file: str) -> str:
        """The problem as one paragraph that starts with a place an editor can jump to."""
        place = f"{file}:{self.line}:{self.column}" if self.line else file
        subject = f"{self.where}: " if self.where else ""
        return f"{place}: {subject}{self.what}" + (f"\n    {self.hint}" if self.hint else "")


class ExperimentError(Exception):
    """An experiment that cannot be planned, with every problem found in it."""

    def __init__(self, file: str, problems: Iterable[Problem]) -> None:
        """Keep the problems in the order of the file."""
        self.file = file
        self.problems = sorted(set(problems))
        super().__init__(self.text())

    def text(self) -> str:
        """All problems, one a paragraph."""
        count = len(self.problems)
        head = f"{self.file}: {count} problem{'s' if count > 1 else ''}, nothing was run"
        return "\n".join([head, *(problem.text(self.file) for problem in self.problems)])


def shown(value: Any) -> str:
    """A value as one writes it in YAML, in short."""
    text = _flow(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


def _flow(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_flow(inner)}' for key, inner in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_flow, value))}]"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else repr(value)


def nearest(name: str, valid: Iterable[str]) -> str:
    """A hint with the nearest valid name, or with all of them."""
    names = sorted(map(str, valid))
    all_of_them = f"expected one of: {', '.join(names)}" if names else ""
    return close(name, names) or all_of_them


def close(name: str, valid: Iterable[str]) -> str:
    """A hint with the nearest valid name, or none when all are far."""
    found = difflib.get_close_matches(str(name), list(valid), n=1, cutoff=0.6)
    return f"did you mean {found[0]!r}?" if found else ""
