from __future__ import annotations

import operator
import warnings
from typing import Any

import dask.array
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from prisma_steps.claims.evaluate import NoValue, evaluate
from prisma_steps.claims.grammar import parse

SEEDS, LAYERS, KINDS = [0, 1, 2], [0, 2, 5, 7], ["all", "cls"]


def datasets() -> dict[str, xr.Dataset]:
    """Two nodes: a grid over seeds, and data without seeds."""
    rng = np.random.default_rng(0)
    coords = {"seed": SEEDS, "layer": LAYERS, "token_kind": KINDS}
    a = xr.Dataset(
        {
            "x": (("seed", "layer", "token_kind"), rng.uniform(0.5, 2, (3, 4, 2))),
            "y": (("seed", "layer"), rng.uniform(0.5, 2, (3, 4))),
            "depth": ("layer", [0.0, 1.0, 2.0, 3.0]),
            "state": ("layer", ["dead", "alive", "dense", "dead"]),
            "deep": ("layer", [False, False, True, True]),
            "free": ("other", [5.0, 6.0]),
            "gap": ("layer", [1.0, np.nan, 3.0, 4.0]),
        },
        {**coords, "k": ("layer", [8, 16, 8, 32]), "name": ("layer", ["p", "q", "r", "s"])},
    )
    b = xr.Dataset({"z": ("layer", rng.uniform(0.5, 2, 4))}, {"layer": LAYERS})
    other = xr.Dataset({"z": ("layer", [1.0, 2.0])}, {"layer": [0, 1]})
    return {"a": a, "b": b, "other": other}


DATA = datasets()
LAZY = {node: data.chunk({dim: 1 for dim in data.dims}) for node, data in DATA.items()}
A = DATA["a"]


def value(text: str, data: dict[str, xr.Dataset] = DATA) -> Any:
    found = evaluate(parse(text), data)
    return found.item() if found.ndim == 0 else found.values.tolist()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1 + 2 * 3 - 4 / 8 ** 1", 6.5),
        ("-2 ** 2", -4),
        ("abs(1 - a.depth.max())", 2),
        ("a.depth.mean()", 1.5),
        ("a.depth.median('layer')", 1.5),
        ("a.depth.std()", 1.25**0.5),
        ("a.depth.sum() + a.depth.count()", 10),
        ("a.depth.min()", 0),
        ("a.gap.count()", 3),
        ("a.gap.mean()", 8 / 3),
        ("a.depth.argmax('layer')", 3),
        ("a.depth.idxmax('layer')", 7),
        ("(-a.depth).idxmin('layer')", 7),
        ("(a.depth - 2).argmin('layer')", 0),
        ("a.depth.sel(layer=5)", 2),
        ("a.depth.sel(layer=[7, 0])", [3, 0]),
        ("a.depth.isel(layer=-1)", 3),
        ("a.depth.isel(layer=[0, 1])", [0, 1]),
        ("a.depth.sel(k=16)", 1),
        ("a.depth.sel(k=8)", [0, 2]),
        ("a.depth.sel(name='r')", 2),
        ("a.depth.sel(name=['r', 'p'])", [2, 0]),
        ("a.k.max()", 32),
        ("a.free.sel(other=1)", 6),
        ("a.free.sel(other=[1, 0])", [6, 5]),
        ("a.layer", LAYERS),
        ("corr(a.depth, a.layer)", float(np.corrcoef(range(4), LAYERS)[0, 1])),
        ("corr(a.depth, -a.depth, 'layer')", -1),
        ("a.depth > 1", [False, False, True, True]),
        ("(a.depth >= 1) & (a.depth < 3)", [False, True, True, False]),
        ("(a.depth == 0) | (a.depth != 2)", [True, True, False, True]),
        ("not a.deep", [True, True, False, False]),
        ("~a.deep | a.deep", [True] * 4),
        ("0 <= a.depth < 2", [True, True, False, False]),
        ("a.deep.any() & ~a.deep.all()", True),
        ("(a.state == 'dead').mean()", 0.5),
        ("a.depth.sel(layer=0) < a.depth.sel(layer=2) < a.depth.sel(layer=5)", True),
    ],
)
def test_known_answers(text: str, expected: Any) -> None:
    for data in (DATA, LAZY):
        assert value(text, data) == pytest.approx(expected, rel=1e-12)  # sums of four numbers in float64


def test_dims_and_coordinates_are_those_of_xarray() -> None:
    found = evaluate(parse("a.x.sel(token_kind='cls').mean('seed')"), DATA)
    xr.testing.assert_identical(
        found, A["x"].sel(token_kind="cls").mean("seed").assign_attrs(found.attrs).rename(found.name)
    )
    assert isinstance(LAZY["a"]["x"].data, dask.array.Array)
    assert isinstance(evaluate(parse("a.x"), LAZY).data, np.ndarray), "the value is in memory"


# --- the same as Python and xarray, whatever is written

DIMS = st.sampled_from(["seed", "layer", "token_kind"])
CHOICES = st.sampled_from(
    ["seed=1", "layer=5", "layer=[0, 7]", "token_kind='cls'", "seed=0, layer=2", "seed=[2, 0]", "layer=3"]
)
POSITIONS = st.sampled_from(["layer=0", "seed=-1", "layer=[1, 2]", "token_kind=0", "seed=3"])
LEAVES = st.sampled_from(["a.x", "a.y", "a.depth", "b.z", "a.layer", "2", "0.5", "1e-3"])


