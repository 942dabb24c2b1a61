"""The attention function that shows its scores and its pattern, and lets them be replaced.

``transformers`` asks a registered function for attention (``AttentionInterface``). Ours is in force only
while scores or pattern are asked for; else the model keeps the one it has (fused, as a rule), which never
forms them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface

from prisma_steps.models.fast_inference import matmul
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
