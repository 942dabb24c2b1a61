"""What an expression is made of. The grammar makes these; checks and evaluation take them apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias


@dataclass(frozen=True)
class Number:
    """A number as written."""

    value: float
    text: str


@dataclass(frozen=True)
class Text:
    """A word in quotes, to be compared with."""

    value: str
    text: str


@dataclass(frozen=True)
class Variable:
    """A variable or coordinate of a node: ``quality.fvu``."""

    node: str
    name: str
    text: str


@dataclass(frozen=True)
class Select:
    """What is left at some values of coordinates (``sel``), or at some positions along dims (``isel``).

    Attributes:
        choices: a value drops the dim, a list of values keeps those.
    """

    of: Expression
    choices: Mapping[str, Any]
    by_position: bool
    text: str


@dataclass(frozen=True)
class Reduce:
    """A reduction over ``dims``, or over every dim that there is if None."""

    of: Expression
    how: str
    dims: tuple[str, ...] | None
    text: str


@dataclass(frozen=True)
class Unary:
    """``-``, ``~`` (also written ``not``) or ``abs`` of a value."""

    operator: str
    of: Expression
    text: str


@dataclass(frozen=True)
class Binary:
    """Two values with an operator of Python's between them."""

    operator: str
    left: Expression
    right: Expression
    text: str


@dataclass(frozen=True)
class Correlation:
    """Pearson's correlation of two values along ``dims``, or along every dim that either has if None."""

    left: Expression
    right: Expression
    dims: tuple[str, ...] | None
    text: str


Expression: TypeAlias = Number | Text | Variable | Select | Reduce | Unary | Binary | Correlation

COMPARISONS = ("<", "<=", ">", ">=", "==", "!=")


def parts(expression: Expression) -> Iterator[Expression]:
    """The expression and everything in it."""
    yield expression
    match expression:
        case Select() | Reduce() | Unary():
            yield from parts(expression.of)
        case Binary() | Correlation():
            yield from parts(expression.left)
            yield from parts(expression.right)


def nodes_of(expression: Expression) -> tuple[str, ...]:
    """The nodes that an expression names, each once, in its order."""
    names = (part.node for part in parts(expression) if isinstance(part, Variable))
    return tuple(dict.fromkeys(names))
