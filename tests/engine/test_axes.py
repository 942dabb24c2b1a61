from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from prisma_steps.axes import Axis, AxisConflict, describe, merge, points, view

names = st.lists(st.sampled_from("abcd"), unique=True, max_size=3)


@st.composite
def grids(draw: st.DrawFn) -> tuple[Axis, ...]:
    """Axes of one coordinate each, or of two (a zip)."""
    axes = []
    for name in draw(names):
        size = draw(st.integers(1, 4))
        values = draw(st.lists(st.integers(0, 50), min_size=size, max_size=size, unique=True))
        coords = {name: tuple(values)}
        if draw(st.booleans()):
            coords = {f"{name}_x": tuple(values), f"{name}_y": tuple(draw(st.permutations(values)))}
        axes.append(Axis(name, coords))
    return tuple(axes)


def numbered(axes: tuple[Axis, ...]) -> xr.DataArray:
    """A number at every point, as xarray holds it."""
    shape = [len(axis) for axis in axes]
    coords = {name: (axis.name, list(values)) for axis in axes for name, values in axis.coords.items()}
    return xr.DataArray(
        np.arange(np.prod(shape, dtype=int)).reshape(shape), coords, [axis.name for axis in axes]
    )


@settings(deadline=None)
@given(grids())
def test_points_are_in_the_order_of_the_array(axes: tuple[Axis, ...]) -> None:
    array = numbered(axes)
    assert [int(array.values[index]) for index in points(axes)] == array.values.ravel().tolist()


@settings(deadline=None)
@given(grids(), st.data())
def test_select_is_that_of_xarray(axes: tuple[Axis, ...], data: st.DataObject) -> None:
    array, expected, select = numbered(axes), numbered(axes), {}
    for axis in axes:
        coordinate = data.draw(st.sampled_from(sorted(axis.coords)))
        kept = data.draw(st.lists(st.integers(0, len(axis) - 1), unique=True, max_size=len(axis)))
        if kept:
            values = [axis.coords[coordinate][i] for i in kept]
            one = data.draw(st.booleans())
            select[coordinate] = values[0] if one else values
            # The order of the axis stays, whatever the order in the list.
            expected = expected.isel({axis.name: kept[0] if one else sorted(kept)})
    seen = view(axes, select)
    found = [
        int(array.values[seen.index(dict(zip(seen.axes, index, strict=True)))])
        for index in points(tuple(seen.axes.values()))
    ]
    assert tuple(seen.axes) == expected.dims
    assert found == expected.values.ravel().tolist()
    for name, axis in seen.axes.items():
        assert {key: list(values) for key, values in axis.coords.items()} == {
            key: expected[key].values.tolist() for key in axis.coords
        }, name


@settings(deadline=None)
@given(grids(), grids())
def test_merge_agrees_with_xarray_on_what_fits(left: tuple[Axis, ...], right: tuple[Axis, ...]) -> None:
    for one in left:
        for other in (axis for axis in right if axis.name == one.name):
            coords = {name: (one.name, list(values)) for name, values in one.coords.items()}
            others = {name: (one.name, list(values)) for name, values in other.coords.items()}
            try:
                both = xr.merge(
                    [xr.Dataset(coords=coords), xr.Dataset(coords=others)], compat="equals", join="exact"
                )
            except (ValueError, xr.MergeError):
                with pytest.raises(AxisConflict, match=f"axis '{one.name}'"):
                    merge(one, other)
            else:
                assert {name: list(values) for name, values in merge(one, other).coords.items()} == {
                    str(name): both[name].values.tolist() for name in both.coords
                }


def test_true_is_not_one() -> None:
    with pytest.raises(AxisConflict):
        merge(Axis("a", {"a": (0, 1)}), Axis("a", {"a": (False, True)}))
    with pytest.raises(ValueError, match=r"a = 1 is not on the axis: a = \[false, true\]"):
        view([Axis("a", {"a": (False, True)})], {"a": 1})


def test_two_values_of_one_zip_must_meet() -> None:
    size = Axis("size", {"n_layers": (1, 1, 2), "d_model": (32, 64, 32)})
    assert view([size], {"n_layers": 1, "d_model": 64}).fixed == {"size": 1}
    assert view([size], {"n_layers": 1}).kept == {"size": (0, 1)}
    with pytest.raises(ValueError, match="nothing is left of axis 'size'"):
        view([size], {"n_layers": 2, "d_model": 64})


def test_a_long_axis_is_described_in_short() -> None:
    assert describe(Axis("a", {"a": tuple(range(9)), "b": tuple("abcdefghi")})) == (
        "a = [0, 1, 2, 3, 4, 5, …]; b = ['a', 'b', 'c', 'd', 'e', 'f', …]"
    )
