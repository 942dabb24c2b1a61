"""Parts joined lazily: any index gives what it gives in the whole, and only what it needs is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from xarray.backends.common import BackendArray
from xarray.core import indexing

from prisma_steps.datasets import open_dataset, open_lazily, write
from prisma_steps.joined import join

WHOLE = np.arange(3 * 7 * 2).reshape(3, 7, 2)


class Watched(BackendArray):
    """A stored array that notes what is read of it."""

    def __init__(self, values: np.ndarray, log: list[tuple[Any, ...]]) -> None:
        self.values, self.log = values, log
        self.shape, self.dtype = values.shape, values.dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        support = indexing.IndexingSupport.OUTER
        return indexing.explicit_indexing_adapter(key, self.shape, support, self._read)

    def _read(self, key: tuple[Any, ...]) -> np.ndarray:
        self.log.append(key)
        arrays = [np.atleast_1d(np.arange(size)[index]) for size, index in zip(self.shape, key, strict=True)]
        read = self.values[np.ix_(*arrays)]
        return read.squeeze(
            tuple(axis for axis, index in enumerate(key) if np.ndim(np.arange(99)[index]) == 0)
        )


def parts(log: list[tuple[Any, ...]] | None = None) -> list[xr.Dataset]:
    """Images 0 to 2, 3 to 4 and 5 to 6, not along the first axis."""
    found = []
    for begin, end in [(0, 3), (3, 5), (5, 7)]:
        lazy = indexing.LazilyIndexedArray(Watched(WHOLE[:, begin:end], [] if log is None else log))
        values = xr.Variable(("layer", "image", "token"), lazy, {"units": "1"})
        coords = {"image": [f"i{n}" for n in range(begin, end)], "label": ("image", np.arange(begin, end))}
        found.append(xr.Dataset({"x": values, "scale": ("token", [1.0, 2.0])}, coords, {"site": "q"}))
    return found


def along(size: int) -> st.SearchStrategy[Any]:
    """Integers, slices, and arrays in any order, with repetitions."""
    index = st.integers(-size, size - 1)
    arrays = st.lists(index, max_size=9).map(lambda found: np.array(found, int))
    # xarray itself cannot take a slice of no indices that goes backwards.
    slices = st.slices(size).filter(lambda where: len(range(size)[where]) > 0 or (where.step or 1) > 0)
    return st.one_of(index, slices, arrays)


@pytest.fixture(scope="module")
def joined() -> xr.Variable:
    return join(parts(), "image")["x"].variable


@settings(deadline=None)
@given(along(3), along(7), along(2))
def test_any_index_gives_what_it_gives_in_the_whole(
    joined: xr.Variable, layer: Any, image: Any, token: Any
) -> None:
    expected = xr.Variable(joined.dims, WHOLE)[layer, image, token]
    xr.testing.assert_equal(joined[layer, image, token].load(), expected)


def test_labels_and_attributes_are_those_of_the_whole() -> None:
    expected = xr.Dataset(
        {"x": (("layer", "image", "token"), WHOLE, {"units": "1"}), "scale": ("token", [1.0, 2.0])},
        {"image": [f"i{n}" for n in range(7)], "label": ("image", np.arange(7))},
        {"site": "q"},
    )
    xr.testing.assert_identical(join(parts(), "image").load(), expected)


def test_only_what_is_asked_for_is_read() -> None:
    log: list[tuple[Any, ...]] = []
    values = join(parts(log), "image")["x"]
    assert all(index == slice(0, 0, 1) for _, index, _ in log)
    log.clear()
    values.isel(layer=1).isel(image=slice(2, 4)).load()
    assert log == [(1, slice(2, 3, 1), slice(None)), (1, slice(0, 1, 1), slice(None))]


def test_stored_parts_are_not_read_either_and_dask_arrays_stay_dask(tmp_path: Path) -> None:
    for number, part in enumerate(parts()):
        write(part.transpose("image", ...).load(), tmp_path / str(number))
    joined = {
        opened: join([opened(tmp_path / str(number)) for number in range(3)], "image")["x"]
        for opened in (open_dataset, open_lazily)
    }
    assert joined[open_dataset].chunks is None
    assert not joined[open_dataset].variable._in_memory
    assert joined[open_lazily].chunksizes["image"] == (3, 2, 2)
    for values in joined.values():
        np.testing.assert_array_equal(values.transpose("layer", ...), WHOLE)


@pytest.mark.parametrize(
    "other",
    [
        lambda part: part.assign(scale=("token", [5.0, 5.0])),
        lambda part: part.assign_attrs(site="k"),
        lambda part: part.assign(x=part["x"].assign_attrs(units="m")),
        lambda part: part.isel(layer=slice(0, 2)),
        lambda part: part.assign(x=part["x"].isel(layer=0)),
        lambda part: part.assign(x=part["x"].astype(np.float16)),
    ],
)
def test_parts_that_do_not_belong_together_are_not_joined(other: Any) -> None:
    first, second, third = parts()
    with pytest.raises(ValueError, match=r"scale|attrs|units|layer|dimensions or another dtype"):
        join([first, other(second), third], "image")
