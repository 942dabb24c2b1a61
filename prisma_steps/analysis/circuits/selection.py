"""Circuits of so many edges, chosen by their scores."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

import numpy as np

from prisma_steps.analysis.circuits.graph import Graph
from prisma_steps.step import StepError


def check_sizes(graph: Graph, sizes: Sequence[int]) -> None:
    """Refuse sizes that no circuit of a graph has.

    Raises:
        StepError: naming the first such size.
    """
    unfit = [size for size in sizes if size not in range(1, graph.n_edges + 1)]
    if unfit:
        raise StepError(
            f"circuit_sizes has {unfit[0]}, and the model's graph has {graph.n_edges} edges: give sizes from "
            f"1 to {graph.n_edges}"
        )


def top(graph: Graph, scores: np.ndarray, size: int) -> np.ndarray:
    """The edges of largest |score|, bool [source, target]."""
    source, target = graph.edges.nonzero()
    order = np.argsort(-np.abs(scores[source, target]), kind="stable")[:size]
    circuit = np.zeros_like(graph.edges)
    circuit[source[order], target[order]] = True
    return circuit


def greedy(graph: Graph, scores: np.ndarray, size: int) -> np.ndarray:
    """Edges taken one after the other from the logits upwards (Hanna et al. 2024, section 2.3).

    Always that of largest |score| whose target is part of what was taken before: the logits, or an input of
    a source of an edge.

    Returns:
        bool [source, target].
    """
    circuit = np.zeros_like(graph.edges)
    waiting: list[tuple[float, int, int]] = []

    def reach(target: int) -> None:
        for source in graph.edges[:, target].nonzero()[0].tolist():
            heapq.heappush(waiting, (-abs(float(scores[source, target])), source, target))

    reach(len(graph.targets) - 1)
    for _ in range(size):
        _, source, target = heapq.heappop(waiting)
        if not circuit[source].any():
            for place in graph.inputs[source].nonzero()[0].tolist():
                reach(place)
        circuit[source, target] = True
    return circuit


#: Ways to choose the edges of a circuit, by name.
SELECTIONS: dict[str, Callable[[Graph, np.ndarray, int], np.ndarray]] = {"greedy": greedy, "top": top}


def random_circuit(graph: Graph, order: np.ndarray, size: int) -> np.ndarray:
    """So many edges taken from the logits upwards in a random order, so that each reaches them.

    Args:
        graph: what they are of.
        order: a random number of every edge [source, target]; circuits of one order grow with their size.
        size: number of edges.
    """
    return greedy(graph, order, size)


def without_each_edge(circuit: np.ndarray) -> list[np.ndarray]:
    """A circuit [source, target] without one of its edges, for each of them, row by row."""
    smaller = [circuit.copy() for _ in range(circuit.sum())]
    for one, edge in zip(smaller, np.argwhere(circuit), strict=True):
        one[tuple(edge)] = False
    return smaller
