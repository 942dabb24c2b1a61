"""Grid axes: how nodes inherit, match and cross them, by name, as xarray does with dimensions."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from prisma_steps.problems import shown

Index = tuple[int, ...]

#: The axis of a node's parts. No grid may have this name.
PART = "part"


@dataclass(frozen=True)
class Axis:
    """One grid dimension.

    Attributes:
        name: the dimension's name.
        coords: the values along it, by coordinate. An axis made by one parameter has one coordinate, of the
            axis's name; a zip (several parameters with ``axis: size``) has one for every parameter on it.
        joined: the dimension of the data along which the points are parts of one whole. Such an axis is the
            last of its node, and of its node only: whatever reads the node reads the whole.
    """

    name: str
    coords: Mapping[str, tuple[Any, ...]]
    joined: str | None = None

    def __len__(self) -> int:
        """The number of points along the axis."""
        return len(next(iter(self.coords.values())))

    def select(self, indices: Sequence[int]) -> Axis:
        """The same axis with only the points at ``indices``."""
        chosen = {name: tuple(values[i] for i in indices) for name, values in self.coords.items()}
        return replace(self, coords=chosen)

    def at(self, index: int) -> dict[str, Any]:
        """The coordinates of one point."""
        return {name: values[index] for name, values in self.coords.items()}


class AxisConflict(ValueError):
    """Two axes of one name that are not the same axis."""


def merge(left: Axis, right: Axis) -> Axis:
    """One axis with the coordinates of both.

    Raises:
        AxisConflict: when lengths differ, or a coordinate that both have has other values.
    """
    shared = left.coords.keys() & right.coords.keys()
    same = all(_same(left.coords[name], right.coords[name]) for name in shared)
    if len(left) != len(right) or not same:
        raise AxisConflict(
            f"axis {left.name!r} is {describe(left)} in one and {describe(right)} in the other"
        )
    return Axis(left.name, {**left.coords, **right.coords})


def _same(left: Sequence[Any], right: Sequence[Any]) -> bool:
    return [(type(a) is bool, a) for a in left] == [(type(b) is bool, b) for b in right]


def describe(axis: Axis) -> str:
    """The values of an axis, in short."""
    return "; ".join(
        f"{name} = [{', '.join(map(shown, values[:6]))}{', …' if len(values) > 6 else ''}]"
        for name, values in axis.coords.items()
    )


@dataclass(frozen=True)
class View:
    """The axes of a producer as a consumer sees them after ``select``.

    Attributes:
        fixed: position along each of the producer's axes that was selected to one point.
        kept: for every other axis, the producer's positions that are left.
    """

    order: tuple[str, ...]
    fixed: Mapping[str, int]
    kept: Mapping[str, tuple[int, ...]]
    axes: Mapping[str, Axis]

    @property
    def points(self) -> list[Axis]:
        """The kept axes along which a consumer has points of its own: all but the parts of one whole."""
        return [axis for axis in self.axes.values() if axis.joined is None]

    def index(self, point: Mapping[str, int]) -> Index:
        """The producer's grid index for a consumer's position along each kept axis."""
        return tuple(
            self.fixed[name] if name in self.fixed else self.kept[name][point[name]] for name in self.order
        )


def view(axes: Sequence[Axis], select: Mapping[str, Any]) -> View:
    """See ``axes`` through ``select``: a value drops an axis, a list keeps some of its points.

    Raises:
        KeyError: for an axis or coordinate that is not there.
        ValueError: for a value that is not on its axis.
    """
    fixed, kept, left = {}, {}, {}
    remaining = dict(select)
    for axis in axes:
        chosen = list(range(len(axis)))
        scalar = False
        for name in [name for name in axis.coords if name in remaining and axis.joined is None]:
            wanted = remaining.pop(name)
            scalar = scalar or not isinstance(wanted, list)
            chosen = [i for i in chosen if i in _positions(axis, name, wanted)]
        if not chosen:
            raise ValueError(f"nothing is left of axis {axis.name!r}")
        if scalar and len(chosen) == 1:
            fixed[axis.name] = chosen[0]
        else:
            kept[axis.name], left[axis.name] = tuple(chosen), axis.select(chosen)
    if remaining:
        raise KeyError(next(iter(remaining)))
    return View(tuple(axis.name for axis in axes), fixed, kept, left)


def _positions(axis: Axis, name: str, wanted: Any) -> list[int]:
    values = axis.coords[name]
    found = []
    for value in wanted if isinstance(wanted, list) else [wanted]:
        here = [i for i, other in enumerate(values) if _same([other], [value])]
        if not here:
            raise ValueError(f"{name} = {shown(value)} is not on the axis: {describe(axis)}")
        found.extend(here)
    return found


def points(axes: Sequence[Axis]) -> Iterator[Index]:
    """Every grid index, the last axis fastest."""
    return itertools.product(*(range(len(axis)) for axis in axes))
