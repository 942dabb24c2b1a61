"""Compiled loop for functions of single bfloat16 numbers, of which there are no more than 65,536."""

from __future__ import annotations

import numba
import torch
from torch import Tensor

from prisma_steps.threads import in_parallel


def looked_up(numbers: Tensor, table: Tensor) -> Tensor:
    """The function of each number, whose bits are its place in ``table``.

    Args:
        numbers: bfloat16, in one piece of memory.
        table: the function of every bfloat16 number, see ``all_numbers``.
    """
    found = torch.empty_like(numbers)
    in_parallel(_look_up, numbers.numel(), numbers.flatten(), table, found.view(-1), least=2**15)
    return found


def all_numbers() -> Tensor:
    """Every bfloat16 number, at the place that its bits say."""
    return torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)


@numba.njit(nogil=True, cache=True)
def _look_up(first, last, numbers, table, found):
    for i in range(first, last):
        found[i] = table[numbers[i]]
