"""The head as a linear map of the last residual stream: each norm's scale is kept as the run has it.

With its scale frozen a LayerNorm is affine, and so is everything from the last block to the logits of a model
whose head is: each logit is a direction at every token, times the stream, plus constants (Elhage et al. 2021,
transformer-circuits.pub/2021/framework, on direct logit attribution). The directions are gradients through
the model's own code, whatever it pools.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from prisma_steps.models.heads import ZeroShotHead
from prisma_steps.models.hooked import HookedViT
from prisma_steps.step import StepError


@dataclass(frozen=True)
class Readout:
    """A logit of every image as an affine function of its last residual stream.

    Attributes:
        value: the logit (or difference of two).
        direction: what a token of the stream is multiplied by; 0 where the head does not read it.
        norm_bias: what the bias of the final norm adds, at every token where it is of tokens of the sequence,
            else once (``pooled``).
        head_bias: what the bias of the head adds.
    """

    value: Float[Tensor, " image"]
    direction: Float[Tensor, "image token d_model"]
    norm_bias: Float[Tensor, "image normed_token"]
    head_bias: Float[Tensor, " image"]


class _FixedLength(nn.Module):
    """A zero-shot head that divides an image's embedding by its length, taken for a constant."""

    def __init__(self, head: ZeroShotHead) -> None:
        super().__init__()
        self.head = head
        self.out_features = head.out_features

    def forward(self, returned: Any) -> Float[Tensor, "image class"]:
        image = self.head.embedding(returned)
        length = image.norm(dim=-1, keepdim=True).detach()
        return self.head.scale * (image / length) @ self.head.text.T + self.head.bias


@dataclass
class _Normed:
    """What a frozen norm returned, to differentiate by."""

    outputs: list[Tensor] = field(default_factory=list)


def read_out(
    vit: HookedViT,
    resid: Float[Tensor, "image token d_model"],
    plus: Int[Tensor, " image"],
    minus: Int[Tensor, " image"] | None = None,
) -> Readout:
    """The logit of class ``plus`` (less that of ``minus``) of every image, as a function of its last stream.

    Raises:
        StepError: when the final norm is no LayerNorm, whose scale alone can be frozen.
    """
    head = _FixedLength(vit.head) if isinstance(vit.head, ZeroShotHead) else vit.head
    linear = HookedViT(vit.model, head, vit.class_names, vit.preprocessing)
    stream = resid.detach().requires_grad_()
    with torch.enable_grad(), _frozen(vit.final_norm) as normed:
        logits = linear.forward_from(vit.n_layers, stream)
        value = difference(logits, plus, minus)
        # A norm that lies on no way to the logits has the gradient None.
        direction, *at_norm = torch.autograd.grad(value.sum(), [stream, *normed.outputs], allow_unused=True)
    return Readout(
        value.detach(),
        direction,
        _norm_bias(vit.final_norm, at_norm, len(resid)),
        _head_bias(vit, logits.detach(), plus, minus),
    )


def difference(
    logits: Float[Tensor, "image class"], plus: Int[Tensor, " image"], minus: Int[Tensor, " image"] | None
) -> Float[Tensor, " image"]:
    """The logit of one class of every image, less that of another where one is given."""
    value = logits.gather(1, plus[:, None])[:, 0]
    return value if minus is None else value - logits.gather(1, minus[:, None])[:, 0]


@contextmanager
def _frozen(norm: nn.Module | None) -> Iterator[_Normed]:
    """Have a norm take its scale for a constant, and keep what it returns."""
    normed = _Normed()
    if norm is None:
        yield normed
        return

    def hook(_module: nn.Module, args: tuple[Tensor, ...], _output: Tensor) -> Tensor:
        output = with_scale_of(norm, args[0], args[0].detach()) + norm.get_parameter("bias")
        normed.outputs.append(output)
        return output

    handle = norm.register_forward_hook(hook)
    try:
        yield normed
    finally:
        handle.remove()


def with_scale_of(
    norm: nn.Module, part: Float[Tensor, "*batch d_model"], whole: Float[Tensor, "*batch d_model"]
) -> Float[Tensor, "*batch d_model"]:
    """What a part contributes to a LayerNorm of the whole, its bias apart: a linear function of the part.

    Raises:
        StepError: for another norm.
    """
    if not isinstance(norm, nn.LayerNorm):
        raise StepError(f"the norm is {type(norm).__name__}, and only a LayerNorm's scale can be frozen")
    scale = (whole.var(-1, unbiased=False, keepdim=True) + norm.eps).rsqrt()
    return (part - part.mean(-1, keepdim=True)) * scale * norm.weight


def _norm_bias(
    norm: nn.Module | None, gradients: Sequence[Tensor | None], n_images: int
) -> Float[Tensor, "image normed_token"]:
    found = [gradient for gradient in gradients if gradient is not None]
    if norm is None or not found:
        return torch.zeros(n_images, 1, dtype=torch.float64)
    (gradient,) = found
    added = gradient.double() @ norm.get_parameter("bias").double()
    return added if added.ndim == 2 else added[:, None]


def _head_bias(
    vit: HookedViT, logits: Tensor, plus: Int[Tensor, " image"], minus: Int[Tensor, " image"] | None
) -> Float[Tensor, " image"]:
    bias = getattr(vit.unembedding, "bias", None)
    every = torch.zeros_like(logits) if bias is None else bias.detach().expand_as(logits)
    return difference(every.double(), plus, minus)
