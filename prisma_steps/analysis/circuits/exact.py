"""Exact edge scores: one patched forward pass an edge (path patching, Goldowsky-Dill et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from prisma_steps.analysis.circuits.graph import INPUTS, Graph
from prisma_steps.analysis.circuits.split import graph_of, mlp_reads, projected, writes_of
from prisma_steps.analysis.metrics import Metric

if TYPE_CHECKING:
    from prisma_steps.models.hooked import HookedViT

#: Logits of runs in which the read of one target is the clean one plus what is given.
Run = Callable[[Float[Tensor, "image token d_model"]], Float[Tensor, "image class"]]


@torch.no_grad()
def exact_scores(
    model: HookedViT,
    clean: Float[Tensor, "pair *frame channel row column"],
    corrupted: Float[Tensor, "pair *frame channel row column"],
    metric: Metric,
    runs_at_once: int,
) -> Float[Tensor, "source target"]:
    """How the metric changes when one edge alone carries the corrupted write, summed over pairs.

    The target's read is then clean + (corrupted write − clean write), at all tokens; everything behind the
    target follows, everything else is clean. 0 where there is no edge.

    Args:
        model: the model.
        clean: pixels as the model takes them.
        corrupted: their counterparts.
        metric: what is explained, of these pairs.
        runs_at_once: images that go through the model together, of one edge at least.
    """
    graph = graph_of(model)
    logits, writes = writes_of(model, clean)
    change = writes_of(model, corrupted)[1] - writes
    streams = _streams(model, clean)
    scores = change.new_zeros(len(graph.sources), len(graph.targets))
    edges_at_once = max(1, runs_at_once // len(clean))
    for target, run in _runs(model, graph, streams).items():
        sources = torch.from_numpy(graph.edges[:, target]).nonzero()[:, 0].to(change.device)
        for some in sources.split(edges_at_once):
            found = run(change[some].flatten(0, 1)).unflatten(0, (len(some), -1))
            scores[some, target] = (metric(found) - metric(logits)).sum(-1)
    return scores


def _streams(model: HookedViT, pixels: Tensor) -> list[Float[Tensor, "image token d_model"]]:
    """The residual stream before every block, and after the last."""
    last = model.n_layers - 1
    cache = model.run_with_cache(pixels, ["resid_pre", f"blocks.{last}.hook_resid_post"])[1]
    return [*(cache["resid_pre", layer] for layer in range(model.n_layers)), cache["resid_post", last]]


def _runs(model: HookedViT, graph: Graph, streams: list[Tensor]) -> Mapping[int, Run]:
    """For every target what runs the model on from its block."""
    runs: dict[int, Run] = {len(graph.targets) - 1: partial(_logits, model, streams[-1])}
    for layer, stream in enumerate(streams[:-1]):
        for name in INPUTS:
            targets = range(len(graph.targets))[graph.heads(layer, name)]
            for head, target in enumerate(targets):
                runs[target] = partial(_head, model, stream, layer, name, head)
        if graph.n_mlps:
            runs[graph.mlp(layer)] = partial(_mlp, model, stream, layer)
    return runs


def _logits(model: HookedViT, stream: Tensor, change: Tensor) -> Tensor:
    return model.forward_from(model.n_layers, _repeated(stream, change) + change)


def _mlp(model: HookedViT, stream: Tensor, layer: int, change: Tensor) -> Tensor:
    with mlp_reads(model, {layer: lambda read: read + change}):
        return model.forward_from(layer, _repeated(stream, change))


def _head(model: HookedViT, stream: Tensor, layer: int, name: str, head: int, change: Tensor) -> Tensor:
    before = _repeated(stream, change)
    only = slice(head, head + 1)

    def patch(value: Float[Tensor, "image token head d_head"]) -> Float[Tensor, "image token head d_head"]:
        patched = value.clone()
        patched[:, :, only] = projected(model, layer, name, (before + change).unsqueeze(2), only)
        return patched

    return model.forward_from(layer, before, {(name, layer): patch})


def _repeated(stream: Tensor, change: Tensor) -> Tensor:
    """The stream of all pairs, once for each edge."""
    return stream.repeat(len(change) // len(stream), 1, 1)
