"""Overcomplete's dictionaries compute the same of the same weights.

They have no b_dec, so that ours is zero; those of its Matryoshka dictionaries are no class of their own.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from prisma_steps.sae.autoencoder import Autoencoder, Shape
from tests import peers
from tests.sae.dictionaries import K
from tests.sae.published import activations, dictionary

# The same products in another order, in float32, of numbers around 1 to 10: 24 summands of 6e-8 each.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="session")
def saes() -> Any:
    return peers.overcomplete()


def ours(name: str) -> Autoencoder:
    made = dictionary(name, Shape(8, 24))
    made.b_dec.zero_()
    return made


def theirs(kind: Any, weights: Autoencoder, **settings: Any) -> Any:
    """One of its dictionaries with our weights, for inference."""
    made = kind(8, 24, dictionary_params={"normalization": "identity"}, **settings)
    with torch.no_grad():
        made.encoder.final_block[0].weight.copy_(weights.W_enc.T)
        made.encoder.final_block[0].bias.copy_(weights.b_enc)
        made.dictionary._weights.copy_(weights.W_dec)
    return made.eval()


def assert_same(mine: Autoencoder, other: Any) -> None:
    x = activations(8, 50)
    with torch.no_grad():
        _, latents, made = other(x)
    torch.testing.assert_close(mine(x)[0], latents, **TOLERANCE)
    torch.testing.assert_close(mine(x)[1], made, **TOLERANCE)
    assert 0 < (latents > 0).float().mean() < 1


def test_relu(saes):
    assert_same(ours("relu"), theirs(saes.SAE, ours("relu")))


def test_topk(saes):
    assert_same(ours("topk"), theirs(saes.TopKSAE, ours("topk"), top_k=K))


def test_jumprelu(saes):
    mine = ours("jumprelu")
    other = theirs(saes.JumpSAE, mine)
    with torch.no_grad():
        other.thresholds.copy_(mine.log_threshold)
    assert_same(mine, other)


@pytest.mark.parametrize("name", ["batch_topk", "matryoshka"])
def test_batch_topk_at_inference(saes, name):
    mine: Any = ours(name)
    other = theirs(saes.BatchTopKSAE, mine)
    other.running_threshold = mine.threshold
    assert_same(mine, other)


def test_batch_topk_in_training(saes):
    """Its top_k counts the latents of a batch, ours those of a token; both keep the smallest as threshold."""
    mine: Any = ours("batch_topk")
    other = theirs(saes.BatchTopKSAE, mine, top_k=K * 50).train()
    x = activations(8, 50)
    with torch.no_grad():
        _, latents, _ = other(x)
    mine.threshold.fill_(-1)
    kept = mine.activate_batch(mine.pre_activations(x))
    torch.testing.assert_close(kept, latents, **TOLERANCE)
    assert (kept > 0).sum() == K * 50
    torch.testing.assert_close(mine.threshold, other.running_threshold, **TOLERANCE)
