"""Edge scores by gradients: edge attribution patching, at the clean run or along a path of inputs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from prisma_steps.analysis.circuits.graph import INPUTS, Graph
from prisma_steps.analysis.circuits.split import attention_norm, graph_of, mlp_reads, writes_of
from prisma_steps.analysis.metrics import Metric
from prisma_steps.models.sites import SiteKey, Tap

if TYPE_CHECKING:
    from prisma_steps.models.hooked import HookedViT

#: Targets (inputs of a block's heads, or one target alone), and the metric's gradient by what they read.
Gradient = tuple[slice, Float[Tensor, "image token target d_model"]]


def edge_attribution(
    model: HookedViT,
    clean: Float[Tensor, "pair *frame channel row column"],
    corrupted: Float[Tensor, "pair *frame channel row column"],
    metric: Metric,
    n_steps: int = 0,
) -> Float[Tensor, "source target"]:
    """(corrupted write − clean write) · ∂metric/∂read of every edge, summed over tokens and pairs.

    The first order of what ``exact_scores`` gives. With ``n_steps`` = 0 the gradient is that of the clean run
    (EAP, Syed et al. 2023, equation 2): three forward passes and one backward. Else it is the mean over runs
    from n_steps embeddings on the line from the clean to the corrupted one (EAP-IG, Hanna et al. 2024,
    equation 3). These lie in the middles of n_steps equal parts, where Hanna et al. take the parts' ends: the
    error of the integral falls with n_steps² and not with n_steps. The scores of the embedding's edges then
    sum to the metric of the corrupted run minus that of the clean run.

    Args:
        model: the model, whose parameters need no gradients.
        clean: pixels as the model takes them.
        corrupted: their counterparts.
        metric: what is explained, of these pairs.
        n_steps: embeddings along the line.
    """
    graph = graph_of(model)
    with torch.no_grad():
        writes = writes_of(model, clean)[1]
        embed = writes[0].clone()
        change = writes_of(model, corrupted)[1].sub_(writes)
    del writes
    places = [(step + 0.5) / n_steps for step in range(n_steps)] or [0.0]
    scores = change.new_zeros(len(graph.sources), len(graph.targets))
    for place in places:
        for targets, gradient in _gradients(model, graph, embed + place * change[0], metric):
            scores[:, targets] += torch.einsum("sitm,ithm->sh", change, gradient) / len(places)
    return scores * torch.from_numpy(graph.edges).to(scores)


def _gradients(
    model: HookedViT, graph: Graph, embed: Float[Tensor, "image token d_model"], metric: Metric
) -> Iterator[Gradient]:
    """The gradient of the metric by the read of every target, of a run that starts with ``embed``."""
    kept: dict[SiteKey, Tensor] = {}
    layers, end = range(graph.n_layers), ("resid_post", graph.n_layers - 1)
    keys: list[SiteKey] = [(site, layer) for layer in layers for site in (*INPUTS, "resid_pre")]
    hooks = {key: _copied(kept, key) for key in (*keys, end)}
    mlps = {layer: _copied(kept, ("mlp", layer)) for layer in layers if graph.n_mlps}
    with torch.enable_grad(), mlp_reads(model, mlps):
        logits = model.forward_from(0, embed.detach().requires_grad_(), hooks)
        wanted = [key for key in kept if key[0] != "resid_pre"]
        found = torch.autograd.grad(metric(logits).sum(), [kept[key] for key in wanted])
    by_key = dict(zip(wanted, found, strict=True))
    for layer in layers:
        for name in INPUTS:
            through = _through_norm(model, layer, name, kept["resid_pre", layer], by_key[name, layer])
            yield graph.heads(layer, name), through
        if graph.n_mlps:
            place = graph.mlp(layer)
            yield slice(place, place + 1), by_key["mlp", layer].unsqueeze(2)
    yield slice(len(graph.targets) - 1, None), by_key[end].unsqueeze(2)


def _copied(kept: dict[SiteKey, Tensor], key: SiteKey) -> Tap:
    """A tap that keeps what is read there, apart from the stream that goes on beside it."""

    def tap(value: Tensor) -> Tensor:
        kept[key] = value.clone()
        return kept[key]

    return tap


def _through_norm(
    model: HookedViT,
    layer: int,
    name: str,
    stream: Float[Tensor, "image token d_model"],
    gradient: Float[Tensor, "image token head d_head"],
) -> Float[Tensor, "image token head d_model"]:
    """The gradient by each head's read of the stream, given that by its queries, keys or values."""
    normed = torch.einsum("ithd,hmd->ithm", gradient, model.weights[f"W_{name.upper()}", layer])
    read = stream.detach().unsqueeze(2).expand_as(normed)
    with torch.enable_grad():
        read = read.requires_grad_()
        return torch.autograd.grad(attention_norm(model, layer)(read), read, normed)[0]
