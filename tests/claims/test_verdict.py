from __future__ import annotations

import statistics
from typing import Any

import numpy as np
import pytest
import xarray as xr

from prisma_steps.claims.criterion import Criterion
from prisma_steps.claims.declaration import Claim
from prisma_steps.claims.grammar import parse
from prisma_steps.claims.table import as_json, row
from prisma_steps.claims.verdict import Verdict, judge

ACCURACY = np.array([[0.5, 0.6], [0.7, 0.9], [0.6, 0.9]])


def data() -> dict[str, xr.Dataset]:
    vit = xr.Dataset(
        {
            "accuracy": (("seed", "n_layers"), ACCURACY),
            "broken": ("seed", [1.0, np.nan, 3.0]),
            "good": (("seed", "n_layers"), ACCURACY > 0.55),
            "word": ("seed", ["a", "b", "c"]),
        },
        {"seed": [3, 5, 8], "n_layers": [1, 2]},
    )
    alone = xr.Dataset({"loss": ("layer", [1.0, 0.5])}, {"layer": [0, 1]})
    two = xr.Dataset({"accuracy": ("seed", [0.1, 0.2])}, {"seed": [0, 1]})
    once = xr.Dataset({"accuracy": ("seed", [0.1])}, {"seed": [0]})
    return {"vit": vit, "alone": alone, "two": two, "once": once}


def verdict(text: str, word: Any = None, *bounds: float) -> Verdict:
    criterion = Criterion(word, bounds) if word else None
    return judge(Claim("it is so", parse(text), text, criterion=criterion), data())


# --- criteria


@pytest.mark.parametrize(
    ("word", "bounds", "value", "holds"),
    [
        ("within", (0.02, 0.996), 0.976, True),  # 0.996 - 0.976 is greater than 0.02 in binary
        ("within", (0.02, 0.996), 1.016, True),
        ("within", (0.02, 0.996), 0.97599, False),
        ("within", (0.0, 0.5), 0.5, True),
        ("within", (0.0, 0.5), 0.5000001, False),
        ("within", (0.1, -1.0), -1.05, True),
        ("above", (100.0,), 100.0, False),
        ("above", (100.0,), 100.0001, True),
        ("below", (-1.0,), -1.0, False),
        ("below", (-1.0,), -1.5, True),
        ("between", (1.0, 2.0), 1.0, True),
        ("between", (1.0, 2.0), 2.0, True),
        ("between", (1.0, 2.0), 2.001, False),
        ("between", (1.0, 2.0), 0.999, False),
    ],
)
def test_criteria(word: Any, bounds: tuple[float, ...], value: float, holds: bool) -> None:
    assert Criterion(word, bounds).holds(value) is holds


def test_criteria_in_words() -> None:
    assert str(Criterion("within", (0.02, 0.996))) == "within 0.02 of 0.996"
    assert str(Criterion("above", (100.0,))) == "above 100"
    assert str(Criterion("between", (-1.0, 1e-7))) == "between -1 and 1e-07"


# --- values and seeds


@pytest.mark.parametrize(
    "text", ["vit.accuracy.sel(n_layers=2)", "vit.accuracy.sel(n_layers=2).mean('seed')"]
)
def test_a_mean_over_seeds_tells_every_seed_whether_it_is_written_or_left(text: str) -> None:
    found = verdict(text, "above", 0.75)
    assert found.state == "holds" and found.reproduced == pytest.approx(0.8)
    assert found.by_seed == {3: 0.6, 5: 0.9, 8: 0.9}
    assert found.spread == pytest.approx(np.std([0.6, 0.9, 0.9], ddof=1))
    assert verdict(text, "above", 0.85).state == "fails", "the mean counts, not the best seed"


def test_the_spread_is_of_what_is_made_of_the_means() -> None:
    text = "vit.accuracy.sel(n_layers=2).mean('seed') - vit.accuracy.sel(n_layers=1).mean('seed')"
    found = verdict(text, "below", 1.0)
    jumps = (ACCURACY[:, 1] - ACCURACY[:, 0]).tolist()
    assert list(found.by_seed.values()) == pytest.approx(jumps)
    assert found.spread == pytest.approx(statistics.stdev(jumps))
    assert found.reproduced == pytest.approx(np.mean(jumps))


def test_the_largest_mean_and_the_mean_of_the_largest() -> None:
    largest = verdict("vit.accuracy.mean('seed').max('n_layers')", "above", 0)
    assert largest.reproduced == pytest.approx(ACCURACY.mean(0).max())
    left = verdict("vit.accuracy.max('n_layers')", "above", 0)
    assert left.reproduced == pytest.approx(ACCURACY.max(1).mean())
    assert left.by_seed == largest.by_seed == dict(zip([3, 5, 8], ACCURACY.max(1).tolist(), strict=True))


