"""The value of an expression on Datasets. Every operation is one of the tables below."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import xarray as xr

from prisma_steps.claims.tree import (
    COMPARISONS,
    Binary,
    Correlation,
    Expression,
    Number,
    Reduce,
    Select,
    Text,
    Unary,
    Variable,
)
from prisma_steps.problems import nearest

Value: TypeAlias = xr.DataArray | float | str

_BINARY: Mapping[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "**": operator.pow,
    "&": operator.and_,
    "|": operator.or_,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
_UNARY: Mapping[str, Callable[[Any], Any]] = {"-": operator.neg, "~": operator.invert, "abs": operator.abs}
_REDUCE: Mapping[str, Callable[..., xr.DataArray]] = {
    "mean": xr.DataArray.mean,
    "max": xr.DataArray.max,
    "min": xr.DataArray.min,
    "median": xr.DataArray.median,
    "std": xr.DataArray.std,
    "sum": xr.DataArray.sum,
    "count": xr.DataArray.count,
    "any": xr.DataArray.any,
    "all": xr.DataArray.all,
    "argmax": xr.DataArray.argmax,
    "argmin": xr.DataArray.argmin,
    "idxmax": xr.DataArray.idxmax,
    "idxmin": xr.DataArray.idxmin,
}
#: Those that dask has not, or not along chunks.
_IN_MEMORY = ("median", "argmax", "argmin", "idxmax", "idxmin")


class NoValue(ValueError):
    """An expression that has no value on the data: why, and where in the expression."""


def evaluate(expression: Expression, data: Mapping[str, xr.Dataset]) -> xr.DataArray:
    """The value of an expression, in memory.

    Args:
        expression: what to compute.
        data: the data of every node that it names; may be lazy.

    Returns:
        An array with the dims that are not reduced or selected. As in xarray, reductions skip NaN and ``std``
        divides by n.

    Raises:
        NoValue: when a variable, dim or value is not there, NaN is compared, or an operation is impossible.
    """
    try:
        # Dividing by zero, or averaging nothing, leaves what is no number; that is for the caller to see.
        with warnings.catch_warnings(), xr.set_options(arithmetic_join="exact"):
            warnings.simplefilter("ignore", RuntimeWarning)
            return _array(expression, data).compute()
    except NoValue:
        raise
    except (ArithmeticError, LookupError, NotImplementedError, OSError, TypeError, ValueError) as error:
        raise NoValue(f"{expression.text}: {error}") from error


def _value(expression: Expression, data: Mapping[str, xr.Dataset]) -> Value:
    match expression:
        case Number() | Text():
            return expression.value
        case Variable():
            return _variable(expression, data[expression.node])
        case Select():
            return _select(expression, _array(expression.of, data))
        case Reduce():
            return _reduce(expression, _array(expression.of, data))
        case Unary():
            of = _array(expression.of, data)
            if expression.operator != "abs":
                _need_truth(of, expression.of, expression.operator == "~")
            return _UNARY[expression.operator](of)
        case Binary():
            return _binary(expression, data)
        case Correlation():
            return _correlation(expression, data)


def _array(expression: Expression, data: Mapping[str, xr.Dataset]) -> xr.DataArray:
    value = _value(expression, data)
    return value if isinstance(value, xr.DataArray) else xr.DataArray(value)


def _variable(variable: Variable, data: xr.Dataset) -> xr.DataArray:
    if variable.name not in data.variables:
        hint = nearest(variable.name, map(str, data.variables))
        raise NoValue(f"{variable.node} has no variable {variable.name!r}; {hint}")
    return data[variable.name]


def _reduce(reduction: Reduce, of: xr.DataArray) -> xr.DataArray:
    _need_dims(of, reduction.dims, reduction.of.text)
    dims = reduction.dims
    if reduction.how in _IN_MEMORY:
        of, dims = of.compute(), dims[0] if dims and len(dims) == 1 else dims
    return _REDUCE[reduction.how](of, dims)


def _need_dims(of: xr.DataArray, dims: tuple[str, ...] | None, text: str) -> None:
    for dim in dims or ():
        if dim not in of.dims:
            has = nearest(dim, map(str, of.dims)) or "it is one number"
            raise NoValue(f"{text} has no dim {dim!r}; {has}")


def _need_truth(of: xr.DataArray, expression: Expression, truth: bool = True) -> None:
    """Refuse what is not true or false; or, with ``truth`` false, what is."""
    if (of.dtype == bool) != truth:
        wanted = "true or false: compare it" if truth else "a number"
        raise NoValue(f"{expression.text} is of type {of.dtype}, expected {wanted}")


def _select(selected: Select, of: xr.DataArray) -> xr.DataArray:
    for name, value in selected.choices.items():
        if selected.by_position:
            _need_dims(of, (name,), selected.of.text)
            of = of.isel({name: value})
        else:
            of = _at(of, name, value, selected.of.text)
    return of


def _at(of: xr.DataArray, name: str, value: Any, text: str) -> xr.DataArray:
    """What is left at values of a coordinate along a dim; one value that is there once drops the dim."""
    if name not in of.dims and (name not in of.coords or of[name].ndim != 1):
        names = [*map(str, of.dims), *(str(other) for other in of.coords if of[other].ndim == 1)]
        raise NoValue(f"{text} has no coordinate {name!r} along a dim; {nearest(name, names)}")
    # A dim without a coordinate has its positions: xarray makes them up.
    (dim,), there = of[name].dims, of[name].values
    wanted = value if isinstance(value, list) else [value]
    found = [_positions(there, each) for each in wanted]
    for each, positions in zip(wanted, found, strict=True):
        if not len(positions):
            known = ", ".join(map(str, there[:8].tolist())) + (", …" if len(there) > 8 else "")
            raise NoValue(f"{text} has no {name} = {each!r}; there are {known}")
    positions = np.concatenate(found)
    return of.isel({dim: positions if isinstance(value, list) or len(positions) > 1 else positions[0]})


def _positions(there: np.ndarray, value: Any) -> np.ndarray:
    """Where a coordinate has a value; a truth value is none of the numbers 0 and 1."""
    same_type = (there.dtype.kind == "b") == isinstance(value, bool)
    return np.flatnonzero(there == value) if same_type else np.array([], int)


def _binary(binary: Binary, data: Mapping[str, xr.Dataset]) -> Value:
    left, right = _value(binary.left, data), _value(binary.right, data)
    for side, expression in ((left, binary.left), (right, binary.right)):
        if isinstance(side, xr.DataArray):
            if binary.operator in "&|":
                _need_truth(side, expression)
            if binary.operator in COMPARISONS:
                _need_numbers(side, expression)
    return _BINARY[binary.operator](left, right)


def _need_numbers(of: xr.DataArray, expression: Expression) -> None:
    """A comparison with NaN is false, and its opposite too: it says nothing."""
    missing = int(of.isnull().sum()) if of.dtype.kind == "f" else 0
    if missing:
        raise NoValue(
            f"{missing} of the {of.size} values of {expression.text} are NaN: there is nothing to compare"
        )


def _correlation(of: Correlation, data: Mapping[str, xr.Dataset]) -> xr.DataArray:
    sides = [_array(side, data).astype(float) for side in (of.left, of.right)]
    left, right = xr.align(*sides, join="exact")
    for dim in of.dims or ():
        _need_dims(left if dim in left.dims else right, (dim,), f"{of.left.text} and {of.right.text}")
    return xr.corr(left, right, None if of.dims is None else list(of.dims))
