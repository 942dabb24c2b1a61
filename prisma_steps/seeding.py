"""Seeded random generators: one independent stream for every (seed, purpose)."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch


def stream(seed: int, purpose: str) -> int:
    """A 63-bit seed for ``purpose``, so that drawing more for one purpose shifts no other."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def numpy_generator(seed: int, purpose: str) -> np.random.Generator:
    """A NumPy generator for ``purpose``."""
    import numpy as np

    return np.random.default_rng(stream(seed, purpose))


def torch_generator(seed: int, purpose: str) -> torch.Generator:
    """A torch generator on the CPU for ``purpose``: the same draws on every device."""
    import torch

    return torch.Generator().manual_seed(stream(seed, purpose))
