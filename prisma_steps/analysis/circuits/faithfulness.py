"""How much of what a model does a circuit does: runs in which all other edges carry something else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
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
    """Taps that give every target a read of its own: the stream, changed by the edges that are cut."""

    def __init__(
        self,
        model: HookedViT,
        circuit: Bool[Tensor, "source target"],
        ablated: Float[Tensor, "source #image token d_model"],
    ) -> None:
        self._model = model
        self._graph = graph_of(model)
        self._cut = (torch.from_numpy(self._graph.edges).to(circuit.device) & ~circuit).to(ablated)
        self._ablated = ablated
        self._stream: Tensor
        self._change: Float[Tensor, "source image token d_model"]

    def __call__(self, embed: Tensor) -> Tensor:
        self._change = embed.new_empty(len(self._graph.sources), *embed.shape)
        self._write(0, embed.unsqueeze(0))
        hooks = {key: tap for layer in range(self._graph.n_layers) for key, tap in self._taps(layer)}
        mlps = {layer: self._mlp(layer) for layer in range(self._graph.n_layers) if self._graph.n_mlps}
        with torch.no_grad(), mlp_reads(self._model, mlps):
            return self._model.forward_from(0, embed, hooks)

    def _taps(self, layer: int) -> Iterator[tuple[SiteKey, Tap]]:
        first = self._graph.before(layer)
        yield ("resid_pre", layer), self._read_stream
        for name in INPUTS:
            yield (name, layer), self._heads(layer, name)
        yield ("z", layer), lambda z: self._wrote(first, head_writes(self._model, layer, z), z)
        if self._graph.n_mlps:
            place = first + self._graph.n_heads
            yield ("mlp_out", layer), lambda value: self._wrote(place, value.unsqueeze(0), value)
        if layer == self._graph.n_layers - 1:
            yield (
                ("resid_post", layer),
                lambda value: value + self._changes(len(self._cut), slice(-1, None))[0],
            )

    def _read_stream(self, value: Tensor) -> Tensor:
        self._stream = value
        return value

    def _heads(self, layer: int, name: str) -> Tap:
        def tap(_value: Tensor) -> Tensor:
            changes = self._changes(self._graph.before(layer), self._graph.heads(layer, name))
            reads = self._stream.unsqueeze(2) + changes.movedim(0, 2)
            return projected(self._model, layer, name, reads)

        return tap

    def _mlp(self, layer: int) -> Tap:
        before, target = self._graph.before(layer) + self._graph.n_heads, self._graph.mlp(layer)
        return lambda read: read + self._changes(before, slice(target, target + 1))[0]

    def _changes(self, before: int, targets: slice) -> Float[Tensor, "target image token d_model"]:
        """What the cut edges to some targets change of their reads."""
        return torch.einsum("sitm,sh->hitm", self._change[:before], self._cut[:before, targets])

    def _wrote(
        self, first: int, writes: Float[Tensor, "source image token d_model"], value: Tensor
    ) -> Tensor:
        self._write(first, writes)
        return value

    def _write(self, first: int, writes: Float[Tensor, "source image token d_model"]) -> None:
        where = slice(first, first + len(writes))
        self._change[where] = self._ablated[where] - writes


def faithfulness(circuit: np.ndarray, clean: float, empty: np.ndarray) -> np.ndarray:
    """(m(circuit) − m(empty)) / (m(clean) − m(empty)) of metrics that are means over pairs.

    The empty circuit is the corrupted run where edges carry corrupted writes (Hanna et al. 2024, section
    2.3), and the run with all edges ablated otherwise (Marks et al. 2024, section 3.3): always 0, as the
    whole graph is always 1.
    """
    return (circuit - empty) / (clean - empty)


def area(curve: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """Mean faithfulness over the range of sizes, by trapezoids along the last dim; of one size, its value."""
    if len(sizes) == 1:
        return curve[..., 0]
    return np.trapezoid(curve, sizes, axis=-1) / (sizes[-1] - sizes[0])
