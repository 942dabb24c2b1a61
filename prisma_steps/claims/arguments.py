"""What stands between the parentheses of a call: names of dims, values of coordinates, nothing else."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

_DIMS = 'expected a dim, as ("layer"), or several, as (["layer", "head"])'


class Refused(ValueError):
    """A piece of an expression that has no place there."""

    def __init__(self, what: str, hint: str = "") -> None:
        """What is wrong with it and what was expected; and what to do."""
        super().__init__(what)
        self.what, self.hint = what, hint


def dims(given: Sequence[ast.expr], keywords: Sequence[ast.keyword]) -> tuple[str, ...] | None:
    """The dims of a reduction: ``("a")``, ``(["a", "b"])``, the same after ``dim=``, or None for all.

    Raises:
        Refused: when they are anything else.
    """
    values = [*given, *(keyword.value for keyword in keywords if keyword.arg == "dim")]
    count = len(given) + len(keywords)
    if count != len(values) or count > 1:
        raise Refused(f"has {count} arguments, {_DIMS}")
    if not values:
        return None
    value = _plain(values[0])
    names = value if isinstance(value, list) else [value]
    if not names or not all(isinstance(name, str) for name in names):
        raise Refused(_DIMS)
    return tuple(names)


def choices(call: ast.Call, by_position: bool) -> dict[str, Any]:
    """The values of ``sel(a=1, b=[2, 3])``, or the positions of ``isel``, by name.

    Raises:
        Refused: when they are anything else.
    """
    method = "isel" if by_position else "sel"
    named = [(keyword.arg, keyword.value) for keyword in call.keywords if keyword.arg is not None]
    if call.args or not named or len(named) != len(call.keywords):
        raise Refused(f"expected names with values: .{method}(layer=0)")
    found = {}
    for name, node in named:
        found[name] = _plain(node)
        values = found[name] if isinstance(found[name], list) else [found[name]]
        right = (lambda value: type(value) is int) if by_position else (lambda value: value is not None)
        if not values or not all(map(right, values)):
            expected = "a position, counted from 0," if by_position else "a number, a text, True, False"
            raise Refused(f"expected {expected} or a list of them as {name}")
    return found


def _plain(node: ast.expr) -> Any:
    """A text, a number, a truth value or a list of those; None, also in the list, for anything else."""
    match node:
        case ast.Constant(value=bool() | int() | float() | str()):
            return node.value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return None if isinstance(number, bool) else -number
        case ast.List() | ast.Tuple():
            found = [_plain(item) for item in node.elts]
            return [None if isinstance(item, list) else item for item in found]
    return None
