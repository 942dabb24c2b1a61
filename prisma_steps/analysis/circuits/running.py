"""What a circuit does alone: runs in which all other edges carry something else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prisma_steps.analysis.circuits.graph import INPUTS
from prisma_steps.analysis.circuits.split import graph_of, head_writes, mlp_reads, projected
from prisma_steps.models.sites import SiteKey, Tap

if TYPE_CHECKING:
    from prisma_steps.models.hooked import HookedViT

#: What edges outside of a circuit carry: what the corrupted image writes there; nothing; the mean over the
#: clean images, token by token; what another pair's clean image writes.
Ablation: TypeAlias = Literal["corrupted", "zero", "mean", "resample"]


def run_circuit(
    model: HookedViT,
    circuit: Bool[Tensor, "source target"],
    embed: Float[Tensor, "image token d_model"],
    ablated: Float[Tensor, "source #image token d_model"],
) -> Float[Tensor, "image class"]:
    """Logits of a run in which only edges of the circuit carry what their source writes in this very run.

    All other edges carry ``ablated``. A source whose inputs are changed writes something else, which goes on
    along the circuit (Hanna et al. 2024, section 2.3).

    Args:
        model: the model.
        circuit: the edges that are kept.
        embed: of the clean images: the embedding with positions.
        ablated: what each source is taken to write, for all other edges.
    """
    return _CircuitRun(model, circuit, ablated)(embed)


class _CircuitRun:
    """Taps that give every target a read of its own, whatever the stream beside it is.

    A read is what all sources before it are taken to write, and the output biases, plus what the kept edges
    change of that: where all edges are cut, no large numbers cancel, which a norm would blow up.
    """

    def __init__(
        self,
        model: HookedViT,
        circuit: Bool[Tensor, "source target"],
        ablated: Float[Tensor, "source #image token d_model"],
    ) -> None:
        self._model = model
        self._graph = graph_of(model)
        self._kept = (torch.from_numpy(self._graph.edges).to(circuit.device) & circuit).to(ablated)
        self._ablated = ablated
        self._base: Float[Tensor, "#image token d_model"]
        self._change: Float[Tensor, "source image token d_model"]

    def __call__(self, embed: Tensor) -> Tensor:
        self._base = torch.zeros_like(self._ablated[0])
        self._change = embed.new_empty(len(self._graph.sources), *embed.shape)
        self._wrote(0, embed.unsqueeze(0))
        hooks = {key: tap for layer in range(self._graph.n_layers) for key, tap in self._taps(layer)}
        mlps = {layer: self._mlp(layer) for layer in range(self._graph.n_layers) if self._graph.n_mlps}
        with torch.no_grad(), mlp_reads(self._model, mlps):
            return self._model.forward_from(0, embed, hooks)

    def _taps(self, layer: int) -> Iterator[tuple[SiteKey, Tap]]:
        for name in INPUTS:
            yield (name, layer), self._heads(layer, name)
        yield ("z", layer), lambda z: self._attended(layer, z)
        if self._graph.n_mlps:
            yield ("mlp_out", layer), lambda value: self._answered(layer, value)
        if layer == self._graph.n_layers - 1:
            yield ("resid_post", layer), lambda _value: self._reads(len(self._kept), slice(-1, None))[0]

    def _heads(self, layer: int, name: str) -> Tap:
        def tap(_value: Tensor) -> Tensor:
            reads = self._reads(self._graph.before(layer), self._graph.heads(layer, name))
            return projected(self._model, layer, name, reads.movedim(0, 2))

        return tap

    def _mlp(self, layer: int) -> Tap:
        before, target = self._graph.before(layer) + self._graph.n_heads, self._graph.mlp(layer)
        return lambda _value: self._reads(before, slice(target, target + 1))[0]

    def _reads(self, before: int, targets: slice) -> Float[Tensor, "target image token d_model"]:
        kept = torch.einsum("sitm,sh->hitm", self._change[:before], self._kept[:before, targets])
        return kept + self._base

    def _attended(self, layer: int, z: Tensor) -> Tensor:
        bias = self._model.weights["b_O", layer] * self._model.layer_scale(layer, "attn")
        self._wrote(self._graph.before(layer), head_writes(self._model, layer, z))
        self._base = self._base + bias
        return z

    def _answered(self, layer: int, value: Tensor) -> Tensor:
        self._wrote(self._graph.before(layer) + self._graph.n_heads, value.unsqueeze(0))
        return value

    def _wrote(self, first: int, writes: Float[Tensor, "source image token d_model"]) -> None:
        where = slice(first, first + len(writes))
        self._change[where] = writes - self._ablated[where]
        self._base = self._base + self._ablated[where].sum(0)
