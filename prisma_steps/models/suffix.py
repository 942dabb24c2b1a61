"""The rest of a model, from the middle of a block on, of which only what its output needs is computed."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from prisma_steps.models.families import kind_of
from prisma_steps.models.hooked import HookedViT
from prisma_steps.models.sites import SiteKey, Tap

#: Families whose attention is softmax(q kᵀ / √d_head) v of what their projections return, and no more:
#: no rotation, no bias of positions, no norm of queries and keys, no bias outside of the projections.
_PLAIN_ATTENTION = frozenset(
    ["toy_vit", "vit", "deit", "vit_msn", "ijepa", "clip_vision_model", "siglip_vision_model"]
) | {"dinov2", "dinov2_with_registers", "vivit"}


class Suffix:
    """What follows in a frozen model from the residual stream before a block, or within it.

    Where the output reads the first token alone (a head on CLS) and attention is plain, the last block is
    computed for that token alone: keys and values of all tokens, one query, one row of the MLP.

    Attributes:
        model: the whole model.
        shape: [(frame,) channel, row, column] of the input.
        only_first_token: whether the last block is computed for the first token alone.
    """

    def __init__(self, model: HookedViT, shape: Sequence[int] | None = None) -> None:
        """Find out what the output of ``model`` reads.

        Args:
            model: in evaluation mode. Its hooks are not seen by what is computed for one token alone.
            shape: [(frame,) channel, row, column] of the input; ``input_shape`` if None.
        """
        self.model, self.shape = model, tuple(shape or model.input_shape)
        self._after_mid = _mlp_parts(model, shape) if "attn_out" in model.sites else None
        self.only_first_token = kind_of(model.model) in _PLAIN_ATTENTION and _reads_first_token(model, shape)

    def from_pre(
        self, layer: int, resid_pre: Float[Tensor, "image token d_model"]
    ) -> Float[Tensor, "image class"]:
        """The output that follows from the stream before block ``layer``; ``n_layers`` is the end."""
        return self.model.run_blocks(self._blocks(layer), resid_pre, self.shape)

    def from_mid(
        self, layer: int, resid_mid: Float[Tensor, "image token d_model"]
    ) -> Float[Tensor, "image class"]:
        """The output that follows from the stream between attention and MLP of block ``layer``."""
        if self._after_mid is None:
            # The stream before the block is the one written over.
            patched: dict[SiteKey, Tap] = {("resid_mid", layer): lambda _: resid_mid}
            return self.model.forward_from(layer, resid_mid, patched, self.shape)
        if self.only_first_token and layer == self.model.n_layers - 1:
            resid_mid = resid_mid[:, :1]
        return self.model.run_blocks(
            [self._after_mid[layer], *self._blocks(layer + 1)], resid_mid, self.shape
        )

    def _blocks(self, layer: int) -> list[nn.Module]:
        blocks = list(self.model.blocks[layer:])
        if blocks and self.only_first_token and self._after_mid is not None:
            blocks[-1] = _ForFirstToken(self.model, self._after_mid[-1])
        return blocks


def _reads_first_token(model: HookedViT, shape: Sequence[int] | None) -> bool:
    """Whether the output is the same when the stream behind the last block has no token but the first."""
    n_tokens = len(model.token_coords(shape)["token_kind"])
    generator = torch.Generator().manual_seed(0)
    stream = torch.randn(2, n_tokens, model.d_model, generator=generator).to(model.device, model.dtype)
    whole, first = (model.run_blocks([], some, shape).float() for some in (stream, stream[:, :1]))
    # Other tokens of N(0, 1) would change the output by more than rounding.
    return torch.allclose(whole, first, rtol=1e-2, atol=1e-3)


class _NoAttention(nn.Module):
    """Adds nothing to the stream, in the form in which a block's attention returns what it adds."""

    def __init__(self, in_tuple: bool) -> None:
        super().__init__()
        self._in_tuple = in_tuple

    def forward(self, hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Any:
        nothing = hidden_states.new_zeros(1, 1, 1)
        return (nothing, None) if self._in_tuple else nothing


def _mlp_parts(model: HookedViT, shape: Sequence[int] | None) -> list[nn.Module]:
    """Each block without attention: of the stream in its middle it makes the one behind it."""
    name = model.family.block.attention.partition(".")[0]
    returned: list[Any] = []
    handle = getattr(model.blocks[0], name).register_forward_hook(
        lambda _module, _args, output: returned.append(output)
    )
    n_tokens = len(model.token_coords(shape)["token_kind"])
    blank = torch.zeros(1, n_tokens, model.d_model, device=model.device, dtype=model.dtype)
    try:
        model.read_from(0, blank, ["resid_post"], shape=shape)
    finally:
        handle.remove()
    without = _NoAttention(isinstance(returned[0], tuple))
    return [_with(block, {name: without}, model.family.block.ln1) for block in model.blocks]


def _with(block: nn.Module, parts: dict[str, nn.Module], unneeded: str) -> nn.Module:
    """A block that shares all with ``block`` but for ``parts``, and a norm whose output nobody reads."""
    made = copy.copy(block)
    made._modules = {**block._modules, **parts}
    if unneeded in made._modules:
        made._modules[unneeded] = nn.Identity()
    return made


class _ForFirstToken(nn.Module):
    """A block that makes the stream behind it for the first token alone."""

    def __init__(self, model: HookedViT, after_mid: nn.Module) -> None:
        super().__init__()
        last = model.n_layers - 1
        self._parts = {name: model.part(last, name) for name in ("ln1", "q", "k", "v", "o")}
        self._scale = model.layer_scale(last, "attn")
        self._n_heads = model.n_heads
        self._after_mid = after_mid

    def forward(self, resid_pre: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        parts = self._parts
        read = resid_pre if parts["ln1"] is None else parts["ln1"](resid_pre)
        q, k, v = (
            parts[name](tokens).unflatten(-1, (self._n_heads, -1)).transpose(1, 2)
            for name, tokens in (("q", read[:, :1]), ("k", read), ("v", read))
        )
        z = F.scaled_dot_product_attention(q, k, v)
        written = parts["o"](z.transpose(1, 2).flatten(2)) * self._scale
        return self._after_mid(resid_pre[:, :1] + written, *args, **kwargs)
