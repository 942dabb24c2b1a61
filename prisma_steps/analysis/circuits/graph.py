"""The graph of a transformer: what writes to the residual stream, and what reads it later.

Every write is read by every later reader: an edge. What a reader is given is the sum of the writes before it
(and of the output biases of attention, which are nobody's).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

#: The inputs of a head, in the order of targets.
INPUTS = ("q", "k", "v")


@dataclass(frozen=True)
class Graph:
    """Sources (embedding, heads, MLPs) and targets (inputs of heads, MLPs, logits), in the order of a run.

    Attributes:
        n_layers: blocks.
        n_heads: heads of a block.
        n_mlps: MLPs of a block, 0 or 1.
    """

    n_layers: int
    n_heads: int
    n_mlps: int

    @cached_property
    def sources(self) -> list[str]:
        """Names of what writes: ``embed``, ``head 0.3``, ``mlp 1``."""
        return ["embed", *(name for layer in range(self.n_layers) for name in self._writers(layer))]

    @cached_property
    def targets(self) -> list[str]:
        """Names of what reads: ``head 0.3.q``, ``mlp 1``, ``logits``."""
        blocks = (name for layer in range(self.n_layers) for name in self._readers(layer))
        return [*blocks, "logits"]

    def _writers(self, layer: int) -> list[str]:
        return [*(f"head {layer}.{head}" for head in range(self.n_heads)), *[f"mlp {layer}"] * self.n_mlps]

    def _readers(self, layer: int) -> list[str]:
        heads = (f"head {layer}.{head}.{name}" for head in range(self.n_heads) for name in INPUTS)
        return [*heads, *[f"mlp {layer}"] * self.n_mlps]

    def before(self, layer: int) -> int:
        """How many sources come before a block; ``n_layers`` is the end. The block's heads follow them."""
        return 1 + layer * (self.n_heads + self.n_mlps)

    def heads(self, layer: int, name: str) -> slice:
        """The targets that are the inputs ``name`` (q, k, v) of a block's heads."""
        start = layer * (len(INPUTS) * self.n_heads + self.n_mlps)
        return slice(start + INPUTS.index(name), start + len(INPUTS) * self.n_heads, len(INPUTS))

    def mlp(self, layer: int) -> int:
        """The target that is a block's MLP."""
        return (layer + 1) * (len(INPUTS) * self.n_heads + self.n_mlps) - 1

    @cached_property
    def edges(self) -> np.ndarray:
        """Which edges there are, bool [source, target]."""
        edges = np.zeros((len(self.sources), len(self.targets)), dtype=bool)
        for layer in range(self.n_layers):
            before = self.before(layer)
            for name in INPUTS:
                edges[:before, self.heads(layer, name)] = True
            if self.n_mlps:
                edges[: before + self.n_heads, self.mlp(layer)] = True
        edges[:, -1] = True
        return edges

    @property
    def n_edges(self) -> int:
        """Number of edges."""
        return int(self.edges.sum())

    @cached_property
    def inputs(self) -> np.ndarray:
        """Which targets are inputs of which sources, bool [source, target]; the embedding has none."""
        nodes = [target.rpartition(".")[0] if target[-1] in INPUTS else target for target in self.targets]
        return np.array(self.sources)[:, None] == np.array(nodes)[None, :]

    def pruned(self, circuit: np.ndarray) -> np.ndarray:
        """Those edges of a circuit that lie on a path from embedding to logits, bool [source, target]."""
        kept = circuit & self.edges
        while True:
            reached = np.any(kept, axis=0)
            fed = np.any(self.inputs & reached, axis=1) | (np.arange(len(kept)) == 0)  # or the embedding
            goes_on = np.any(kept, axis=1)
            read = np.any(self.inputs & goes_on[:, None], axis=0) | (np.array(self.targets) == "logits")
            smaller = kept & fed[:, None] & read[None, :]
            if (smaller == kept).all():
                return kept
            kept = smaller
