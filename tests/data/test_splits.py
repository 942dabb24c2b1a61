"""The split: nothing twice, nothing left out, the size asked for."""

from __future__ import annotations

import pytest

from prisma_steps.data.splits import split
from prisma_steps.step import StepError


@pytest.mark.parametrize(("count", "fraction", "n_test"), [(10, 0.25, 2), (7, 0.5, 4), (1000, 0.001, 1)])
def test_every_image_is_on_one_side(count, fraction, n_test):
    train, test = split(count, fraction, 3)
    assert len(test) == n_test
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(count))
    assert train.tolist() == sorted(train.tolist()) and test.tolist() == sorted(test.tolist())


def test_the_seed_decides():
    sides = [split(50, 0.3, seed)[1].tolist() for seed in (0, 0, 1)]
    assert sides[0] == sides[1] != sides[2]


@pytest.mark.parametrize(("fraction", "sizes"), [(0.01, "0 for the test and 20"), (0.99, "20 for the test and 0")])
def test_an_empty_side_is_refused(fraction, sizes):
    with pytest.raises(StepError, match=f"test_fraction {fraction} of 20 images leaves {sizes}"):
        split(20, fraction, 0)
