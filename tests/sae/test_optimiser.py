"""Adam for dictionaries against its formulas in float64, and what it promises on top."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from prisma_steps.sae.architectures import architecture
from prisma_steps.sae.autoencoder import Autoencoder, Shape
from prisma_steps.sae.optimiser import CompiledAdam, DictionaryAdam, TorchAdam, dictionary_adam

D_MODEL, N_LATENTS, N_STEPS = 13, 37, 5
SETTINGS = {"relu": {"l1_coefficient": 1.0}, "gated": {"l1_coefficient": 1.0}, "topk": {"k": 3}}
#: Gradients so small that they are not clipped, and so large that they are.
SCALES = [1e-3, 10.0]


def made(name: str = "relu", **shape) -> Autoencoder:
    autoencoder = architecture(name)(Shape(D_MODEL, N_LATENTS, **shape), **SETTINGS[name])
    autoencoder.initialise(torch.full((autoencoder.shape.d_out,), 0.1), torch.Generator().manual_seed(0))
    return autoencoder


def optimiser_of(kind: type, autoencoder: Autoencoder) -> DictionaryAdam:
    return CompiledAdam(autoencoder, {}) if kind is CompiledAdam else TorchAdam(autoencoder)


@pytest.fixture(params=[CompiledAdam, TorchAdam])
def kind(request) -> type:
    return request.param


def drawn_gradients(autoencoder: Autoencoder, step: int, scale: float) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {
        name: scale * torch.randn(parameter.shape, generator=generator)
        for name, parameter in autoencoder.named_parameters()
    }


def weights_of(autoencoder: Autoencoder) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in autoencoder.named_parameters()}


class Reference:
    """The same in float64 by the formulas of the paper, weights as arrays."""

    def __init__(self, autoencoder: Autoencoder) -> None:
        self.unit_norm = autoencoder.shape.unit_norm
        self.weights = {name: weight.double().numpy() for name, weight in weights_of(autoencoder).items()}
        self.means = {name: np.zeros_like(weight) for name, weight in self.weights.items()}
        self.squares = {name: np.zeros_like(weight) for name, weight in self.weights.items()}
        self.steps = 0

    def update(self, gradients: dict[str, torch.Tensor], learning_rate: float) -> float:
        slopes = {name: gradient.double().numpy() for name, gradient in gradients.items()}
        decoder = self.weights["W_dec"]
        if self.unit_norm:
            along = (slopes["W_dec"] * decoder).sum(1, keepdims=True)
            slopes["W_dec"] = slopes["W_dec"] - along * decoder
        norm = math.sqrt(sum((slope**2).sum() for slope in slopes.values()))
        self.steps += 1
        for name, slope in slopes.items():
            slope = slope * min(1.0, 1.0 / (norm + 1e-6))
            self.means[name] = 0.9 * self.means[name] + 0.1 * slope
            self.squares[name] = 0.999 * self.squares[name] + 0.001 * slope**2
            mean = self.means[name] / (1 - 0.9**self.steps)
            square = self.squares[name] / (1 - 0.999**self.steps)
            self.weights[name] = self.weights[name] - learning_rate * mean / (np.sqrt(square) + 1e-8)
        if self.unit_norm:
            self.weights["W_dec"] /= np.linalg.norm(self.weights["W_dec"], axis=1, keepdims=True)
        return norm


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("relu", {}),
        ("relu", {"unit_norm": False}),
        ("gated", {}),
        ("topk", {"d_target": 7, "skip": True}),
        ("topk", {"n_layers": 2}),
    ],
)
def test_steps_are_those_of_the_formulas(kind, name, shape, scale):
    autoencoder = made(name, **shape)
    optimiser, reference = optimiser_of(kind, autoencoder), Reference(autoencoder)
    for step in range(N_STEPS):
        gradients = drawn_gradients(autoencoder, step, scale)
        learning_rate = 1e-2 / (1 + step)
        expected = reference.update(gradients, learning_rate)
        assert optimiser.update(gradients, learning_rate) == pytest.approx(expected, rel=1e-6)
    for weight_name, weight in weights_of(autoencoder).items():
        # Steps of 1e-2 in float32; where a gradient is nearly 0 its rounding shows in mean / root of square.
        np.testing.assert_allclose(weight, reference.weights[weight_name], rtol=1e-5, atol=2e-6)


def test_bfloat16_gradients_are_read_as_they_are(kind):
    autoencoder, other = made(), made()
    optimisers = optimiser_of(kind, autoencoder), optimiser_of(kind, other)
    for step in range(2):
        narrow = {n: g.bfloat16() for n, g in drawn_gradients(autoencoder, step, 1.0).items()}
        norms = (
            optimisers[0].update(narrow, 1e-2),
            optimisers[1].update({name: gradient.float() for name, gradient in narrow.items()}, 1e-2),
        )
        assert norms[0] == norms[1]
    for name, weight in weights_of(autoencoder).items():
        assert weight.equal(weights_of(other)[name])


def test_decoder_rows_end_at_unit_norm(kind):
    autoencoder = made()
    optimiser_of(kind, autoencoder).update(drawn_gradients(autoencoder, 0, 1.0), 0.5)
    torch.testing.assert_close(autoencoder.W_dec.norm(dim=1), torch.ones(N_LATENTS), rtol=1e-6, atol=0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_norm_that_is_no_number_is_returned(kind, bad):
    autoencoder = made()
    gradients = drawn_gradients(autoencoder, 0, 1.0)
    gradients["b_enc"][3] = bad
    assert not math.isfinite(optimiser_of(kind, autoencoder).update(gradients, 1e-3))


def test_rounded_copies_follow():
    autoencoder = made()
    copies = {
        "W_enc": autoencoder.W_enc.detach().T.to(torch.bfloat16),
        "W_dec": autoencoder.W_dec.detach().to(torch.bfloat16),
    }
    dictionary_adam(autoencoder, copies).update(drawn_gradients(autoencoder, 0, 1.0), 1e-2)
    assert copies["W_enc"].equal(autoencoder.W_enc.detach().T.to(torch.bfloat16))
    assert copies["W_dec"].equal(autoencoder.W_dec.detach().to(torch.bfloat16))
    assert not copies["W_dec"].equal(made().W_dec.detach().to(torch.bfloat16))


def test_a_restored_state_goes_on_bit_for_bit(kind):
    straight, stopped = made(), made()
    optimiser = optimiser_of(kind, straight)
    for step in range(3):
        if step == 2:
            state, weights = optimiser.state(), straight.state_dict()
            stopped.load_state_dict({name: weight.clone() for name, weight in weights.items()})
        optimiser.update(drawn_gradients(straight, step, 1.0), 1e-2)
    resumed = optimiser_of(kind, stopped)
    resumed.restore(state)
    resumed.update(drawn_gradients(stopped, 2, 1.0), 1e-2)
    for name, weight in weights_of(straight).items():
        assert weight.equal(weights_of(stopped)[name])


def test_reset_forgets_the_gradients_of_those_latents_alone(kind):
    autoencoder = made("gated")
    optimiser = optimiser_of(kind, autoencoder)
    optimiser.update(drawn_gradients(autoencoder, 0, 1.0), 1e-2)
    optimiser.reset(torch.tensor([3, 30]))
    before = weights_of(autoencoder)
    nothing = {name: torch.zeros_like(weight) for name, weight in before.items()}
    optimiser.update(nothing, 1e-2)
    for name, weight in weights_of(autoencoder).items():
        if name == "b_dec":
            assert (weight != before[name]).all()
            continue
        moved = (weight - before[name]).abs()
        of_latent = (moved if moved.ndim == 1 else moved.sum(0 if name == "W_enc" else 1)) > 1e-6
        assert of_latent.nonzero().flatten().tolist() == [j for j in range(N_LATENTS) if j not in (3, 30)]


def test_any_number_of_threads_gives_the_same_bits():
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        autoencoder = made()
        optimiser = CompiledAdam(autoencoder, {})
        for step in range(3):
            optimiser.update(drawn_gradients(autoencoder, step, 1.0), 1e-2)
        found.append(weights_of(autoencoder))
    torch.set_num_threads(1)
    assert all(weight.equal(found[1][name]) for name, weight in found[0].items())
