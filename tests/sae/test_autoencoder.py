"""Architectures and kinds against plain, slow float64 references."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from prisma_steps.sae.architectures import architecture
from prisma_steps.sae.autoencoder import Autoencoder, Shape, keep_largest, registered
from prisma_steps.sae.gated import GatedAutoencoder
from prisma_steps.sae.jumprelu import JumpReLUAutoencoder
from prisma_steps.sae.matryoshka import MatryoshkaAutoencoder
from prisma_steps.sae.relu import ReLUAutoencoder
from prisma_steps.sae.topk import TopKAutoencoder
from prisma_steps.step import StepError
from tests.sae import reference
from tests.sae.dictionaries import D_MODEL, KINDS, N_LATENTS, NO_DEAD, SETTINGS, K, batch, make

ALL = [(name, kind) for name in SETTINGS for kind in KINDS]


@pytest.fixture(params=ALL, ids=lambda pair: "-".join(pair))
def sae(request) -> Autoencoder:
    return make(*request.param)


def scaled(sae: Autoencoder, x: torch.Tensor) -> np.ndarray:
    """As the dictionary sees it: layers by factors of 2.5 and 2."""
    return np.concatenate(
        [
            part * factor
            for part, factor in zip(np.split(x.numpy(), sae.shape.n_layers, 1), (2.5, 2.0), strict=False)
        ],
        axis=1,
    )


def test_latents_and_reconstruction_are_the_formula_in_the_models_own_space(sae):
    weights, (x, _) = reference.weights_of(sae), batch(sae)
    inside = scaled(sae, x)
    latents = reference.latents(sae, weights, reference.pre_activations(sae, weights, inside))
    y_hat = torch.from_numpy(reference.reconstruction(sae, weights, latents, inside))
    expected = y_hat.numpy() / 3 if sae.shape.kind == "transcoder" else y_hat.numpy()
    if sae.shape.kind != "transcoder":
        factors = np.repeat([2.5, 2.0][: sae.shape.n_layers], D_MODEL)
        expected = expected / factors
    encoded, decoded = sae(x)
    np.testing.assert_allclose(encoded.detach(), latents, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(decoded.detach(), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sae.encode(x), encoded)
    torch.testing.assert_close(sae.decode(encoded, x), decoded)


def test_any_leading_dims_are_taken(sae):
    x, _ = batch(sae)
    stacked = torch.stack([x, 2 * x])
    expected = torch.stack([sae(x)[1], sae(2 * x)[1]])
    torch.testing.assert_close(sae(stacked)[1], expected)


def test_loss_is_the_formula(sae):
    (x, y), weights = batch(sae), reference.weights_of(sae)
    expected = reference.loss(sae, weights, x.numpy(), y.numpy(), 0.5, weights)
    objective = sae.objective(x, y, 0.5, NO_DEAD)
    assert objective.loss.item() == pytest.approx(expected, rel=1e-12)
    pre = reference.pre_activations(sae, weights, x.numpy())
    latents = reference.latents(sae, weights, pre, of_a_batch=True)
    error = reference.error(y.numpy(), reference.reconstruction(sae, weights, latents, x.numpy()))
    assert objective.squared_error.item() == pytest.approx(error, rel=1e-12)
    assert objective.firings.tolist() == (latents > 0).sum(0).tolist()


def test_gradients_are_those_of_the_formula(sae):
    """Central differences of the slow reference, for every weight but JumpReLU's thresholds."""
    x, y = batch(sae)
    sae.objective(x, y, 0.5, NO_DEAD).loss.backward()
    weights = reference.weights_of(sae)
    for name, parameter in sae.named_parameters():
        if name == "log_threshold":
            continue
        numeric = np.zeros_like(weights[name])
        for index in np.ndindex(numeric.shape):
            ends = []
            for shift in (1e-6, -1e-6):
                moved = {key: value.copy() for key, value in weights.items()}
                moved[name][index] += shift
                ends.append(reference.loss(sae, moved, x.numpy(), y.numpy(), 0.5, weights))
            numeric[index] = (ends[0] - ends[1]) / 2e-6
        # Central differences with this shift are good to about 1e-9 of the loss, which is of order 10.
        np.testing.assert_allclose(parameter.grad, numeric, rtol=1e-5, atol=1e-7, err_msg=name)


