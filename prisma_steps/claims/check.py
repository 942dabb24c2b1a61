"""What is wrong with an expression, as far as can be told before anything has run.

Of a node its grid and the kind that it leaves are known: every grid axis is a dim of every variable, a kind's
dims bound those of its variables, and the variables that a kind requires have the dims that it says.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from prisma_steps.axes import Axis, view
from prisma_steps.claims.grammar import Mistake
from prisma_steps.claims.tree import (
    COMPARISONS,
    Binary,
    Correlation,
    Expression,
    Reduce,
    Select,
    Unary,
    Variable,
    nodes_of,
)
from prisma_steps.problems import close, nearest
from prisma_steps.schema import MEANINGS, Figure, Kind

#: The dim over which a value is averaged that is left with it alone.
SEED = "seed"


@dataclass(frozen=True)
class Grid:
    """What is known of a node before it has run: its axes, without that of parts, and what it leaves."""

    axes: tuple[Axis, ...]
    kind: Kind

    def full_axes(self) -> dict[str, Axis]:
        """The axes with every coordinate that they have in the data (``hypercube.combine``), by name."""
        return {axis.name: self._full(axis) for axis in self.axes}

    def _full(self, axis: Axis) -> Axis:
        dims = self.kind.dims - {axis.name}
        told_apart = {f"{axis.name}_{name}": axis.coords[name] for name in axis.coords if name in dims}
        # One that is named as a dim of the data is that dim, unless such data seldom have it.
        own = {name: axis.coords[name] for name in axis.coords if name not in dims - self.kind.seldom}
        return replace(axis, coords={axis.name: tuple(range(len(axis))), **own, **told_apart})


@dataclass(frozen=True)
class _Shape:
    """What is known of a value.

    Attributes:
        certain: dims that it has.
        possible: all dims that it may have; None when nothing is known.
        axes: the grid axes among them.
        source: what it is of, to be named.
    """

    certain: frozenset[str] = frozenset()
    possible: frozenset[str] | None = frozenset()
    axes: Mapping[str, Axis] = field(default_factory=dict)
    source: str = "the value"

    def without(self, dims: Collection[str]) -> _Shape:
        """The shape with some dims gone."""
        axes = {name: axis for name, axis in self.axes.items() if name not in dims}
        possible = None if self.possible is None else self.possible.difference(dims)
        return replace(self, certain=self.certain.difference(dims), possible=possible, axes=axes)


_UNKNOWN = _Shape(possible=None)


def check(expression: Expression, grids: Mapping[str, Grid | None]) -> list[Mistake]:
    """Every mistake in an expression that can be told beforehand.

    Args:
        expression: what to check.
        grids: what is known of the nodes that there are; None where that is nothing.
    """
    if not nodes_of(expression):
        return [Mistake(expression.text, "names no node, expected a variable of one", nearest("", grids))]
    checker = _Checker(grids)
    left = checker.shape(expression).certain - {SEED}
    if left and not checker.mistakes:
        names = ", ".join(sorted(left))
        hint = f'reduce it, as .mean("{min(left)}"), or select one value, as .sel({min(left)}=…)'
        checker.mistakes.append(
            Mistake(expression.text, f"is left with the dim {names}, expected one number", hint)
        )
    return checker.mistakes


def is_truth(expression: Expression) -> bool | None:
    """Whether an expression is true or false rather than a number; None when that is not known yet."""
    match expression:
        case Variable():
            return None
        case Select() | Reduce(how="max" | "min"):
            return is_truth(expression.of)
        case Reduce():
            return expression.how in ("any", "all")
        case Unary():
            return expression.operator == "~"
        case Binary():
            return expression.operator in (*COMPARISONS, "&", "|")
    return False


class _Checker:
    """Follows the dims of a value through an expression, noting mistakes."""

    def __init__(self, grids: Mapping[str, Grid | None]) -> None:
        self.mistakes: list[Mistake] = []
        self._grids = grids

    def shape(self, expression: Expression) -> _Shape:
        match expression:
            case Variable():
                return self._variable(expression)
            case Select():
                return self._select(expression)
            case Reduce():
                return self._without(expression, self.shape(expression.of), expression.dims)
            case Unary():
                if expression.operator == "~":
                    self._need_truth(expression.of, expression.text)
                return self.shape(expression.of)
            case Binary():
                if expression.operator in "&|":
                    self._need_truth(expression.left, expression.text)
                    self._need_truth(expression.right, expression.text)
                return _both(self.shape(expression.left), self.shape(expression.right))
            case Correlation():
                sides = _both(self.shape(expression.left), self.shape(expression.right))
                return self._without(expression, sides, expression.dims)
        return _Shape()

    def _note(self, at: Expression, what: str, hint: str = "") -> None:
        self.mistakes.append(Mistake(at.text, what, hint))

    def _need_truth(self, side: Expression, text: str) -> None:
        if is_truth(side) is False:
            what = f"{side.text} is a number, expected a comparison"
            self.mistakes.append(Mistake(text, what, "put each comparison in parentheses: (a > 1) & (b > 2)"))

    def _variable(self, variable: Variable) -> _Shape:
        node, name = variable.node, variable.name
        if node not in self._grids:
            self._note(variable, f"there is no node {node!r}", nearest(node, self._grids))
            return _UNKNOWN
        grid = self._grids[node]
        if grid is None:
            return _UNKNOWN
        shape = _known(variable, grid)
        if shape is None:
            known = {
                *grid.kind.required,
                *(name for axis in grid.full_axes().values() for name in axis.coords),
            }
            hint = close(name, known) or close(name, MEANINGS) or nearest(name, known)
            self._note(variable, f"{node} is {grid.kind.name}, which has no variable {name!r}", hint)
        return shape or _UNKNOWN

    def _without(self, at: Expression, shape: _Shape, dims: Collection[str] | None) -> _Shape:
        """What is left of a shape when some dims, or all, are reduced."""
        if dims is None:
            return _Shape(source=shape.source)
        for dim in dims:
            if shape.possible is not None and dim not in shape.possible:
                hint = nearest(dim, shape.possible)
                self._note(at, f"{shape.source} has no dim {dim!r}", hint)
        return shape.without(dims)

    def _select(self, selected: Select) -> _Shape:
        shape = self.shape(selected.of)
        for name, value in selected.choices.items():
            shape = self._chosen(selected, shape, name, value)
        return shape

    def _chosen(self, at: Select, shape: _Shape, name: str, value: Any) -> _Shape:
        """What is left of a shape at one value of a coordinate, or at some."""
        if shape.possible is None:
            return shape
        for axis in shape.axes.values():
            known = not at.by_position and name in axis.coords and name not in shape.possible
            if name == axis.name or known:
                return self._on_axis(at, shape, axis, name, value)
        names = {name for axis in shape.axes.values() for name in axis.coords}
        either = name in names or any(f"{axis}_{name}" in names for axis in shape.axes)
        if either and not at.by_position:
            # Along a grid axis, or a dim of the data, which may be dropped.
            return replace(shape, certain=frozenset())
        if name in shape.possible:
            return shape if isinstance(value, list) else shape.without([name])
        if name in MEANINGS and not at.by_position:
            # A coordinate along a dim of the data, which may be dropped.
            return replace(shape, certain=shape.certain & shape.axes.keys())
        self._note(
            at, f"{shape.source} has no dim or coordinate {name!r}", nearest(name, shape.possible | names)
        )
        return _UNKNOWN

    def _on_axis(self, at: Select, shape: _Shape, axis: Axis, name: str, value: Any) -> _Shape:
        try:
            if at.by_position:
                value = _positions(axis, value)
                name, axis = "at", replace(axis, coords={**axis.coords, "at": tuple(range(len(axis)))})
            left = view([axis], {name: value})
        except ValueError as error:
            self._note(at, str(error))
            return shape.without([axis.name])
        if axis.name in left.fixed:
            return shape.without([axis.name])
        return replace(shape, axes={**shape.axes, axis.name: left.axes[axis.name]})


def _known(variable: Variable, grid: Grid) -> _Shape | None:
    """What is known of a variable of a node; None when the node cannot have it."""
    name, axes = variable.name, grid.full_axes()
    for axis in axes.values():
        if name in axis.coords:
            alone = frozenset({axis.name})
            return _Shape(alone, alone, {axis.name: axis}, variable.text)
    if name in grid.kind.required:
        dims = [set(dims) for dims in (grid.kind.required[name], *grid.kind.otherwise.get(name, ()))]
        certain, possible = dims[0].intersection(*dims), dims[0].union(*dims)
        return _Shape(
            frozenset(certain | axes.keys()), frozenset(possible | axes.keys()), axes, variable.text
        )
    if name in MEANINGS or grid.kind is Figure:
        # Perhaps a coordinate, which has none of the grid's dims.
        return _Shape(frozenset(), grid.kind.dims | axes.keys(), axes, variable.text)
    return None


def _positions(axis: Axis, value: Any) -> Any:
    """Positions along an axis, counted from its start."""
    for position in value if isinstance(value, list) else [value]:
        if not -len(axis) <= position < len(axis):
            raise ValueError(f"there is no position {position} on {axis.name}, which has {len(axis)}")
    count = len(axis)
    return [position % count for position in value] if isinstance(value, list) else value % count


def _both(left: _Shape, right: _Shape) -> _Shape:
    """The shape of what is made of two values."""
    possible = None if left.possible is None or right.possible is None else left.possible | right.possible
    return _Shape(left.certain | right.certain, possible, {**left.axes, **right.axes})
