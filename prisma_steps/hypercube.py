"""The points of a grid as one Dataset, every axis a dimension."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from typing import Any

import numpy as np
import xarray as xr

from prisma_steps import schema
from prisma_steps.axes import Axis
from prisma_steps.joined import join
from prisma_steps.step import StepError


def combine(parts: Sequence[xr.Dataset], axes: Sequence[Axis]) -> xr.Dataset:
    """The points of a grid as one hypercube.

    Args:
        parts: one Dataset a point, the last axis fastest.
        axes: the grid; the last may be that of the parts of a whole, which are joined first.

    Returns:
        A Dataset with every axis as a leading dimension. Where a dimension of the parts differs between
        points (the layers of deeper and shallower models), it is their union and the rest is missing: NaN, or
        an empty text. One without a coordinate (latents of narrower and wider dictionaries) is counted from 0
        then. Places in a model (the layers of dictionaries) that are attributes become coordinates.
    """
    if axes and (dim := axes[-1].joined) is not None:
        *axes, last = axes
        starts = range(0, len(parts), len(last))
        parts = [join(parts[start : start + len(last)], dim) for start in starts]
    if not axes:
        return parts[0]
    dims = {str(dim) for part in parts for dim in part.dims}
    _check_axes(axes, dims)
    coords = _grid_coords(axes, dims)
    taken = {*coords, *(name for axis in axes for name in axis.coords)}
    parts = [part.drop_vars([name for name in part.coords if name in taken]) for part in parts]
    parts = _numbered(_told_apart(parts, taken))
    missing = _missing(parts)
    for axis in reversed(axes):
        size = len(axis)
        parts = [
            xr.concat(
                parts[start : start + size],
                dim=axis.name,
                data_vars="all",
                coords="different",
                compat="equals",
                join="outer",
                combine_attrs="drop_conflicts",
                fill_value=missing,
            )
            for start in range(0, len(parts), size)
        ]
    combined = parts[0].assign_coords(coords)
    for name in coords:
        combined[name].attrs.update(long_name=name.replace("_", " "), units="1")
    return combined


def _check_axes(axes: Sequence[Axis], dims: set[str]) -> None:
    for axis in axes:
        if axis.name in dims:
            raise StepError(
                f"the axis {axis.name!r} of the grid is also a dimension of its data: name it otherwise "
                f"where it is made (axis: {axis.name}_value)"
            )


def _numbered(parts: Sequence[xr.Dataset]) -> list[xr.Dataset]:
    """The parts with numbers along dims without coordinates that are longer in some parts than in others."""
    sizes = {
        str(dim): {part.sizes[dim] for part in parts if dim in part.dims}
        for part in parts
        for dim in part.dims
    }
    labelled = {str(name) for part in parts for name in part.coords}
    uneven = [dim for dim, found in sizes.items() if len(found) > 1 and dim not in labelled]
    return [
        part.assign_coords({dim: np.arange(part.sizes[dim]) for dim in uneven if dim in part.dims})
        for part in parts
    ]


def _missing(parts: Sequence[xr.Dataset]) -> dict[Any, Any]:
    """What stands where a part has no value of a variable: NaN, which texts have not, or an empty text."""
    names = {name: variable.dtype.kind for part in parts for name, variable in part.variables.items()}
    return {name: "" if kind in "UOT" else np.nan for name, kind in names.items()}


def _told_apart(parts: Sequence[xr.Dataset], taken: Collection[Hashable]) -> list[xr.Dataset]:
    """The parts with attributes that say where in a model they belong as coordinates, where they differ."""
    names = {name for part in parts for name in (*part.variables, *part.dims)} | set(taken)
    differ = [
        name
        for name in schema.PLACE
        if name not in names
        and all(name in part.attrs for part in parts)
        and len({part.attrs[name] for part in parts}) > 1
    ]
    return [part.assign_coords({name: part.attrs[name] for name in differ}) for part in parts]


def _grid_coords(axes: Sequence[Axis], dims: set[str]) -> dict[str, tuple[str, list[Any]]]:
    """Coordinates along the axes. One named as a dimension of the data has its axis's name put before it."""
    coords: dict[str, tuple[str, list[Any]]] = {
        axis.name: (axis.name, list(range(len(axis)))) for axis in axes
    }
    for axis in axes:
        for name, values in axis.coords.items():
            coords[f"{axis.name}_{name}" if name in dims else name] = (axis.name, list(values))
    return coords
