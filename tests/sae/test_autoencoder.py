"""Architectures against plain, slow float64 references."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from prisma_steps.sae.architectures import architecture
from prisma_steps.sae.autoencoder import Autoencoder, registered
from prisma_steps.sae.relu import ReLUAutoencoder
from prisma_steps.sae.topk import TopKAutoencoder, keep_largest
from prisma_steps.step import StepError

D_MODEL, N_LATENTS, N_TOKENS, K = 6, 10, 7, 3
NO_DEAD = torch.zeros(N_LATENTS, dtype=torch.bool)


def make(name: str) -> Autoencoder:
    """An autoencoder in general position: no two weights tied, b_dec and b_enc not zero, in float64."""
    settings = {"relu": {"l1_coefficient": 0.7}, "topk": {"k": K, "aux_k_coefficient": 0.25}}[name]
    autoencoder = architecture(name)(D_MODEL, N_LATENTS, **settings)
    generator = torch.Generator().manual_seed(3)
    autoencoder.initialise(torch.randn(D_MODEL, generator=generator), 2.5, generator)
    with torch.no_grad():
        autoencoder.W_enc += 0.3 * torch.randn(autoencoder.W_enc.shape, generator=generator)
        autoencoder.b_enc += 0.3 * torch.randn(N_LATENTS, generator=generator)
    autoencoder.double().constrain_weights()
    return autoencoder


@pytest.fixture(params=["relu", "topk"])
def autoencoder(request) -> Autoencoder:
    return make(request.param)


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(N_TOKENS, D_MODEL, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def reference_latents(weights: dict[str, np.ndarray], token: np.ndarray, k: int | None) -> np.ndarray:
    """Latents of one normalised token, a latent at a time."""
    pre = [
        sum((token[i] - weights["b_dec"][i]) * weights["W_enc"][i, j] for i in range(D_MODEL))
        + weights["b_enc"][j]
        for j in range(N_LATENTS)
    ]
    kept = range(N_LATENTS) if k is None else sorted(range(N_LATENTS), key=lambda j: -pre[j])[:k]
    return np.array([max(pre[j], 0.0) if j in kept else 0.0 for j in range(N_LATENTS)])


def weights_of(autoencoder: Autoencoder) -> dict[str, np.ndarray]:
    return {name: tensor.detach().numpy().copy() for name, tensor in autoencoder.state_dict().items()}


def reference_loss(
    autoencoder: Autoencoder, weights: dict[str, np.ndarray], x: np.ndarray, scale: float
) -> float:
    """The loss of a batch, a token and a latent at a time; for "relu" with the norm in the penalty."""
    k = K if autoencoder.architecture == "topk" else None
    total = 0.0
    for token in x:
        latents = reference_latents(weights, token, k)
        x_hat = latents @ weights["W_dec"] + weights["b_dec"]
        total += ((token - x_hat) ** 2).sum()
        if k is None:
            norms = [np.sqrt((weights["W_dec"][j] ** 2).sum()) for j in range(N_LATENTS)]
            total += scale * 0.7 * sum(latents[j] * norms[j] for j in range(N_LATENTS))
    return total / len(x)


def test_latents_and_reconstruction_are_the_formula_in_the_models_own_space(autoencoder, x):
    """The factor is 2.5: weights live in the space where activations are that much larger."""
    weights = weights_of(autoencoder)
    k = K if autoencoder.architecture == "topk" else None
    latents = np.stack([reference_latents(weights, 2.5 * token, k) for token in x.numpy()])
    x_hat = (latents @ weights["W_dec"] + weights["b_dec"]) / 2.5
    encoded = autoencoder.encode(x)
    np.testing.assert_allclose(encoded.detach(), latents, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(autoencoder.decode(encoded).detach(), x_hat, rtol=1e-12, atol=1e-12)


def test_encode_takes_any_leading_dims(autoencoder, x):
    stacked = torch.stack([x, 2 * x])
    expected = torch.stack([autoencoder.encode(x), autoencoder.encode(2 * x)])
    torch.testing.assert_close(autoencoder.encode(stacked), expected)


def test_loss_is_the_formula(autoencoder, x):
    objective = autoencoder.objective(x, 0.5, NO_DEAD)
    expected = reference_loss(autoencoder, weights_of(autoencoder), x.numpy(), 0.5)
    assert objective.loss.item() == pytest.approx(expected, rel=1e-12)
    parts = objective.squared_error + objective.sparsity_loss
    assert objective.loss.item() == pytest.approx(parts.item(), rel=1e-12)


@pytest.mark.parametrize("name", ["W_enc", "W_dec", "b_enc", "b_dec"])
def test_gradient_is_that_of_the_formula(autoencoder, x, name):
    """Central differences of the slow reference, for decoder rows without the component along the row."""
    autoencoder.objective(x, 1.0, NO_DEAD).loss.backward()
    autoencoder.constrain_gradients()
    weights = weights_of(autoencoder)
    numeric = np.zeros_like(weights[name])
    for index in np.ndindex(numeric.shape):
        ends = []
        for shift in (1e-6, -1e-6):
            moved = {key: value.copy() for key, value in weights.items()}
            moved[name][index] += shift
            ends.append(reference_loss(autoencoder, moved, x.numpy(), 1.0))
        numeric[index] = (ends[0] - ends[1]) / 2e-6
    if name == "W_dec":
        rows = weights["W_dec"]
        numeric -= (numeric * rows).sum(1, keepdims=True) * rows
    # Central differences with this shift are good to about 1e-9 of the loss, which is of order 10.
    np.testing.assert_allclose(getattr(autoencoder, name).grad, numeric, rtol=1e-5, atol=1e-7)


def test_firings_count_the_tokens_of_each_latent(autoencoder, x):
    objective = autoencoder.objective(x, 1.0, NO_DEAD)
    latents = autoencoder.encode(x / autoencoder.norm_factor)
    assert objective.firings.tolist() == [(column > 0).sum().item() for column in latents.T]


def test_aux_k_reconstructs_the_residual_with_dead_latents(x):
    autoencoder = make("topk")
    dead = torch.zeros(N_LATENTS, dtype=torch.bool)
    dead[[0, 2, 4, 5, 9]] = True
    weights = weights_of(autoencoder)
    total = 0.0
    for token in x.numpy():
        pre = (token - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]
        latents = reference_latents(weights, token, K)
        residual = token - latents @ weights["W_dec"] - weights["b_dec"]
        largest = sorted([0, 2, 4, 5, 9], key=lambda j: -pre[j])[: D_MODEL // 2]
        total += ((residual - sum(pre[j] * weights["W_dec"][j] for j in largest)) ** 2).sum()
    objective = autoencoder.objective(x, 1.0, dead)
    assert objective.sparsity_loss.item() == pytest.approx(0.25 * total / N_TOKENS, rel=1e-12)


def test_aux_k_moves_dead_latents_alone(x):
    autoencoder = make("topk")
    dead = torch.zeros(N_LATENTS, dtype=torch.bool)
    dead[[1, 7]] = True
    pre_activations = autoencoder.pre_activations(x)
    residual = torch.ones(N_TOKENS, D_MODEL, dtype=torch.float64)
    autoencoder.aux_k(pre_activations, residual, dead).backward()
    moved = autoencoder.W_dec.grad.abs().sum(1) > 0
    assert moved.tolist() == dead.tolist()


def test_aux_k_leaves_living_latents_to_the_reconstruction(x):
    """The residual is a constant of the auxiliary loss: rows of living latents get no gradient from it."""
    dead = torch.zeros(N_LATENTS, dtype=torch.bool)
    dead[[1, 7]] = True
    gradients = []
    for coefficient in (0.0, 100.0):
        autoencoder = make("topk")
        autoencoder.aux_k_coefficient = coefficient
        autoencoder.objective(x, 1.0, dead).loss.backward()
        gradients.append(autoencoder.W_dec.grad)
    torch.testing.assert_close(gradients[0][~dead], gradients[1][~dead])
    assert not torch.allclose(gradients[0][dead], gradients[1][dead])


def test_topk_keeps_at_most_k_and_exactly_k_of_positive_ones():
    autoencoder = make("topk")
    positive = torch.rand(20, N_LATENTS, generator=torch.Generator().manual_seed(0)) + 0.1
    assert (autoencoder.activate(positive) > 0).sum(1).tolist() == [K] * 20
    mixed = positive - 0.9
    counts = (autoencoder.activate(mixed) > 0).sum(1)
    assert counts.tolist() == (mixed > 0).sum(1).clamp_max(K).tolist()
    assert (autoencoder.activate(mixed) >= 0).all()


def test_keep_largest_keeps_values_in_place():
    values = torch.tensor([[3.0, -1.0, 2.0, 5.0], [-4.0, -3.0, -2.0, -1.0]])
    kept = keep_largest(values, 2)
    assert kept.tolist() == [[3.0, 0.0, 0.0, 5.0], [0.0, 0.0, -2.0, -1.0]]


def test_initial_weights_are_tied_unit_directions():
    autoencoder = ReLUAutoencoder(8, 40, l1_coefficient=1.0)
    centre = torch.arange(8.0)
    autoencoder.initialise(centre, 3.0, torch.Generator().manual_seed(0))
    torch.testing.assert_close(autoencoder.W_dec.norm(dim=1), torch.ones(40))
    assert torch.equal(autoencoder.W_enc, autoencoder.W_dec.T)
    assert torch.equal(autoencoder.b_dec.detach(), centre)
    assert autoencoder.b_enc.abs().sum() == 0
    assert autoencoder.norm_factor == 3.0


def test_constraints_keep_rows_unit_and_gradients_tangent(autoencoder, x):
    autoencoder.objective(x, 1.0, NO_DEAD).loss.backward()
    autoencoder.constrain_gradients()
    along = (autoencoder.W_dec.grad * autoencoder.W_dec).sum(1)
    assert along.abs().max() < 1e-12
    with torch.no_grad():
        autoencoder.W_dec *= 1.7
    autoencoder.constrain_weights()
    torch.testing.assert_close(autoencoder.W_dec.norm(dim=1), torch.ones(N_LATENTS, dtype=torch.float64))


def test_a_second_architecture_of_a_name_is_refused():
    with pytest.raises(ValueError, match=r"'relu' is taken by prisma_steps\.sae\.relu"):
        type("Other", (Autoencoder,), {}, name="relu")
    assert registered()["relu"] is ReLUAutoencoder


def test_an_unknown_architecture_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="'gatd' is not one of relu, topk"):
        architecture("gatd")


def test_more_latents_than_there_are_cannot_be_kept():
    with pytest.raises(StepError, match=r"k = 11 is more than the dictionary's 10 latents"):
        TopKAutoencoder(5, 10, k=11, aux_k_coefficient=0.0)
