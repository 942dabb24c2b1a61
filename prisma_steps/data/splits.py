"""Seeded splits of images into those for training, those for the validation and those for the test."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from prisma_steps.seeding import torch_generator
from prisma_steps.step import StepError


def split(count: int, test_fraction: float, seed: int) -> tuple[Int[Tensor, " train"], Int[Tensor, " test"]]:
    """Positions, ascending, of the images for training and of those for the test.

    It depends on the arguments alone: steps that split the same images with one seed test on the same ones.

    Raises:
        StepError: when one side would be empty.
    """
    n_test = round(count * test_fraction)
    if not 0 < n_test < count:
        raise StepError(
            f"test_fraction {test_fraction} of {count} images leaves {n_test} for the test and "
            f"{count - n_test} for training; both need at least one"
        )
    order = torch.randperm(count, generator=torch_generator(seed, "split into training and test"))
    return order[n_test:].sort().values, order[:n_test].sort().values


def split_off_validation(
    train: Int[Tensor, " train"], count: int, validation_fraction: float, seed: int
) -> tuple[Int[Tensor, " train"], Int[Tensor, " validation"]]:
    """Positions, ascending, of the images left for training and of those taken from them for a validation.

    Args:
        train: positions of the training images that ``split`` leaves.
        count: number of all images, of which ``validation_fraction`` is a share.
        validation_fraction: share of all images, so that those of the test do not make it smaller.
        seed: as for ``split``, which draws from another stream.

    Raises:
        StepError: when one side would be empty.
    """
    n = round(count * validation_fraction)
    if not 0 < n < len(train):
        raise StepError(
            f"validation_fraction {validation_fraction} of {count} images takes {n} of the {len(train)} that "
            f"the test leaves; it must take at least one, and leave one for training"
        )
    order = torch.randperm(len(train), generator=torch_generator(seed, "split into training and validation"))
    return train[order[n:].sort().values], train[order[:n].sort().values]
