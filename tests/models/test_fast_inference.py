from __future__ import annotations

import copy
import platform
import resource
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModel, Dinov2Config, Dinov2Model, ViTConfig, ViTModel

from prisma_steps.memory import reused_memory
from prisma_steps.models import fast_inference
from prisma_steps.models.fast_inference import (
    FastLinear,
    FastQuickGELU,
    InferenceOnlyError,
    for_inference,
    matmul,
)
from prisma_steps.models.table_kernels import all_numbers

SHAPE = {
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 64,
}
MODELS = {
    "clip": lambda: CLIPVisionModel(CLIPVisionConfig(**SHAPE, intermediate_size=256)),
    "dinov2": lambda: Dinov2Model(Dinov2Config(**SHAPE, mlp_ratio=4)),
    "vit": lambda: ViTModel(ViTConfig(**SHAPE, intermediate_size=256), add_pooling_layer=False),
}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    made = MODELS[request.param]().eval()
    with torch.no_grad():
        for weight in made.parameters():  # fresh models have weights so small that blocks hardly matter
            weight += 0.1 * torch.randn_like(weight)
    return made


@pytest.fixture(params=[False, True], ids=["torch", "onednn"])
def _kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to multiply, whichever is the faster on this processor."""
    monkeypatch.setattr(fast_inference, "_has_avx512", lambda: request.param)


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def output(model: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    return model(pixels.to(next(model.parameters()).dtype)).last_hidden_state


def linears(model: nn.Module) -> list[nn.Linear]:
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """‖found − expected‖ / ‖expected‖."""
    return ((found.float() - expected).norm() / expected.norm()).item()


@pytest.mark.usefixtures("_kernel")
def test_float32_is_the_model_up_to_rounding(model, pixels):
    fast = for_inference(model, "float32")
    assert all(type(module) is FastLinear for module in linears(fast)) and len(linears(fast)) == 12
    # A product of 64 or 256 terms is off by about 1e-7; two blocks add up to a few times that.
    assert 0 <= error(output(fast, pixels), output(model, pixels)) < 2e-6


def test_bfloat16_is_the_model_up_to_eight_bits(model, pixels):
    fast = for_inference(model, "bfloat16")
    assert {weight.dtype for weight in fast.parameters()} == {torch.bfloat16}
    found = output(fast, pixels)
    assert found.dtype is torch.bfloat16
    # Eight significant bits: a rounding is off by up to 2⁻⁸ = 0.004 of the value. Some ten of them in each of
    # two blocks, of random signs, make sqrt(20) · 0.004 / sqrt(3) = 0.01; weights are rounded as well.
    assert 1e-4 < error(found, output(model, pixels)) < 0.03


def test_bfloat16_is_rounded_no_more_than_by_pytorch(model, pixels):
    expected = output(model, pixels)
    plain = error(output(copy.deepcopy(model).bfloat16(), pixels), expected)
    assert error(output(for_inference(model, "bfloat16"), pixels), expected) < 1.3 * plain


@pytest.mark.usefixtures("_kernel")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_two_runs_give_the_same_bits(model, pixels, dtype):
    first, second = (output(for_inference(model, dtype), pixels) for _ in range(2))
    fast = for_inference(model, dtype)
    with reused_memory():
        assert torch.equal(first, second) and torch.equal(output(fast, pixels), first)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_model_stays_as_it_was(model, pixels, dtype):
    before, state = output(model, pixels), copy.deepcopy(model.state_dict())
    types = [type(module) for module in model.modules()]
    output(for_inference(model, dtype), pixels)
    assert [type(module) for module in model.modules()] == types
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(weight.requires_grad for weight in model.parameters())
    assert torch.equal(output(model, pixels), before)


def test_float32_takes_no_memory_for_weights(model):
    fast = for_inference(model, "float32")
    own, shared = (dict(each.named_parameters()) for each in (fast, model))
    assert own.keys() == shared.keys()
    assert all(own[name].data_ptr() == weight.data_ptr() for name, weight in shared.items())
    assert not any(weight.requires_grad for weight in own.values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_hooks_see_every_linear_and_what_they_write_changes_the_output(model, pixels, dtype):
    fast = for_inference(model, dtype)
    before, plain = output(fast, pixels), output(model, pixels)
    for name, module in fast.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        expected: list[torch.Tensor] = []
        seen: list[torch.Tensor] = []
        own = model.get_submodule(name).register_forward_hook(
            lambda _, args, out, to=expected: to.extend([*args, out])
        )
        output(model, pixels)
        own.remove()
        reads = [
            module.register_forward_pre_hook(lambda _, args, to=seen: to.extend(args)),
            module.register_forward_hook(lambda _, args, out, to=seen: to.append(out)),  # noqa: ARG005
        ]
        assert torch.equal(output(fast, pixels), before), "reading changes nothing"
        assert len(seen) == 2
        limit = 1e-5 if dtype == "float32" else 0.05
        assert all(error(*pair) < limit for pair in zip(seen, expected, strict=True))
        for read in reads:
            read.remove()
        for write in (
            module.register_forward_pre_hook(lambda _, args: (args[0] + 1,)),
            module.register_forward_hook(lambda _, args, out: out * 2 + 1),  # noqa: ARG005
        ):
            assert error(output(fast, pixels), plain) > 0.01 or "k_proj" in name or "key" in name
            assert not torch.equal(output(fast, pixels), before)
            write.remove()
    assert torch.equal(output(fast, pixels), before)


def test_hooks_that_the_model_has_are_copied(model, pixels):
    calls = []
    linears(model)[0].register_forward_hook(lambda *_: calls.append(1))
    output(for_inference(model, "float32"), pixels)
    assert calls == [1]


@pytest.mark.usefixtures("_kernel")
def test_a_linear_layer_is_what_pytorch_computes():
    torch.manual_seed(0)
    for bias in (True, False):
        layer = nn.Linear(7, 3, bias=bias)
        fast = for_inference(layer, "float32")
        for x in (torch.randn(2, 5, 7), torch.randn(7), torch.randn(0, 7), torch.randn(2, 7, 5).mT):
            torch.testing.assert_close(fast(x), layer(x), rtol=1e-6, atol=1e-6)


def rounded_once(found: torch.Tensor, exact: torch.Tensor) -> bool:
    """Whether bfloat16 values are the nearest to exact ones, but where float32 sums lie on the other side."""
    return found.dtype is torch.bfloat16 and (found == exact.bfloat16()).double().mean() > 0.99


@pytest.mark.usefixtures("_kernel")
def test_bfloat16_products_are_summed_in_float32_and_rounded_once(pixels):
    torch.manual_seed(0)
    x, linear, conv = torch.randn(64, 512).bfloat16(), nn.Linear(512, 64), nn.Conv2d(3, 16, 8, 8)
    fast = for_inference(linear, "bfloat16")
    product = x.double() @ fast.weight.double().mT
    assert rounded_once(matmul(x, fast.weight.mT), product)
    assert rounded_once(fast(x), product + fast.bias.double())
    fast, x = for_inference(conv, "bfloat16"), pixels.bfloat16()
    assert rounded_once(fast(x), F.conv2d(x.double(), fast.weight.double(), fast.bias.double(), stride=8))


@pytest.mark.parametrize("laid_out", ["in one piece", "transposed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_quick_gelu_is_the_same_to_the_bit_and_leaves_its_input(dtype, laid_out):
    every = all_numbers().view(256, 256)  # NaN and infinity among them
    x = (every if laid_out == "in one piece" else every.T).to(dtype)
    kept = x.clone()
    expected = x * torch.sigmoid(1.702 * x)
    assert expected.isnan().sum() > 200
    torch.testing.assert_close(FastQuickGELU()(x), expected, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(x, kept, rtol=0, atol=0, equal_nan=True)


def test_a_gradient_is_refused(model, pixels):
    with pytest.raises(InferenceOnlyError, match="a gradient was asked for"):
        for_inference(model, "float32")(pixels.requires_grad_())


def test_a_dtype_that_a_hook_mixes_in_is_refused(model, pixels):
    fast = for_inference(model, "bfloat16")
    linears(fast)[0].register_forward_pre_hook(lambda _, args: (args[0].float(),))
    with pytest.raises(InferenceOnlyError, match=r"in torch.bfloat16 was given torch.float32"):
        output(fast, pixels)


@pytest.fixture
def precision():
    before = torch.get_float32_matmul_precision()
    yield torch.set_float32_matmul_precision
    torch.set_float32_matmul_precision(before)
    torch.backends.mkldnn.matmul.fp32_precision = "none"


def test_float32_that_is_set_to_mean_less_is_refused(model, pixels, precision):
    fast, half = for_inference(model, "float32"), for_inference(model, "bfloat16")
    precision("medium")
    with pytest.raises(InferenceOnlyError, match="fp32_precision is 'bf16'"):
        output(fast, pixels)
    output(half, pixels)
    precision("highest")
    output(fast, pixels)


def resident() -> int:
    """Bytes of memory that the process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="memory is not glibc's")
def test_memory_is_reused_within_and_given_back_after():
    large = torch.zeros(2**24)
    faults = []
    with reused_memory():
        for _ in range(20):  # something small may come to lie in what was freed
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            large + 1
            faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
        within = resident()
    assert min(faults) < large.nbytes / resource.getpagesize() / 2
    assert within - resident() > 0.9 * large.nbytes
