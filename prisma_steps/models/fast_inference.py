"""Fast forward passes of frozen models: the same modules, hooks and outputs, other kernels.

Three things cost most of what a forward pass on a CPU can do without:

- PyTorch multiplies float32 matrices with MKL. On AMD processors with AVX-512, MKL leaves half of it unused;
  oneDNN, which PyTorch also brings along, does not. Without AVX-512, MKL is the faster by about a tenth.
- glibc gives the memory of every large temporary back to the kernel, which hands it out again page by page.
- Three temporaries and three passes over them for one QuickGELU.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import QuickGELUActivation

from prisma_steps.models.table_kernels import all_numbers, looked_up
from prisma_steps.precision import ComputeDtype, has_bfloat16


class InferenceOnlyError(RuntimeError):
    """What a model made for inference cannot do, or not as precisely as it says."""


def for_inference(model: nn.Module, dtype: ComputeDtype) -> nn.Module:
    """A frozen copy of a model that computes in ``dtype``, and fast on a CPU.

    float32 differs from the model's own output by rounding, in the sixth digit. bfloat16 rounds weights and
    activations to 8 significant bits; sums are in float32, in matrix products as in softmax and LayerNorm.
    Without instructions for it, a processor computes in float32 and rounds, no faster than in float32.

    The copy shares in float32 every weight with the model, which stays as it is, and takes half the model's
    memory in bfloat16. Hooks of the model are copied; the copy has the same modules by name and takes others.
    On a GPU only the dtype is set, and PyTorch's settings (TF32 among them) are left alone.
    """
    memo: dict[int, object] = {id(buffer): buffer for buffer in model.buffers()}
    for weight in model.parameters():
        memo[id(weight)] = nn.Parameter(weight.detach().to(getattr(torch, dtype)), requires_grad=False)
    made = copy.deepcopy(model, memo).eval()
    on_cpu = all(weight.device.type == "cpu" for weight in made.parameters())
    if on_cpu and torch.backends.mkldnn.is_available():
        for module in made.modules():
            # Hooks and weights stay; only how the module computes changes.
            module.__class__ = _FASTER.get(type(module), type(module))
    return made


@cache
def _has_avx512() -> bool:
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512")


class FastLinear(nn.Linear):
    """A linear layer multiplied by oneDNN where it is faster, in its own precision whatever is offered."""

    def forward(self, input: Float[Tensor, "*batch in_features"]) -> Float[Tensor, "*batch out_features"]:
        """``input`` Wᵀ + b."""
        _check(input, self.weight)
        weights = _widened(input, self.weight, self.bias)
        return _multiplied(*weights).to(input.dtype)


def _multiplied(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if _has_avx512():
        return torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")
    return F.linear(input, weight, bias)


class _WidenedConv2d(nn.Conv2d):
    """A convolution that computes bfloat16 in float32 where the processor cannot."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(*_widened(input, weight, bias)).to(input.dtype)


class _WidenedConv3d(nn.Conv3d):
    """A convolution that computes bfloat16 in float32 where the processor cannot."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(*_widened(input, weight, bias)).to(input.dtype)


class FastQuickGELU(QuickGELUActivation):
    """x · sigmoid(1.702 x), to the bit as ``transformers`` computes it.

    In bfloat16 it is looked up in a table of its 65,536 values; else it takes one temporary instead of three.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Leaves ``input`` as it is: a hook may hold it."""
        if input.dtype is torch.bfloat16 and input.is_contiguous():
            return looked_up(input, _quick_gelu_table())
        return _quick_gelu(input)


def _quick_gelu(input: Tensor) -> Tensor:
    return (1.702 * input).sigmoid_().mul_(input)


@cache
def _quick_gelu_table() -> Tensor:
    return _quick_gelu(all_numbers())


_FASTER: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: FastLinear,
    nn.Conv2d: _WidenedConv2d,
    nn.Conv3d: _WidenedConv3d,
    QuickGELUActivation: FastQuickGELU,
}


def matmul(
    left: Float[Tensor, "*batch n m"], right: Float[Tensor, "*batch m k"]
) -> Float[Tensor, "*batch n k"]:
    """``left`` · ``right`` on a CPU, for attention: PyTorch's own may take 20 times as long in bfloat16."""
    left_, right_ = _widened(left, right)
    return torch.matmul(left_, right_).to(left.dtype)


def _widened(*tensors: Tensor | None) -> list[Any]:
    """The tensors, in float32 if they are bfloat16 and the processor has no instructions for that."""
    if has_bfloat16():
        return list(tensors)
    return [
        tensor if tensor is None or tensor.dtype is not torch.bfloat16 else tensor.float()
        for tensor in tensors
    ]


def _check(input: Tensor, weight: Tensor) -> None:
    """Refuse what oneDNN would compute otherwise than it was asked to.

    Raises:
        InferenceOnlyError: when a gradient is asked for, dtypes are mixed, or float32 is set to mean less.
    """
    if torch.is_grad_enabled() and input.requires_grad:
        raise InferenceOnlyError(
            "a gradient was asked for through a model that was made for inference. Take the gradient through "
            "the model itself, or run this one under torch.no_grad()."
        )
    if input.dtype != weight.dtype:
        raise InferenceOnlyError(
            f"a linear layer in {weight.dtype} was given {input.dtype}. A hook must return the dtype that it "
            "was given."
        )
    precision = torch.backends.mkldnn.matmul.fp32_precision  # pyright: ignore[reportAttributeAccessIssue]
    if input.dtype is torch.float32 and precision not in ("none", "ieee"):
        raise InferenceOnlyError(
            f"float32 was asked for, but torch.backends.mkldnn.matmul.fp32_precision is {precision!r}, which "
            "rounds products to fewer digits. Set it to 'ieee', or ask for bfloat16."
        )