@pytest.mark.parametrize(
    "text",
    [
        "vit.accuracy.sel(n_layers=2, seed=5)",
        "vit.accuracy.isel(n_layers=1, seed=[0, 1])",
        "vit.accuracy.sel(n_layers=2).std('seed')",
        "vit.accuracy.sel(n_layers=2).std()",
        "vit.accuracy.sum()",
        "vit.accuracy.count()",
        "vit.accuracy.sel(n_layers=2).idxmax('seed')",
        "corr(vit.accuracy.sel(n_layers=1), vit.accuracy.sel(n_layers=2))",
        "corr(vit.accuracy.sel(n_layers=1), vit.accuracy.sel(n_layers=2), 'seed')",
        "vit.seed.max()",
        "alone.loss.max()",
    ],
)
def test_no_seed_is_told_apart_where_one_alone_means_something_else(text: str) -> None:
    found = verdict(text, "above", -9)
    assert found.state == "holds" and found.by_seed == {} and found.spread is None


@pytest.mark.parametrize(
    "text",
    [
        "vit.accuracy.mean('seed').std()",
        "vit.accuracy.mean('seed').sum('n_layers')",
        "corr(vit.accuracy, vit.n_layers, 'n_layers')",
        "vit.accuracy.median()",
        "vit.accuracy.max()",
        "vit.accuracy.idxmax('n_layers')",
        "(vit.accuracy.mean('seed') * alone.loss.min()).max('n_layers')",
    ],
)
def test_seeds_are_told_apart_wherever_that_can_be_done(text: str) -> None:
    assert list(verdict(text, "above", -9).by_seed) == [3, 5, 8]


def test_one_seed_has_no_spread() -> None:
    found = verdict("once.accuracy", "above", 0)
    assert found.by_seed == {0: 0.1} and found.spread is None
    assert row(found).spread == "n = 1"


# --- truth values


def test_what_is_left_with_seeds_must_be_true_of_all() -> None:
    rises = "vit.accuracy.sel(n_layers=2) > vit.accuracy.sel(n_layers=1) + 0.15"
    found = verdict(rises)
    assert (found.state, found.reproduced) == ("fails", False)
    assert found.by_seed == {3: False, 5: True, 8: True}
    assert row(found).spread == "true of 2 of 3"
    means = verdict(rises.replace(")", ").mean('seed')"))
    assert (means.state, means.reproduced, means.by_seed) == ("holds", True, found.by_seed)
    assert verdict("vit.good.all()").state == "fails"
    assert verdict("vit.good.any('n_layers')").state == "holds"


# --- errors


@pytest.mark.parametrize(
    ("text", "criterion", "reason"),
    [
        (
            "vit.accuracy",
            ("above", 0.0),
            "vit.accuracy is left with n_layers: reduce it, or select one value",
        ),
        ("vit.accuracy.mean('seed')", ("above", 0.0), "is left with n_layers"),
        ("vit.good", (), "is left with n_layers"),
        ("vit.broken.mean('seed')", ("above", 0.0), "the value of seed 5 is nan"),
        ("vit.broken", ("above", 0.0), "the value of seed 5 is nan"),
        ("vit.broken.sel(seed=5)", ("above", 0.0), "the value is nan"),
        ("vit.broken > 2", (), "of vit.broken are NaN"),
        ("alone.loss.max() / 0", ("above", 0.0), "the value is inf"),
        ("vit.acuracy", ("above", 0.0), "vit has no variable 'acuracy'; did you mean 'accuracy'?"),
        ("vit.good.all()", ("above", 0.0), "is true or false, and held against a number: above 0"),
        ("alone.loss.max()", (), "is a number that is held against nothing"),
        ("vit.word.sel(seed=3)", ("above", 0.0), "is of type"),
        ("two.accuracy + vit.accuracy.sel(n_layers=1)", ("above", 0.0), "cannot align"),
    ],
)
def test_what_goes_wrong_is_the_verdict(text: str, criterion: tuple[Any, ...], reason: str) -> None:
    found = verdict(text, *criterion)
    assert (found.state, found.reproduced, found.by_seed) == ("error", None, {})
    assert reason in found.reason
    assert row(found).reason == found.reason and row(found).reproduced == ""


# --- as texts and as data


def test_a_verdict_as_texts_and_as_data() -> None:
    text = "vit.accuracy.sel(n_layers=2).mean('seed')"
    claim = Claim("two layers", parse(text), text, 0.996, "a paper", Criterion("within", (0.02, 0.996)))
    found = judge(claim, data())
    assert row(found) == (
        *("two layers", text, "0.996", "a paper", "within 0.02 of 0.996"),
        *("0.8", "± 0.17, n = 3", "fails", ""),
    )
    assert as_json(found) == {
        "says": "two layers",
        "value": text,
        "published": 0.996,
        "source": "a paper",
        "expected": {"within": [0.02, 0.996]},
        "reproduced": found.reproduced,
        "by_seed": {"3": 0.6, "5": 0.9, "8": 0.9},
        "spread": found.spread,
        "verdict": "fails",
        "reason": None,
    }
