"""Tests of kernels: tensors so small that a second thread costs more than it gives."""

from __future__ import annotations

import pytest
import torch

from prisma_steps.models.hooked import HookedViT
from tests.models.families import CLASSIFIERS, make_classifier


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=CLASSIFIERS, scope="module")
def classifier(request) -> HookedViT:
    """A model with a head of every family in turn, in float64."""
    return make_classifier(request.param, torch.float64)
