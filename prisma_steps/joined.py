"""Parts of one whole, joined without being read."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import numpy as np
import xarray as xr
from xarray.backends.common import BackendArray
from xarray.core import indexing


def join(parts: Sequence[xr.Dataset], dim: str) -> xr.Dataset:
    """Parts of one whole along ``dim``. In all else they must be the same.

    Dask arrays are joined to one. Other data variables are read when they are indexed, just the indices asked
    for and from the parts that have them. (Of a dask array, whole pieces are: dask does not pass on to the
    reading what is cut out of them later.)

    Raises:
        ValueError: when the parts do not belong together.
    """
    lazy = [name for name, values in parts[0].data_vars.items() if dim in values.dims and not values.chunks]
    joined = _concatenated([part.drop_vars(lazy) for part in parts], dim)
    if not lazy:
        return joined
    # Without indices there is nothing to read, and all else is compared as it is for the rest.
    empty = _concatenated([part[lazy].isel({dim: slice(0, 0)}) for part in parts], dim)
    return joined.assign({name: _joined(empty[name].variable, parts, name, dim) for name in lazy})


def _concatenated(parts: Sequence[xr.Dataset], dim: str) -> xr.Dataset:
    return xr.concat(
        parts,
        dim=dim,
        data_vars="minimal",
        coords="minimal",
        compat="identical",
        join="exact",
        combine_attrs="identical",
    )


def _joined(like: xr.Variable, parts: Sequence[xr.Dataset], name: Hashable, dim: str) -> xr.Variable:
    variables = [part[name].variable for part in parts]
    for variable in variables:
        if (variable.dims, variable.dtype) != (like.dims, like.dtype):  # which xarray would have made alike
            raise ValueError(f"{name} has other dimensions or another dtype in one part than in the others")
    array = _Joined(variables, like.get_axis_num(dim), like.dtype)
    return xr.Variable(like.dims, indexing.LazilyIndexedArray(array), like.attrs)


class _Joined(BackendArray):
    """Variables one after the other along one axis, to be wrapped for lazy indexing."""

    def __init__(self, parts: Sequence[xr.Variable], axis: int, dtype: np.dtype[Any]) -> None:
        self.parts = parts
        self.axis = axis
        self.starts = np.cumsum([0, *(part.shape[axis] for part in parts)])
        self.shape = (*parts[0].shape[:axis], int(self.starts[-1]), *parts[0].shape[axis + 1 :])
        self.dtype = dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.OUTER, self._outer
        )

    def _outer(self, key: tuple[Any, ...]) -> np.ndarray:
        along = key[self.axis]
        if not isinstance(along, slice | np.ndarray):
            part = int(np.searchsorted(self.starts, along, side="right")) - 1
            return self._read(part, key, int(along - self.starts[part]))
        found = [self._read(part, key, inside) for part, inside in self._pieces(along)]
        # Integers drop their axes, which moves the one that the parts are joined along.
        axis = sum(isinstance(index, slice | np.ndarray) for index in key[: self.axis])
        if not found:
            return self._read(0, key, slice(0, 0))
        return found[0] if len(found) == 1 else np.concatenate(found, axis)

    def _pieces(self, along: slice | np.ndarray) -> Iterator[tuple[int, slice | np.ndarray]]:
        """The parts that hold indices of ``along``, in its order, and where they are in them."""
        index = np.arange(self.shape[self.axis])[along]
        owner = np.searchsorted(self.starts, index, side="right") - 1
        for run in np.split(np.arange(len(index)), np.flatnonzero(np.diff(owner)) + 1):
            if len(run):
                part = int(owner[run[0]])
                yield part, _as_slice(index[run] - self.starts[part])

    def _read(self, part: int, key: tuple[Any, ...], inside: Any) -> np.ndarray:
        return self.parts[part][(*key[: self.axis], inside, *key[self.axis + 1 :])].values


def _as_slice(index: np.ndarray) -> slice | np.ndarray:
    """A slice if that says the same, for it is read faster."""
    consecutive = len(index) > 0 and bool((np.diff(index) == 1).all())
    return slice(int(index[0]), int(index[-1]) + 1) if consecutive else index
