"""Fused gradients against autograd's of the same objective."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from prisma_steps.sae import fused as fused_module
from prisma_steps.sae import fused_pass
from prisma_steps.sae.architectures import architecture
from prisma_steps.sae.autoencoder import Autoencoder, Objective, Shape
from prisma_steps.sae.buffers import Buffers
from prisma_steps.sae.fused import fused_gradients
from prisma_steps.sae.fused_pass import FusedGradients
from prisma_steps.sae.optimiser import dictionary_adam
from prisma_steps.threads import in_parallel

D_MODEL, N_LATENTS, N_TOKENS = 33, 77, 50
K = 5
CASES = {
    "relu": ("relu", {"l1_coefficient": 0.3}, {}),
    "relu with AuxK": ("relu", {"l1_coefficient": 0.3, "aux_k_coefficient": 0.5}, {}),
    "relu transcoder": ("relu", {"l1_coefficient": 0.3}, {"d_target": 21}),
    "relu, b_dec not subtracted": ("relu", {"l1_coefficient": 0.3}, {"subtract_b_dec": False}),
    "relu, few": ("relu", {"l1_coefficient": 0.3}, {}),
    "topk": ("topk", {"k": K}, {}),
    "topk, one": ("topk", {"k": 1}, {}),
    "topk, all": ("topk", {"k": N_LATENTS}, {}),
    "topk transcoder": ("topk", {"k": K}, {"d_target": 21}),
    "topk crosscoder": ("topk", {"k": K}, {"n_layers": 2}),
}
#: float32 sums of up to a few hundred numbers, taken in another order.
FLOAT32 = 2e-6
#: bfloat16 keeps 8 significant bits of what is multiplied. A latent that rounding switches on or off changes
#: its own gradient by a whole token's part, one of 25 (ReLU) or 5 (TopK) or so: hence norms over all latents.
BFLOAT16 = {"relu": 0.05, "topk": 0.2}

Found = tuple[Objective, dict[str, torch.Tensor]]


def made(case: str) -> Autoencoder:
    """In general position: no two weights tied, no bias zero."""
    name, settings, shape = CASES[case]
    autoencoder = architecture(name)(Shape(D_MODEL, N_LATENTS, **shape), **settings)
    generator = torch.Generator().manual_seed(0)
    autoencoder.initialise(0.1 * torch.randn(autoencoder.shape.d_out, generator=generator), generator)
    with torch.no_grad():
        autoencoder.W_enc += 0.05 * torch.randn(autoencoder.W_enc.shape, generator=generator)
        autoencoder.b_enc += 0.1 * torch.randn(N_LATENTS, generator=generator)
        if case == "relu, few":  # two standard deviations of what a latent reads of N(0, 1)
            autoencoder.b_enc -= 2 * autoencoder.W_enc.norm(dim=0)
    return autoencoder


def batch(autoencoder: Autoencoder, n: int = N_TOKENS, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, autoencoder.shape.d_in, generator=generator)
    if autoencoder.shape.d_target is None:
        return x, x
    return x, torch.randn(n, autoencoder.shape.d_out, generator=generator)


def fused(autoencoder: Autoencoder, dtype: str = "float32") -> FusedGradients:
    gradients = fused_gradients(autoencoder, dtype)
    if gradients is None:
        pytest.skip(f"this processor has no {dtype} kernels")
    return gradients


def by_autograd(autoencoder: Autoencoder, x: torch.Tensor, y: torch.Tensor, dead: torch.Tensor) -> Found:
    objective = autoencoder.objective(x, y, 0.5, dead)
    parameters = dict(autoencoder.named_parameters())
    gradients = torch.autograd.grad(objective.loss, list(parameters.values()))
    return objective, dict(zip(parameters, gradients, strict=True))


def assert_near(autoencoder: Autoencoder, found: Found, expected: Found, tolerance: float) -> None:
    """Losses, and gradients relative to their norm, but for the decoder's part along its rows."""
    for number in ("loss", "squared_error", "sparsity_loss"):
        wanted = getattr(expected[0], number)
        torch.testing.assert_close(getattr(found[0], number), wanted, rtol=tolerance, atol=1e-7)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        of_fused = found[1][name].float().clone()
        assert of_fused.shape == gradient.shape
        if name == "W_dec":
            autoencoder.constrain_gradient(gradient)
            autoencoder.constrain_gradient(of_fused)
        assert (of_fused - gradient).norm() <= tolerance * gradient.norm(), name