def test_thresholds_of_jumprelu_have_the_papers_pseudo_derivatives():
    """Equations 11 and 12 of arXiv 2407.14435, a token and a latent at a time."""
    sae = make("jumprelu")
    x, _ = batch(sae)
    objective = sae.objective(x, x, 0.5, NO_DEAD)
    objective.loss.backward()
    weights = reference.weights_of(sae)
    pre = reference.pre_activations(sae, weights, x.numpy())
    latents = reference.latents(sae, weights, pre)
    residual = reference.reconstruction(sae, weights, latents, x.numpy()) - x.numpy()
    theta, width = np.exp(weights["log_threshold"]), 0.5
    expected = np.zeros(N_LATENTS)
    for t, j in np.ndindex(pre.shape):
        near = abs(pre[t, j] - theta[j]) / width < 0.5
        of_latent = 2 * residual[t] @ weights["W_dec"][j] / len(x)
        slope = -(of_latent * theta[j] + 0.5 * 0.7 / len(x)) * near / width
        expected[j] += slope * theta[j]  # θ = exp(log_threshold)
    assert (expected != 0).sum() > 3
    np.testing.assert_allclose(sae.log_threshold.grad, expected, rtol=1e-10)


def test_layer_norm_is_undone(sae):
    """Tokens times 3 plus 5 have the latents that they had, and reconstructions times 3 plus 5."""
    name, kind = sae.architecture, sae.shape.kind
    sae = make(name, kind, normalise="layer_norm")
    x, _ = batch(sae)
    latents, y_hat = sae(x)
    again, moved = sae(3 * x + 5)
    # The 1e-5 beside the standard deviation counts three times less for tokens three times as wide.
    torch.testing.assert_close(again, latents, rtol=1e-4, atol=1e-4)
    expected = y_hat if kind == "transcoder" else 3 * y_hat + 5
    torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-4)


def test_layer_norm_standardises_every_layer():
    sae = make("relu", "crosscoder", normalise="layer_norm")
    x, _ = batch(sae)
    for layer in sae.normalisation.place(x).x.unflatten(1, (2, D_MODEL)).unbind(1):
        torch.testing.assert_close(layer.mean(1), torch.zeros(7, dtype=torch.float64), atol=1e-12, rtol=0)
        torch.testing.assert_close(layer.var(1), torch.ones(7, dtype=torch.float64), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["topk", "batch_topk", "matryoshka", "relu"])
