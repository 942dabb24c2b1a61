"""Reading ``claims:`` of an experiment file: what is said, the expression, and what it is held against."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from prisma_steps.claims.check import Grid, check, is_truth
from prisma_steps.claims.criterion import WORDS, Criterion, Word
from prisma_steps.claims.grammar import NotAnExpression, parse
from prisma_steps.claims.tree import Expression
from prisma_steps.problems import nearest, shown
from prisma_steps.yaml_source import Source

FIELDS = ("says", "value", "published", "source", *WORDS)
_FORM = "{says: in words, value: node.variable.mean('seed'), above: 0.9}"


@dataclass(frozen=True)
class Claim:
    """One thing that an experiment states.

    Attributes:
        says: the statement in words.
        value: what is computed.
        text: the value as it is written.
        published: the published number.
        source: where it was published.
        criterion: what the value is held against; None when it is true or false itself.
    """

    says: str
    value: Expression
    text: str
    published: float | None = None
    source: str = ""
    criterion: Criterion | None = None


def read_claims(source: Source, entries: list[Any], grids: Mapping[str, Grid | None]) -> tuple[Claim, ...]:
    """The claims of an experiment; problems are noted in ``source``, and wrong claims left out.

    Args:
        source: the file, for places.
        entries: what stands at ``claims:``.
        grids: what is known of every node; None where that is nothing.
    """
    read = (_Reader(source, index, grids).claim(entry) for index, entry in enumerate(entries))
    return tuple(claim for claim in read if claim is not None)


class _Reader:
    """Reads the claim at one place of the list."""

    def __init__(self, source: Source, index: int, grids: Mapping[str, Grid | None]) -> None:
        self._source, self._index, self._grids = source, index, grids

    def claim(self, entry: Any) -> Claim | None:
        if not isinstance(entry, dict):
            self._problem("", f"is {shown(entry)}, expected a mapping", f"write it as {_FORM}")
            return None
        before = len(self._source.problems)
        body = self._in_one_piece(entry)
        for key in body:
            if key not in FIELDS:
                self._problem(key, "a claim has no such key", nearest(key, FIELDS))
        says, text = self._text(body, "says"), self._text(body, "value")
        source = self._text(body, "source") if "source" in body else ""
        published = self._number(body, "published") if "published" in body else None
        value = self._expression(text) if text else None
        criterion = self._criterion(body, published)
        if value is not None:
            self._check_fit(value, [word for word in WORDS if word in body])
        if value is None or len(self._source.problems) > before:
            return None
        return Claim(says, value, text, published, source, criterion)

    def _problem(self, key: str, what: str, hint: str = "") -> None:
        place = ("claims", self._index, *([key] if key else []))
        self._source.problem(place, ".".join(map(str, place)), what, hint)

    def _in_one_piece(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        """The claim with all of its value.

        Within {…} YAML ends a text that is not in quotes at its first comma, and takes the rest for keys
        without a value.
        """
        body: dict[str, Any] = {}
        pieces: list[str] = []
        for key, value in entry.items():
            if list(body)[-1:] == ["value"] and key not in FIELDS and value is None:
                pieces.append(key)
            else:
                body[key] = value
        if pieces:
            pieces.insert(0, str(body["value"]))
            body["value"] = ", ".join(pieces)
            if any(piece.count(quote) % 2 for piece in pieces for quote in "'\""):
                self._problem(
                    "value", "has a comma within quotes, where YAML ends it", "quote all of the value"
                )
        return body

    def _text(self, body: Mapping[str, Any], key: str) -> str:
        value = body.get(key)
        if isinstance(value, str) and value.strip():
            return " ".join(value.split())
        what = f"is {shown(value)}, expected text" if key in body else "is missing"
        self._problem(key, what, f"write it as {_FORM}")
        return ""

    def _number(self, body: Mapping[str, Any], key: str) -> float | None:
        if _is_number(body[key]):
            return float(body[key])
        self._problem(key, f"is {shown(body[key])}, expected a finite number")
        return None

    def _expression(self, text: str) -> Expression | None:
        try:
            expression = parse(text)
            mistakes = check(expression, self._grids)
        except NotAnExpression as error:
            expression, mistakes = None, error.mistakes
        for mistake in mistakes:
            self._problem("value", f"{mistake.at}: {mistake.what}", mistake.hint)
        return expression

    def _criterion(self, body: Mapping[str, Any], published: float | None) -> Criterion | None:
        words: list[Word] = [word for word in WORDS if word in body]
        if len(words) > 1:
            what = f"stands beside {words[0]}, expected one of {', '.join(WORDS)}"
            self._problem(words[1], what, "make two claims of it")
        if len(words) != 1:
            return None
        (word,) = words
        if word == "between":
            bounds = self._between(body[word])
        else:
            number = self._number(body, word)
            bounds = () if number is None else (number,)
        if word == "within":
            bounds = self._within(bounds, published, "published" in body)
        return Criterion(word, bounds) if bounds else None

    def _between(self, value: Any) -> tuple[float, ...]:
        pair = value if isinstance(value, list) and all(map(_is_number, value)) else []
        if len(pair) == 2 and pair[0] <= pair[1]:
            return float(pair[0]), float(pair[1])
        what = f"is {shown(value)}, expected two numbers, the lower one first"
        self._problem("between", what, "between: [0.9, 1.1]")
        return ()

    def _within(self, distance: tuple[float, ...], published: float | None, given: bool) -> tuple[float, ...]:
        if not given:
            self._problem("within", "has no published number to be near to", "add published: <number>")
        if distance and distance[0] < 0:
            self._problem("within", f"is {distance[0]:g}, expected 0 or more")
        return () if published is None else (*distance, published)

    def _check_fit(self, value: Expression, words: Sequence[str]) -> None:
        truth = is_truth(value)
        if truth and words:
            self._problem(words[0], "is of a number; the value is true or false", f"remove {words[0]}")
        if truth is False and not words:
            hint = f"add one of {', '.join(WORDS)}, or make the value a comparison"
            self._problem("value", "is a number that is held against nothing", hint)


def _is_number(value: Any) -> TypeGuard[int | float]:
    """Whether a value is a finite number: neither a truth value nor an integer that no float can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False
