"""Data whose dictionary is known."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch


class Planted(NamedTuple):
    directions: np.ndarray  # [direction, d_model], of unit norm
    tokens: torch.Tensor  # [token, d_model]


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Matrices here are too small to share out, and threads that wait spin."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def planted() -> Planted:
    """10,000 tokens, each the sum of 3 of 64 directions in 32 dims, off the origin."""
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((64, 32))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    chosen = rng.random((10_000, 64)).argpartition(3, axis=1)[:, :3]
    codes = np.zeros((10_000, 64))
    np.put_along_axis(codes, chosen, rng.uniform(0.5, 1.5, (10_000, 3)), axis=1)
    return Planted(directions, torch.from_numpy((codes @ directions + 0.3).astype(np.float32)))
