"""A model in nodes: what each writes to the residual stream, and each of its reads apart from the others.

Queries, keys, values and the MLP of a block are all made of the same stream. Here each can be given a stream
of its own: queries, keys and values are made anew, head by head, by the block's norm and weights; the MLP's
norm is given another input than the stream that goes on beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from prisma_steps.analysis.circuits.graph import INPUTS, Graph
from prisma_steps.models.families import find
from prisma_steps.models.ports import InputPort
from prisma_steps.models.sites import SiteKey, Tap
from prisma_steps.step import StepError

if TYPE_CHECKING:
    from prisma_steps.models.hooked import HookedViT


def graph_of(model: HookedViT) -> Graph:
    """The graph of a model.

    Raises:
        StepError: when its heads cannot be read and written apart, or it has no logits.
    """
    lacking = [site for site in (*INPUTS, "z") if site not in model.sites]
    if lacking:
        why = model.family.missing.get(lacking[0], "its blocks have no such part")
        raise StepError(f"no circuits of this model: it has no site {lacking[0]!r}. {why}")
    if "logits" not in model.sites:
        raise StepError(
            "no circuits of this model: it has no classes. Give it a head: a train_probe node, or, for a "
            "CLIP or SigLIP, class_names and templates of load_model"
        )
    return Graph(model.n_layers, model.n_heads, int("mlp_out" in model.sites))


def writes_of(
    model: HookedViT, pixels: Float[Tensor, "image *frame channel row column"]
) -> tuple[Float[Tensor, "image class"], Float[Tensor, "source image token d_model"]]:
    """Logits, and what every source writes to the residual stream, after LayerScale.

    An MLP's write has its output bias; that of attention is nobody's.
    """
    graph = graph_of(model)
    sites = ["full_embed", "z", *["mlp_out"] * graph.n_mlps]
    logits, cache = model.run_with_cache(pixels, sites)
    return logits, writes_from(model, cache)


def writes_from(
    model: HookedViT, read: Mapping[SiteKey, Tensor]
) -> Float[Tensor, "source image token d_model"]:
    """What every source wrote in a run, from its ``full_embed`` and each layer's ``z`` and ``mlp_out``."""
    writes = [read["full_embed", None].unsqueeze(0)]
    for layer in range(model.n_layers):
        writes.append(head_writes(model, layer, read["z", layer]))
        if "mlp_out" in model.sites:
            writes.append(read["mlp_out", layer].unsqueeze(0))
    return torch.cat(writes)


def head_writes(
    model: HookedViT, layer: int, z: Float[Tensor, "image token head d_head"]
) -> Float[Tensor, "head image token d_model"]:
    """What the heads of a block add to the stream, after LayerScale and without the output bias."""
    scaled = model.weights["W_O", layer] * model.layer_scale(layer, "attn")  # smaller than what is written
    return torch.einsum("ithd,hdm->hitm", z, scaled)


def attention_norm(model: HookedViT, layer: int) -> nn.Module:
    """The norm in front of a block's attention; the identity where there is none."""
    return find(model.blocks[layer], model.family.block.ln1) or nn.Identity()


def projected(
    model: HookedViT,
    layer: int,
    name: str,
    reads: Float[Tensor, "image token head d_model"],
    heads: slice = slice(None),
) -> Float[Tensor, "image token head d_head"]:
    """Queries, keys or values (``name`` is q, k or v) of heads that each read a stream of their own."""
    weight, bias = (model.weights[f"{kind}_{name.upper()}", layer][heads] for kind in "Wb")
    return torch.einsum("ithm,hmd->ithd", attention_norm(model, layer)(reads), weight) + bias


@contextmanager
def mlp_reads(model: HookedViT, taps: Mapping[int, Tap]) -> Iterator[None]:
    """Have taps replace what the MLPs of some blocks read, and that alone, while the context lasts."""
    with ExitStack() as stack:
        for layer, tap in taps.items():
            norm = find(model.blocks[layer], model.family.block.ln2)
            for handle in InputPort(norm).attach(tap):
                stack.callback(handle.remove)
        yield
