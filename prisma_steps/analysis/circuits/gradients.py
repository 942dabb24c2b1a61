"""Edge scores by gradients: edge attribution patching, at the clean run or along a path of inputs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from prisma_steps.analysis.circuits.graph import INPUTS, Graph
from prisma_steps.analysis.circuits.split import attention_norm, graph_of, mlp_reads, writes_from, writes_of
from prisma_steps.analysis.metrics import Metric
from prisma_steps.models.sites import SiteKey, Tap

if TYPE_CHECKING:
    from prisma_steps.models.hooked import HookedViT

#: How many sources come before some targets (inputs of a block's heads, or one target alone), these targets,
#: and the metric's gradient by what they read.
Gradient = tuple[int, slice, Float[Tensor, "image token target d_model"]]


def edge_attribution(
    model: HookedViT,
    clean: Float[Tensor, "pair *frame channel row column"],
    corrupted: Float[Tensor, "pair *frame channel row column"],
    metric: Metric,
    n_steps: int = 0,
) -> Float[Tensor, "source target"]:
    """(corrupted write − clean write) · ∂metric/∂read of every edge, summed over tokens and pairs.

    The first order of what ``exact_scores`` gives. With ``n_steps`` = 0 the gradient is that of the clean run
    (EAP, Syed et al. 2023, equation 2): two forward passes and one backward. Else it is the mean over runs
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
        embed = model.read(clean, ["full_embed"])["full_embed", None]
        change = writes_of(model, corrupted)[1]
    if n_steps == 0:
        run = _Run(model, graph, embed, metric)
        with torch.no_grad():
            change -= writes_from(model, run.kept)
        return run.scores(change)
    with torch.no_grad():
        change -= writes_of(model, clean)[1]
    scores = change.new_zeros(graph.edges.shape)
    for step in range(n_steps):
        place = (step + 0.5) / n_steps
        scores += _Run(model, graph, embed + place * change[0], metric).scores(change) / n_steps
    return scores


class _Run:
    """A run from an embedding on, with the gradient of the metric by the read of every target.

    Attributes:
        kept: what was read on the way, among it all that ``writes_from`` needs.
    """

    def __init__(
        self, model: HookedViT, graph: Graph, embed: Float[Tensor, "image token d_model"], metric: Metric
    ) -> None:
        self._model, self._graph = model, graph
        self.kept: dict[SiteKey, Tensor] = {("full_embed", None): embed}
        layers, end = range(graph.n_layers), ("resid_post", graph.n_layers - 1)
        seen = ("z", "resid_pre", *["mlp_out"] * graph.n_mlps)
        read: list[SiteKey] = [*((name, layer) for layer in layers for name in INPUTS), end]
        hooks = {key: self._copied(key) for key in read}
        hooks |= {(site, layer): self._seen((site, layer)) for layer in layers for site in seen}
        mlps = {layer: self._copied(("mlp", layer)) for layer in layers if graph.n_mlps}
        read += [("mlp", layer) for layer in mlps]
        with torch.enable_grad(), mlp_reads(model, mlps):
            logits = model.forward_from(0, embed.detach().requires_grad_(), hooks)
            found = torch.autograd.grad(metric(logits).sum(), [self.kept[key] for key in read])
        self._by = dict(zip(read, found, strict=True))

    def _copied(self, key: SiteKey) -> Tap:
        """A tap that keeps what is read there, apart from the stream that goes on beside it."""

        def tap(value: Tensor) -> Tensor:
            self.kept[key] = value.clone()
            return self.kept[key]

        return tap

    def _seen(self, key: SiteKey) -> Tap:
        """A tap that keeps a value without its gradient."""

        def tap(value: Tensor) -> Tensor:
            self.kept[key] = value.detach()
            return value

        return tap

    def scores(self, change: Float[Tensor, "source image token d_model"]) -> Float[Tensor, "source target"]:
        """The sum over images and tokens of each source's change times the gradient by each target's read."""
        scores = change.new_zeros(self._graph.edges.shape)
        for before, targets, gradient in self._gradients():
            # As one matrix product: einsum would copy all writes once more for every target.
            scores[:before, targets] = change[:before].flatten(1) @ gradient.movedim(2, 0).flatten(1).T
        return scores * torch.from_numpy(self._graph.edges).to(scores)

    def _gradients(self) -> Iterator[Gradient]:
        graph = self._graph
        for layer in range(graph.n_layers):
            for name in INPUTS:
                through = _through_norm(
                    self._model, layer, name, self.kept["resid_pre", layer], self._by[name, layer]
                )
                yield graph.before(layer), graph.heads(layer, name), through
            if graph.n_mlps:
                place = graph.mlp(layer)
                before = graph.before(layer) + graph.n_heads
                yield before, slice(place, place + 1), self._by["mlp", layer].unsqueeze(2)
        end = ("resid_post", graph.n_layers - 1)
        yield len(graph.sources), slice(len(graph.targets) - 1, None), self._by[end].unsqueeze(2)


def _through_norm(
    model: HookedViT,
    layer: int,
    name: str,
    stream: Float[Tensor, "image token d_model"],
    gradient: Float[Tensor, "image token head d_head"],
) -> Float[Tensor, "image token head d_model"]:
    """The gradient by each head's read of the stream, given that by its queries, keys or values."""
    normed = torch.einsum("ithd,hmd->ithm", gradient, model.weights[f"W_{name.upper()}", layer])
    read = stream.unsqueeze(2).expand_as(normed)
    with torch.enable_grad():
        read = read.requires_grad_()
        return torch.autograd.grad(attention_norm(model, layer)(read), read, normed)[0]
