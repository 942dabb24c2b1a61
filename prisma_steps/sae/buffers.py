"""Memory that training steps use again: a page that the system hands out anew costs more than to fill it."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Buffers:
    """Tensors by name. What one holds lasts until the name is asked for again."""

    def __init__(self) -> None:
        """None yet."""
        self._memory: dict[tuple[str, torch.dtype], Tensor] = {}

    def get(self, name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """A tensor of ``shape`` with whatever it held before, in the memory of the last one of that name."""
        size = math.prod(shape)
        memory = self._memory.get((name, dtype))
        if memory is None or len(memory) < size:
            memory = self._memory[name, dtype] = torch.empty(size, dtype=dtype)
        return memory[:size].view(shape)
