"""What is refused beforehand has no value, and dims that are said to be left over are left over."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import xarray as xr
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from prisma_steps.axes import Axis
from prisma_steps.claims.check import Grid, check, is_truth
from prisma_steps.claims.evaluate import NoValue, evaluate
from prisma_steps.claims.grammar import NotAnExpression, parse
from prisma_steps.hypercube import combine
from prisma_steps.schema import Patching, Quality

#: Coordinates named as a dim that the data have (token), may have (head) or seldom have (layer).
PLACES = Axis("place", {"layer": (0, 2), "k": (8, 16)})
CELLS = Axis("cell", {"token": (3, 4), "head": (0, 1)})
DEPTHS = Axis("n_layers", {"n_layers": (1, 2)})
SEEDS = Axis("seed", {"seed": (0, 1, 2)})


def _quality() -> xr.Dataset:
    kinds = ["all", "cls", "patch"]
    data = {name: ("token_kind", np.array([1.0, 2.0, 3.0])) for name in ("l0", "fvu")}
    return xr.Dataset(
        {**data, "ce": ((), 1.5), "firing_frequency": ("latent", [0.1, 0.2])},
        {"token_kind": kinds},
    )


def _patching() -> xr.Dataset:
    return xr.Dataset(
        {"logit_difference": (("pair", "layer", "token"), np.ones((2, 2, 3)))},
        {
            "pair": [0, 1],
            "layer": [0, 1],
            "token": [0, 1, 2],
            "token_kind": ("token", ["cls", "patch", "patch"]),
        },
    )


def _grid(part: xr.Dataset, *axes: Axis) -> xr.Dataset:
    count = len(list(itertools.product(*(range(len(axis)) for axis in axes))))
    return combine([part] * count, axes)


GRIDS = {"q": Grid((DEPTHS, PLACES, SEEDS), Quality), "p": Grid((CELLS, SEEDS), Patching)}
DATA = {"q": _grid(_quality(), *GRIDS["q"].axes), "p": _grid(_patching(), *GRIDS["p"].axes)}

VARIABLES = [
    *(
        "q.l0",
        "q.fvu",
        "q.ce",
        "q.firing_frequency",
        "q.n_layers",
        "q.k",
        "q.layer",
        "q.place",
        "q.place_layer",
    ),
    *("p.logit_difference", "p.cell", "p.head", "p.cell_token", "p.token", "q.seed", "q.top1", "p.kl"),
]
DIMS = ["n_layers", "place", "seed", "token_kind", "latent", "layer", "token", "head", "cell", "pair", "k"]
GRID_CHOICES = [
    *(
        "n_layers=1",
        "n_layers=[2]",
        "n_layers=3",
        "layer=0",
        "layer=2",
        "layer=1",
        "place=1",
        "place_layer=2",
    ),
    *("k=8", "k=[8, 16]", "k=9", "place_k=8", "seed=1", "seed=[0, 2]", "cell_token=3", "cell=0", "head=1"),
]
DATA_CHOICES = [
    "token_kind='all'",
    "token_kind='cls'",
    "latent=0",
    "token=0",
    "token=4",
    "pair=1",
    "pair=[0]",
]
CHOICES = [*GRID_CHOICES, *DATA_CHOICES]
POSITIONS = [
    "seed=0",
    "seed=-1",
    "n_layers=2",
    "place=1",
    "place=[0, 1]",
    "k=0",
    "layer=0",
    "token=2",
    "cell=1",
]


def _larger(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.tuples(inner, st.sampled_from(["mean", "max", "std"]), st.sampled_from(DIMS)).map(
            lambda parts: "({}).{}('{}')".format(*parts)
        ),
        st.tuples(inner, st.sampled_from(CHOICES)).map(lambda pair: "({}).sel({})".format(*pair)),
        st.tuples(inner, st.sampled_from(POSITIONS)).map(lambda pair: "({}).isel({})".format(*pair)),
        st.tuples(inner, st.sampled_from(["+", ">", "/"]), inner).map(
            lambda parts: "({} {} {})".format(*parts)
        ),
        inner.map("({}).max()".format),
    )


@settings(max_examples=300, deadline=None)
@given(st.recursive(st.sampled_from(VARIABLES), _larger, max_leaves=4))
def test_what_is_refused_beforehand_has_no_value(text: str) -> None:
    expression = parse(text)
    mistakes = check(expression, GRIDS)
    assume(mistakes)
    try:
        value = evaluate(expression, DATA)
    except NoValue:
        return
    for mistake in mistakes:
        assert "is left with the dim " in mistake.what
        left = mistake.what.removeprefix("is left with the dim ").partition(", expected")[0]
        assert set(left.split(", ")) <= set(value.dims)


@given(st.recursive(st.sampled_from(VARIABLES), _larger, max_leaves=4))
def test_what_is_said_to_be_true_or_false_is(text: str) -> None:
    try:
        value = evaluate(parse(text), DATA)
    except NoValue:
        return
    assert is_truth(parse(text)) in (None, value.dtype == bool)


@pytest.mark.parametrize(
    ("text", "truth"),
    [
        ("q.l0", None),
        ("q.l0.max()", None),
        ("q.l0.mean()", False),
        ("q.l0 > 1", True),
        ("(q.l0 > 1).sel(seed=0).max()", True),
        ("(q.l0 > 1).mean()", False),
        ("(q.l0 > 1).all()", True),
        ("-q.l0", False),
        ("~(q.l0 > 1) | (q.l0 < 0)", True),
        ("corr(q.l0, q.fvu)", False),
        ("3", False),
    ],
)
def test_truth_beforehand(text: str, truth: bool | None) -> None:
    assert is_truth(parse(text)) is truth


def test_nodes_of_which_nothing_is_known_are_left_alone() -> None:
    assert check(parse("q.anything.sel(x=3).mean('y') + q.l0.max('z')"), {"q": None}) == []
    with pytest.raises(NotAnExpression):
        parse("q.anything.")