def test_aux_k_reconstructs_the_residual_with_dead_latents(name):
    sae = make(name)
    sae.aux_k_coefficient = 0.25
    x, _ = batch(sae)
    dead = torch.zeros(N_LATENTS, dtype=torch.bool)
    dead[[0, 2, 4, 5, 9]] = True
    weights = reference.weights_of(sae)
    pre = reference.pre_activations(sae, weights, x.numpy())
    latents = reference.latents(sae, weights, pre, of_a_batch=True)
    residual = x.numpy() - reference.reconstruction(sae, weights, latents, x.numpy())
    total = 0.0
    for t in range(len(x)):
        largest = sorted([0, 2, 4, 5, 9], key=lambda j, t=t: -pre[t, j])[: D_MODEL // 2]
        total += ((residual[t] - sum(pre[t, j] * weights["W_dec"][j] for j in largest)) ** 2).sum()
    added = sae.objective(x, x, 1.0, dead).loss - sae.objective(x, x, 1.0, NO_DEAD).loss
    assert added.item() == pytest.approx(0.25 * total / len(x), rel=1e-9)


def test_aux_k_moves_dead_latents_alone():
    sae = make("topk")
    x, _ = batch(sae)
    dead = torch.zeros(N_LATENTS, dtype=torch.bool)
    dead[[1, 7]] = True
    sae.aux_k(x, torch.ones_like(x), dead).backward()
    assert (sae.W_dec.grad.abs().sum(1) > 0).tolist() == dead.tolist()


def test_aux_k_leaves_living_latents_to_the_reconstruction():
    """The residual is a constant of the auxiliary loss: rows of living latents get no gradient from it."""
    dead = torch.zeros(N_LATENTS, dtype=torch.bool)
    dead[[1, 7]] = True
    gradients = []
    for coefficient in (0.0, 100.0):
        sae = make("topk")
        sae.aux_k_coefficient = coefficient
        x, _ = batch(sae)
        sae.objective(x, x, 1.0, dead).loss.backward()
        gradients.append(sae.W_dec.grad)
    torch.testing.assert_close(gradients[0][~dead], gradients[1][~dead])
    assert not torch.allclose(gradients[0][dead], gradients[1][dead])


def test_topk_keeps_at_most_k_and_exactly_k_of_positive_ones():
    sae = make("topk")
    positive = torch.rand(20, N_LATENTS, generator=torch.Generator().manual_seed(0)) + 0.1
    assert (sae.activate(positive) > 0).sum(1).tolist() == [K] * 20
    mixed = positive - 0.9
    counts = (sae.activate(mixed) > 0).sum(1)
    assert counts.tolist() == (mixed > 0).sum(1).clamp_max(K).tolist()
    assert (sae.activate(mixed) >= 0).all()


def test_batch_topk_shares_k_among_the_tokens_of_a_batch():
    sae = make("batch_topk")
    strong = torch.rand(20, N_LATENTS, generator=torch.Generator().manual_seed(0)) + 0.1
    strong[:10] *= 100
    counts = (sae.activate_batch(strong) > 0).sum(1)
    assert counts.sum() == K * 20
    assert counts[:10].sum() > counts[10:].sum()


def test_threshold_of_batch_topk_is_the_running_mean_of_the_smallest_kept():
    sae = make("batch_topk")
    sae.threshold.fill_(-1.0)
    smallest = []
    for seed in range(3):
        pre = torch.randn(50, N_LATENTS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        kept = sae.activate_batch(pre)
        smallest.append(kept[kept > 0].min().item())
    expected = smallest[0]
    for value in smallest[1:]:
        expected += 0.01 * (value - expected)
    assert sae.threshold.item() == pytest.approx(expected, rel=1e-12)


def test_keep_largest_keeps_values_in_place():
    values = torch.tensor([[3.0, -1.0, 2.0, 5.0], [-4.0, -3.0, -2.0, -1.0]])
    assert keep_largest(values, 2).tolist() == [[3.0, 0.0, 0.0, 5.0], [0.0, 0.0, -2.0, -1.0]]


def test_initial_weights_are_tied_unit_directions():
    sae = ReLUAutoencoder(Shape(8, 40), l1_coefficient=1.0)
    centre = torch.arange(8.0)
    sae.initialise(centre, torch.Generator().manual_seed(0))
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(40))
    torch.testing.assert_close(sae.W_enc, sae.W_dec.T * (2 * 8 / 40))
    assert torch.equal(sae.b_dec.detach(), centre)
    assert sae.b_enc.abs().sum() == 0


@pytest.mark.parametrize("architecture", [ReLUAutoencoder, GatedAutoencoder])
@pytest.mark.parametrize("n_latents", [64, 2048])
def test_first_reconstructions_are_no_larger_than_the_input(architecture, n_latents):
    sae = architecture(Shape(32, n_latents), l1_coefficient=1.0)
    sae.initialise(torch.zeros(32), torch.Generator().manual_seed(0))
    x = torch.randn(500, 32, generator=torch.Generator().manual_seed(1))
    _, x_hat = sae(x)
    slope = ((x_hat * x).sum() / x.square().sum()).item()
    # Half of the latents fire, each with its part of the input; of 64 random directions the sum varies.
    assert slope == pytest.approx(1.0, abs=0.2 if n_latents == 64 else 0.03)


def test_encoders_of_latents_that_compete_start_with_unit_norm():
    sae = TopKAutoencoder(Shape(8, 40), k=4)
    sae.initialise(torch.zeros(8), torch.Generator().manual_seed(0))
    assert torch.equal(sae.W_enc, sae.W_dec.T)


def test_thresholds_start_at_a_fifth_of_the_bandwidth():
    sae = JumpReLUAutoencoder(Shape(8, 40), l0_coefficient=1.0, bandwidth=0.05)
    sae.initialise(torch.zeros(8), torch.Generator())
    torch.testing.assert_close(sae.threshold, torch.full((40,), 0.01))


def test_constraints_keep_rows_unit_and_gradients_tangent():
    sae = make("relu")
    gradient = torch.randn(sae.W_dec.shape, dtype=torch.float64)
    sae.constrain_gradient(gradient)
    assert (gradient * sae.W_dec).sum(1).abs().max() < 1e-12
    with torch.no_grad():
        sae.W_dec *= 1.7
    sae.constrain_weights()
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(N_LATENTS, dtype=torch.float64))


def test_without_the_constraint_nothing_is_touched():
    sae = make("relu", "crosscoder")
    gradient = torch.randn(sae.W_dec.shape, dtype=torch.float64)
    before, rows = gradient.clone(), sae.W_dec.detach().clone()
    sae.constrain_gradient(gradient)
    sae.constrain_weights()
    assert torch.equal(gradient, before)
    assert torch.equal(sae.W_dec, rows)


def test_a_second_architecture_of_a_name_is_refused():
    with pytest.raises(ValueError, match=r"'relu' is taken by prisma_steps\.sae\.relu"):
        type("Other", (Autoencoder,), {}, name="relu")
    assert registered()["relu"] is ReLUAutoencoder


def test_an_unknown_architecture_is_refused_with_the_known_ones():
    with pytest.raises(
        ValueError, match="'gatd' is not one of batch_topk, gated, jumprelu, matryoshka, neurons, relu"
    ):
        architecture("gatd")


def test_more_latents_than_there_are_cannot_be_kept():
    with pytest.raises(StepError, match=r"k = 11 is more than the dictionary's 10 latents"):
        TopKAutoencoder(Shape(5, 10), k=11)


@pytest.mark.parametrize("prefixes", [[0.5], [0.5, 0.5, 1.0], [0.01, 1.0], [0.5, 1.5], []])
def test_prefixes_must_grow_to_all_latents(prefixes):
    with pytest.raises(StepError, match="must grow, from 1 latent or more to all"):
        MatryoshkaAutoencoder(Shape(5, 10), k=2, prefixes=prefixes)