METHODS = ["mean", "max", "min", "median", "std", "sum", "count", "any", "all", "argmax", "idxmax"]


def _larger(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    method = st.sampled_from(METHODS)
    return st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*", "/"]), inner).map(" ".join).map("({})".format),
        st.tuples(inner, st.sampled_from(["2.0", "3.0", "0.5", "-1.0"])).map(
            lambda pair: "({} ** {})".format(*pair)
        ),
        inner.map("-{}".format),
        inner.map("abs({})".format),
        st.tuples(inner, method, DIMS).map(lambda parts: "({}).{}('{}')".format(*parts)),
        st.tuples(inner, CHOICES).map(lambda pair: "({}).sel({})".format(*pair)),
        st.tuples(inner, POSITIONS).map(lambda pair: "({}).isel({})".format(*pair)),
        st.tuples(inner, inner, DIMS).map(lambda parts: "corr({}, {}, '{}')".format(*parts)),
    )


def exact_correlation(left: Any, right: Any, dim: str) -> xr.DataArray:
    """``xarray.corr`` leaves out what only one of two has; here that is an error, as in arithmetic."""
    return xr.corr(*xr.align(xr.DataArray(left), xr.DataArray(right), join="exact"), dim)


@settings(max_examples=300, deadline=None)
@given(st.recursive(LEAVES, _larger, max_leaves=6))
def test_parity_with_python_and_xarray(text: str) -> None:
    """Whatever ``eval`` makes of the text on plain Datasets; where that is an error, so it is here."""
    try:
        expression = parse(text)
    except ValueError:
        return  # a method of a number that is written out
    names = {**DATA, "corr": exact_correlation, "abs": abs}
    try:
        with warnings.catch_warnings(), xr.set_options(arithmetic_join="exact"):
            warnings.simplefilter("ignore")
            expected = xr.DataArray(eval(text, {"__builtins__": {}}, names))
    except Exception:
        with pytest.raises(NoValue):
            evaluate(expression, DATA)
        return
    found = evaluate(expression, DATA)
    xr.testing.assert_allclose(found.drop_vars(found.coords), expected.drop_vars(expected.coords), rtol=1e-12)
    assert found.sizes == expected.sizes


@pytest.mark.parametrize("sign", ["<", "<=", ">", ">=", "==", "!="])
def test_comparisons_are_those_of_python(sign: str) -> None:
    compare = {
        "<": operator.lt,
        "<=": operator.le,
        ">": operator.gt,
        ">=": operator.ge,
        "==": operator.eq,
        "!=": operator.ne,
    }[sign]
    assert value(f"a.depth {sign} 1") == compare(A["depth"], 1).values.tolist()
    assert value(f"1 {sign} a.depth") == compare(1, A["depth"]).values.tolist()


# --- what has no value


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a.dpeth.max()", "a has no variable 'dpeth'; did you mean 'depth'?"),
        ("a.depth.mean('seed')", "a.depth has no dim 'seed'; expected one of: layer"),
        ("a.depth.mean().max('layer')", "a.depth.mean() has no dim 'layer'; it is one number"),
        ("a.depth.isel(seed=0)", "a.depth has no dim 'seed'"),
        ("a.depth.isel(layer=4)", "out of bounds"),
        ("a.depth.sel(layer=3)", "a.depth has no layer = 3; there are 0, 2, 5, 7"),
        ("a.depth.sel(layer=[0, 3])", "a.depth has no layer = 3"),
        ("a.depth.sel(layer=True)", "a.depth has no layer = True"),
        ("a.depth.sel(layer='0')", "a.depth has no layer = '0'"),
        ("a.depth.sel(seed=0)", "a.depth has no coordinate 'seed' along a dim"),
        ("a.depth.sel(layer=0).sel(layer=0)", "has no coordinate 'layer' along a dim"),
        ("corr(a.depth, b.z, 'seed')", "a.depth and b.z has no dim 'seed'"),
        ("b.z - other.z", "cannot align"),
        ("corr(b.z, other.z)", "cannot align"),
        ("a.gap > 2", "1 of the 4 values of a.gap are NaN: there is nothing to compare"),
        ("2 != a.gap", "1 of the 4 values of a.gap are NaN"),
        ("a.depth & a.deep", "a.depth is of type float64, expected true or false: compare it"),
        ("a.deep | a.depth", "a.depth is of type float64"),
        ("~a.depth", "a.depth is of type float64"),
        ("-a.deep", "a.deep is of type bool, expected a number"),
        ("1 / 0", "division"),
        ("a.state.mean()", "a.state"),
        ("a.gap.sel(layer=2).argmax('layer')", "no dim 'layer'"),
    ],
)
def test_what_has_no_value_says_why_and_where(text: str, reason: str) -> None:
    for data in (DATA, LAZY):
        with pytest.raises(NoValue) as raised:
            evaluate(parse(text), data)
        assert reason in str(raised.value)


def test_a_truth_value_is_no_number() -> None:
    data = {"a": xr.Dataset({"x": ("causal", [1.0, 2.0])}, {"causal": [False, True]})}
    assert value("a.x.sel(causal=True)", data) == 2
    with pytest.raises(NoValue, match="has no causal = 1; there are False, True"):
        evaluate(parse("a.x.sel(causal=1)"), data)
