"""The split: nothing twice, nothing left out, the size asked for."""

from __future__ import annotations

import pytest

from prisma_steps.data.splits import split, split_off_validation
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


@pytest.mark.parametrize(
    ("fraction", "sizes"), [(0.01, "0 for the test and 20"), (0.99, "20 for the test and 0")]
)
def test_an_empty_side_is_refused(fraction, sizes):
    with pytest.raises(StepError, match=f"test_fraction {fraction} of 20 images leaves {sizes}"):
        split(20, fraction, 0)


def test_a_validation_is_taken_from_the_training_images_and_is_a_share_of_all():
    train, test = split(200, 0.25, 3)
    left, validation = split_off_validation(train, 200, 0.1, 3)
    assert len(validation) == 20
    assert sorted([*left.tolist(), *validation.tolist(), *test.tolist()]) == list(range(200))
    assert left.tolist() == sorted(left.tolist()) and validation.tolist() == sorted(validation.tolist())


def test_the_seed_decides_the_validation_and_it_is_not_the_draw_of_the_test_again():
    train, _ = split(50, 0.3, 0)
    drawn = [split_off_validation(train, 50, 0.3, seed)[1].tolist() for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    again = split(len(train), 15 / len(train), 0)[1]
    assert drawn[0] != train[again].tolist()


@pytest.mark.parametrize(("fraction", "taken"), [(0.01, 0), (0.6, 12)])
def test_a_validation_that_leaves_a_side_empty_is_refused(fraction, taken):
    train, _ = split(20, 0.4, 0)
    with pytest.raises(
        StepError, match=f"validation_fraction {fraction} of 20 images takes {taken} of the 12"
    ):
        split_off_validation(train, 20, fraction, 0)
