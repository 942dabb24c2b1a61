"""Attention that shows its scores and its pattern, and lets them be replaced.

``transformers`` asks a registered function for attention (``AttentionInterface``). Timm has no such way in:
its attention is told not to use the fused function, and its modules show the rest. Both are in force only
while scores or pattern are asked for; else the model keeps the attention it has (fused, as a rule), which
never forms them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface

from prisma_steps.models.fast_inference import matmul
from prisma_steps.models.ports import OutputPort
from prisma_steps.models.sites import Tap

NAME = "prisma_steps"

#: What is to see scores and patterns, by attention module; only while ``watching``.
_TAPS: dict[nn.Module, Mapping[str, Tap]] = {}


def attention(
    module: nn.Module,
    query: Float[Tensor, "image head query_token d_head"],
    key: Float[Tensor, "image head key_token d_head"],
    value: Float[Tensor, "image head key_token d_head"],
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Float[Tensor, "image query_token head d_head"], Float[Tensor, "image head query_token key_token"]]:
    """Softmax attention (Vaswani et al. 2017, arXiv 1706.03762, eq. 1), step by step as ``eager`` does it.

    Scores are those before softmax, position biases included.
    """
    taps = _TAPS.get(module, {})
    scores = matmul(query, key.mT) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if attention_mask is not None:
        scores = scores + attention_mask
    if "attn_scores" in taps:
        scores = taps["attn_scores"](scores)
    pattern = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(scores.dtype)
    pattern = F.dropout(pattern, dropout, module.training)
    if "pattern" in taps:
        pattern = taps["pattern"](pattern)
    return matmul(pattern, value).transpose(1, 2).contiguous(), pattern


AttentionInterface.register(NAME, attention)


@contextmanager
def watching(taps: Mapping[nn.Module, Mapping[str, Tap]]) -> Iterator[None]:
    """Have ``taps`` see the scores (``attn_scores``) and patterns (``pattern``) of attention modules."""
    with ExitStack() as stack:
        asking = {module: seen for module, seen in taps.items() if hasattr(module, "config")}
        stack.enter_context(_answering(asking))
        for module, seen in taps.items():
            if module not in asking:
                stack.enter_context(_unfused(module, seen))
        yield


@contextmanager
def _answering(taps: Mapping[nn.Module, Mapping[str, Tap]]) -> Iterator[None]:
    """Be the attention function of the models of ``transformers`` that these modules are part of."""
    configs: list[Any] = list({id(module.config): module.config for module in taps}.values())
    before = [config._attn_implementation for config in configs]
    _TAPS.update(taps)
    try:
        for config in configs:
            config._attn_implementation = NAME
        yield
    finally:
        for config, implementation in zip(configs, before, strict=True):
            config._attn_implementation = implementation
        for module in taps:
            _TAPS.pop(module)


@contextmanager
def _unfused(module: Any, taps: Mapping[str, Tap]) -> Iterator[None]:
    """Have timm's ``Attention`` form scores and pattern step by step.

    No module is given its scores before softmax. They are made once more, to the bit, of what the norms of
    queries and keys return (identities, as a rule), where its dropout is given the pattern.
    """
    turned: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda _module, _args, output: turned.__setitem__(name, output)

    def scored(*_: Any) -> tuple[Tensor] | None:
        scores = (turned["q"] * module.scale) @ turned["k"].mT
        written = taps["attn_scores"](scores)
        untouched = written is scores and not scores.requires_grad
        return None if untouched else (written.softmax(-1),)

    fused, module.fused_attn = module.fused_attn, False
    with ExitStack() as stack:
        stack.callback(setattr, module, "fused_attn", fused)
        if "attn_scores" in taps:
            for name in ("q", "k"):
                norm: nn.Module = getattr(module, f"{name}_norm")
                stack.callback(norm.register_forward_hook(keep(name)).remove)
            stack.callback(module.attn_drop.register_forward_pre_hook(scored).remove)
        if "pattern" in taps:
            for handle in OutputPort(module.attn_drop).attach(taps["pattern"]):
                stack.callback(handle.remove)
        yield
