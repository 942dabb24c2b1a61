"""How tokens are normalised, and what brings outputs back."""

from __future__ import annotations

import pytest
import torch

from prisma_steps.sae.normalisation import Normalisation
from tests.sae.published import activations

# float32, numbers around 1.
TOLERANCE = {"rtol": 0, "atol": 1e-5}


@pytest.mark.parametrize("n_layers", [1, 2])
def test_layer_norm_leaves_every_layer_of_a_token_mean_0_and_deviation_1(n_layers):
    x = activations(12, 5, 7)
    placed = Normalisation("layer_norm", n_layers, 12 // n_layers, transcodes=False).place(x)
    layers = placed.x.unflatten(-1, (n_layers, -1))
    torch.testing.assert_close(layers.mean(-1), torch.zeros(5, 7, n_layers), **TOLERANCE)
    # 1e-5 keeps the deviation off zero.
    torch.testing.assert_close(layers.std(-1), torch.ones(5, 7, n_layers), rtol=0, atol=1e-4)
    torch.testing.assert_close(placed.restore(placed.x), x, rtol=0, atol=1e-4)


@pytest.mark.parametrize("n_layers", [1, 2])
def test_token_norm_leaves_every_layer_of_a_token_the_root_of_its_width_long(n_layers):
    x = activations(12, 5, 7)
    placed = Normalisation("token_norm", n_layers, 12 // n_layers, transcodes=False).place(x)
    norms = placed.x.unflatten(-1, (n_layers, -1)).norm(dim=-1)
    torch.testing.assert_close(norms, torch.full_like(norms, (12 / n_layers) ** 0.5), **TOLERANCE)
    torch.testing.assert_close(placed.restore(placed.x), x, **TOLERANCE)


@pytest.mark.parametrize("normalise", ["layer_norm", "token_norm"])
def test_a_token_of_equal_values_or_of_zeros_stays_finite(normalise):
    normalisation = Normalisation(normalise, 1, 4, transcodes=False)
    for value in (0.0, 3.0):
        placed = normalisation.place(torch.full((2, 4), value))
        assert placed.x.isfinite().all()
        torch.testing.assert_close(placed.restore(placed.x), torch.full((2, 4), value), **TOLERANCE)
