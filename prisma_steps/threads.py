"""Threads for compiled kernels, of which each item of the output belongs to one."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

#: Portions of work a thread: a thread that is held up leaves the rest to the others.
_PORTIONS = 8


def in_parallel(kernel: Callable[..., None], count: int, *arguments: Any, least: int = 1) -> None:
    """``kernel(first, last, *arguments)`` over portions of ``range(count)``, in as many threads as torch has.

    Which thread takes which portion is left to chance: a kernel must compute each item by itself, in an order
    of its own. Then neither the number of threads nor what else runs changes a bit.

    Args:
        kernel: compiled, and without the interpreter's lock while it runs.
        count: items of the output.
        arguments: passed on; tensors as arrays over the same memory, see ``array``.
        least: the fewest items that are worth a portion.
    """
    import torch

    n_threads = torch.get_num_threads()
    size = max(least, -(-count // (_PORTIONS * n_threads)))
    arrays = [array(one) if isinstance(one, torch.Tensor) else one for one in arguments]
    portions = itertools.count(0, size)

    def work() -> None:
        while (first := next(portions)) < count:
            kernel(first, min(first + size, count), *arrays)

    helpers = [_pool().submit(work) for _ in range(min(n_threads, -(-count // size)) - 1)]
    work()
    for helper in helpers:
        helper.result()


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="kernel")


def array(tensor: Tensor) -> np.ndarray:
    """A tensor's memory as an array; bfloat16, which NumPy has not, as the 16 bits that it is stored in."""
    import torch

    tensor = tensor.detach()
    return (tensor.view(torch.uint16) if tensor.dtype is torch.bfloat16 else tensor).numpy()