@pytest.fixture(params=[False, True], ids=["all alive", "some dead"])
def dead(request) -> torch.Tensor:
    return torch.arange(N_LATENTS) % 3 == 0 if request.param else torch.zeros(N_LATENTS, dtype=torch.bool)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("n", [N_TOKENS, 1])
def test_float32_equals_autograd(case, n, dead):
    autoencoder = made(case)
    x, y = batch(autoencoder, n)
    expected = by_autograd(autoencoder, x, y, dead)
    found = fused(autoencoder)(x, y, 0.5, dead)
    assert_near(autoencoder, found, expected, FLOAT32)
    assert found[0].firings.equal(expected[0].firings)


def test_relu_goes_both_ways(monkeypatch):
    """The cases above are not all of one kind: half of the latents fire, or 1 in 100."""
    monkeypatch.setattr(fused_module.ReLUGradients, "_sparse_pass", None)
    none = torch.zeros(N_LATENTS, dtype=torch.bool)
    for case, goes in (("relu", nullcontext()), ("relu, few", pytest.raises(TypeError))):
        autoencoder = made(case)
        with goes:
            fused(autoencoder)(*batch(autoencoder), 0.5, none)


@pytest.mark.parametrize("case", CASES)
def test_bfloat16_is_near_autograd(case, dead):
    autoencoder = made(case)
    x, y = batch(autoencoder)
    found = fused(autoencoder, "bfloat16")(x, y, 0.5, dead)
    expected = by_autograd(autoencoder, x, y, dead)
    assert_near(autoencoder, found, expected, BFLOAT16[autoencoder.architecture])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_chunks_of_a_batch_add_up(case, dtype, dead, monkeypatch):
    monkeypatch.setattr(fused_pass, "_CHUNK", 17 * N_LATENTS * 4)  # of 17 tokens in float32, 25 in bfloat16
    autoencoder = made(case)
    x, y = batch(autoencoder)
    gradients = fused(autoencoder, dtype)
    assert len(gradients._chunks(x)) > 1
    tolerance = FLOAT32 if dtype == "float32" else BFLOAT16[autoencoder.architecture]
    assert_near(autoencoder, gradients(x, y, 0.5, dead), by_autograd(autoencoder, x, y, dead), tolerance)


@pytest.mark.parametrize("case", ["relu", "topk"])
def test_nothing_fires_where_every_pre_activation_is_negative(case, dead):
    autoencoder = made(case)
    with torch.no_grad():
        autoencoder.b_enc -= 100
    x, y = batch(autoencoder)
    found = fused(autoencoder)(x, y, 0.5, dead)
    assert_near(autoencoder, found, by_autograd(autoencoder, x, y, dead), FLOAT32)
    assert found[0].firings.sum() == 0


