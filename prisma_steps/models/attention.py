"""Multi-head self-attention with every intermediate value open to hooks."""

from __future__ import annotations

from math import sqrt

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from prisma_steps.models.sites import Hooks, at


class Attention(nn.Module):
    """Softmax attention of Vaswani et al. 2017 (arXiv 1706.03762), section 3.2, with biases.

    The fused kernel is used unless a hook asks for the scores or the pattern, which it never forms; the write
    of each head is formed only when a hook asks for it. Either way the output is the same up to rounding.
    """

    def __init__(self, d_model: int, n_heads: int) -> None:
        """Make the four projections; ``n_heads`` must divide ``d_model``."""
        super().__init__()
        self.n_heads = n_heads
        self.q = nn.Linear(d_model, d_model)
        self.k = nn.Linear(d_model, d_model)
        self.v = nn.Linear(d_model, d_model)
        self.o = nn.Linear(d_model, d_model)

    def forward(
        self, x: Float[Tensor, "image token d_model"], hooks: Hooks, layer: int
    ) -> Float[Tensor, "image token d_model"]:
        """What attention adds to the residual stream, given its (normalised) input."""
        q, k, v = (
            at(hooks, site, layer, projection(x).unflatten(-1, (self.n_heads, -1)))
            for site, projection in (("q", self.q), ("k", self.k), ("v", self.v))
        )
        z = at(hooks, "z", layer, self._mix(q, k, v, hooks, layer))
        if ("result", layer) not in hooks:
            return self.o(z.flatten(2))
        w_o = self.o.weight.unflatten(1, (self.n_heads, -1))
        result = torch.einsum("ithd,mhd->ithm", z, w_o)
        return at(hooks, "result", layer, result).sum(2) + self.o.bias

    def _mix(
        self,
        q: Float[Tensor, "image token head d_head"],
        k: Float[Tensor, "image token head d_head"],
        v: Float[Tensor, "image token head d_head"],
        hooks: Hooks,
        layer: int,
    ) -> Float[Tensor, "image token head d_head"]:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        if ("attn_scores", layer) not in hooks and ("pattern", layer) not in hooks:
            return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        scores = at(hooks, "attn_scores", layer, q @ k.mT / sqrt(q.shape[-1]))
        pattern = at(hooks, "pattern", layer, scores.softmax(-1))
        return (pattern @ v).transpose(1, 2)
