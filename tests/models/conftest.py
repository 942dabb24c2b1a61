"""Tests of models: tensors so small that a second thread costs more than it gives."""

from __future__ import annotations

import pytest
import torch

from prisma_steps.models.hooked import HookedViT
from tests.models.families import MAKERS, frozen


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=MAKERS, scope="module")
def model(request) -> HookedViT:
    """A model of every family in turn, in float64 and without gradients."""
    return frozen(request.param)