@pytest.mark.parametrize("case", ["relu", "topk"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_smaller_batch_sees_nothing_of_the_larger_one_before(case, dtype):
    autoencoder = made(case)
    none = torch.zeros(N_LATENTS, dtype=torch.bool)
    used, few = fused(autoencoder, dtype), batch(autoencoder, 7, seed=2)
    used(*batch(autoencoder), 0.5, none)
    found, expected = used(*few, 0.5, none), fused(autoencoder, dtype)(*few, 0.5, none)
    assert found[0].loss == expected[0].loss
    assert all(gradient.equal(expected[1][name]) for name, gradient in found[1].items())


@pytest.mark.parametrize("case", ["relu", "topk"])
def test_autoencoders_that_take_turns_share_buffers(case):
    buffers, none = Buffers(), torch.zeros(N_LATENTS, dtype=torch.bool)
    first, second = made(case), made(case)
    with torch.no_grad():
        second.b_enc += 0.3
    for autoencoder in (first, second, first):
        gradients = fused_gradients(autoencoder, "float32", buffers)
        assert gradients is not None
        x, y = batch(autoencoder)
        expected = by_autograd(autoencoder, x, y, none)
        assert_near(autoencoder, gradients(x, y, 0.5, none), expected, FLOAT32)


@pytest.mark.parametrize("case", ["relu", "topk"])
def test_weights_that_torch_changes_are_rounded_anew(case):
    autoencoder, none = made(case), torch.zeros(N_LATENTS, dtype=torch.bool)
    gradients, other = fused(autoencoder, "bfloat16"), made(case)
    with torch.no_grad():
        other.W_enc.mul_(1.5)
        other.W_dec.copy_(other.W_dec.flip(0))
    autoencoder.load_state_dict(other.state_dict())
    x, y = batch(autoencoder)
    assert gradients(x, y, 0.5, none)[0].loss == fused(other, "bfloat16")(x, y, 0.5, none)[0].loss


@pytest.mark.parametrize("case", ["relu", "topk"])
def test_weights_that_the_optimiser_changes_are_followed(case):
    autoencoder, none = made(case), torch.zeros(N_LATENTS, dtype=torch.bool)
    gradients = fused(autoencoder, "bfloat16")
    optimiser = dictionary_adam(autoencoder, gradients.copies)
    x, y = batch(autoencoder)
    optimiser.update(gradients(x, y, 0.5, none)[1], 0.05)
    found = gradients(x, y, 0.5, none)[0].loss
    assert found == fused(autoencoder, "bfloat16")(x, y, 0.5, none)[0].loss


@pytest.mark.parametrize("case", ["relu", "topk"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_training_in_either_precision_reaches_the_same_fvu(planted, case, dtype):
    """The measure of bfloat16 that counts: after 400 steps FVU is that of autograd in float32, within 2 %."""
    x = planted.tokens
    variance = (x - x.mean(0)).square().sum(1).mean().item()
    fvu = []
    for fast in (True, False):
        name, settings, _ = CASES[case]
        autoencoder = architecture(name)(Shape(32, 96), **settings | ({"k": 3} if name == "topk" else {}))
        autoencoder.initialise(x.mean(0), torch.Generator().manual_seed(0))
        fvu.append(_trained(autoencoder, x, fused(autoencoder, dtype) if fast else None) / variance)
    assert fvu[0] < 0.1
    assert fvu[0] == pytest.approx(fvu[1], rel=0.02)


def _trained(autoencoder: Autoencoder, tokens: torch.Tensor, gradients: FusedGradients | None) -> float:
    """‖x − x̂‖² over all tokens after 400 steps of fused gradients, or of autograd's."""
    none = torch.zeros(autoencoder.shape.n_latents, dtype=torch.bool)
    optimiser = dictionary_adam(autoencoder, gradients.copies if gradients else {})
    for step in range(400):
        x = tokens[torch.randint(len(tokens), (256,), generator=torch.Generator().manual_seed(step))]
        found = gradients(x, x, 0.5, none) if gradients else by_autograd(autoencoder, x, x, none)
        optimiser.update(found[1], 3e-3)
    with torch.no_grad():
        return (autoencoder(tokens)[1] - tokens).square().sum(1).mean().item()


@pytest.mark.parametrize(
    ("name", "settings", "shape"),
    [
        ("gated", {"l1_coefficient": 1.0}, {}),
        ("relu", {"l1_coefficient": 1.0}, {"unit_norm": False}),
        ("relu", {"l1_coefficient": 1.0}, {"n_layers": 2}),
        ("topk", {"k": K}, {"d_target": 21, "skip": True}),
    ],
)
def test_there_is_no_fast_way_for_what_it_would_compute_otherwise(name, settings, shape):
    assert (
        fused_gradients(architecture(name)(Shape(D_MODEL, N_LATENTS, **shape), **settings), "float32") is None
    )


def test_there_is_no_fast_way_in_float32_that_means_less():
    matmul = torch.backends.mkldnn.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        assert fused_gradients(made("relu"), "float32") is None
    finally:
        matmul.fp32_precision = before


@pytest.mark.parametrize("case", ["relu", "topk"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_kernels_give_the_same_bits_in_one_thread_and_two(case, dtype, monkeypatch):
    """oneDNN's products are held to one thread: they may be split otherwise among two."""

    def in_two(*arguments, **options):
        torch.set_num_threads(2)
        in_parallel(*arguments, **options)
        torch.set_num_threads(1)

    autoencoder, none = made(case), torch.zeros(N_LATENTS, dtype=torch.bool)
    x, y = batch(autoencoder)
    alone = fused(autoencoder, dtype)(x, y, 0.5, none)
    for module in (fused_module, fused_pass):
        monkeypatch.setattr(module, "in_parallel", in_two)
    together = fused(autoencoder, dtype)(x, y, 0.5, none)
    assert together[0].loss == alone[0].loss
    assert all(gradient.equal(alone[1][name]) for name, gradient in together[1].items())
