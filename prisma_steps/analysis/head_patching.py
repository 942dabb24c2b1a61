"""What patching a site within attention changes of what each head returns (``z``).

Attention is linear in ``v`` and in its pattern, rows of which do not depend on each other. What one run with
all heads and tokens of the source says, therefore says what each cell of a sweep changes:

* ``z``: the rows that are patched;
* ``pattern``: (pattern' − pattern) v, of the rows of the patched head and query tokens;
* ``q``: as ``pattern``, with the pattern of the target's keys and the source's queries;
* ``v``: pattern (v' − v), of the columns of the patched tokens;
* ``k``: as ``q``; of one token alone, its column of scores is replaced before the softmax.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prisma_steps.models.fast_inference import matmul
from prisma_steps.models.hooked import HookedViT
from prisma_steps.models.sites import SiteKey, Tap

_PATTERN = ("pattern", "v", "resid_mid")

#: Sites that are patched head by head, with what is read of the target's run beside the site itself.
HEAD_SITES: Mapping[str, tuple[str, ...]] = {
    "q": _PATTERN,
    "k": (*_PATTERN, "attn_scores"),
    "v": _PATTERN,
    "z": ("resid_mid",),
    "pattern": _PATTERN,
}


@dataclass(frozen=True)
class HeadChange:
    """What patching a site of one layer changes of ``z``.

    Attributes:
        site: which.
        z: the change when all heads and tokens are patched; of any head alone it is that head's part.
        columns: of ``v`` and ``k``, what the change of one token is made of.
    """

    site: str
    z: Float[Tensor, "pair token head d_head"]
    columns: Mapping[str, Tensor]

    def of_head(
        self, pair: Int[Tensor, " cell"], head: Int[Tensor, " cell"]
    ) -> Float[Tensor, "cell token d_head"]:
        """The change of the head's ``z`` when all its tokens are patched."""
        return self.z[pair, :, head]

    def of_token(
        self, pair: Int[Tensor, " cell"], head: Int[Tensor, " cell"], token: Int[Tensor, " cell"]
    ) -> Float[Tensor, "cell token d_head"]:
        """The change of the head's ``z`` when one token is patched; of ``pattern`` and ``q`` it attends."""
        if self.site == "v":
            weight, change = (
                self.columns["pattern"][pair, head, :, token],
                self.columns["v"][pair, token, head],
            )
            return weight[:, :, None] * change[:, None, :]
        if self.site == "k":
            return self._of_key(pair, head, token)
        rows = torch.zeros_like(self.z[pair, :, 0])
        cell = torch.arange(len(pair), device=pair.device)
        rows[cell, token] = self.z[pair, token, head]
        return rows

    def _of_key(self, pair: Tensor, head: Tensor, token: Tensor) -> Float[Tensor, "cell token d_head"]:
        parts = self.columns
        scores = parts["scores"][pair, head].clone()
        cell = torch.arange(len(pair), device=pair.device)
        scores[cell, :, token] = parts["patched scores"][pair, head, :, token]
        return matmul(_softmax(scores) - parts["pattern"][pair, head], parts["v"][pair, :, head])


def head_change(
    model: HookedViT,
    layer: int,
    site: str,
    source: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
    shape: Sequence[int],
) -> HeadChange:
    """The change that a site of ``HEAD_SITES`` makes.

    Args:
        model: a frozen model.
        layer: the block.
        site: what is patched.
        source: the site's value in the source's run.
        target: in the target's run, the site's value, that of what ``HEAD_SITES`` names, and ``resid_pre``.
        shape: of the input.
    """
    if site == "z":
        return HeadChange(site, source["z"] - target["z"], {})
    if site == "v":
        change = source["v"] - target["v"]
        parts = {"pattern": target["pattern"], "v": change}
        return HeadChange(site, _mixed(target["pattern"], change), parts)
    patched = source if site == "pattern" else _with_site(model, layer, site, source, target, shape)
    parts = {"pattern": target["pattern"], "v": target["v"]}
    if site == "k":
        parts |= {"scores": target["attn_scores"], "patched scores": patched["attn_scores"]}
    return HeadChange(site, _mixed(patched["pattern"] - target["pattern"], target["v"]), parts)


def _with_site(
    model: HookedViT,
    layer: int,
    site: str,
    source: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
    shape: Sequence[int],
) -> dict[str, Tensor]:
    """Scores and pattern of the target's block with all queries, or keys, of the source."""
    hooks: dict[SiteKey, Tap] = {(site, layer): lambda _: source[site]}
    return model.read_from(layer, target["resid_pre"], ["attn_scores", "pattern"], hooks, shape)


def _mixed(
    pattern: Float[Tensor, "pair head query_token key_token"], v: Float[Tensor, "pair token head d_head"]
) -> Float[Tensor, "pair token head d_head"]:
    return matmul(pattern, v.transpose(1, 2)).transpose(1, 2)


def _softmax(scores: Tensor) -> Tensor:
    return scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(scores.dtype)
