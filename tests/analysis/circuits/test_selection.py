from __future__ import annotations

import itertools

import numpy as np
import pytest

from prisma_steps.analysis.circuits.graph import Graph
from prisma_steps.analysis.circuits.selection import check_sizes, greedy, random_circuit, top
from prisma_steps.step import StepError

GRAPH = Graph(n_layers=2, n_heads=2, n_mlps=1)


def circuit(*edges: tuple[str, str]) -> np.ndarray:
    made = np.zeros(GRAPH.edges.shape, dtype=bool)
    for source, target in edges:
        made[GRAPH.sources.index(source), GRAPH.targets.index(target)] = True
    return made


def scores(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(GRAPH.edges.shape)


def on_a_path(kept: np.ndarray) -> np.ndarray:
    """By following every path from the embedding, one edge at a time."""
    found = np.zeros_like(kept)

    def follow(source: str, way: list[tuple[int, int]]) -> None:
        row = GRAPH.sources.index(source)
        for column in kept[row].nonzero()[0]:
            target = GRAPH.targets[column]
            further = [*way, (row, column)]
            if target == "logits":
                for edge in further:
                    found[edge] = True
            else:
                follow(target if target.startswith("mlp") else target[:-2], further)

    follow("embed", [])
    return found


@pytest.mark.parametrize("seed", range(20))
def test_pruned_edges_are_those_on_a_path(seed: int) -> None:
    kept = GRAPH.edges & (np.random.default_rng(seed).random(GRAPH.edges.shape) < 0.25)
    np.testing.assert_array_equal(GRAPH.pruned(kept), on_a_path(kept))


def test_the_whole_graph_is_not_pruned() -> None:
    np.testing.assert_array_equal(GRAPH.pruned(GRAPH.edges), GRAPH.edges)


@pytest.mark.parametrize("size", [1, 7, 46])
def test_top_edges_are_the_largest(size: int) -> None:
    found, values = top(GRAPH, scores(0), size), np.abs(scores(0))
    assert found.sum() == size
    assert not (found & ~GRAPH.edges).any()
    left_out = values[GRAPH.edges & ~found]
    assert values[found].min() >= left_out.max(initial=0)


def test_greedy_takes_the_largest_edge_that_reaches_what_it_has() -> None:
    """The same by the definition: look at all edges again, each time."""
    values, taken = np.abs(scores(1)), np.zeros_like(GRAPH.edges)
    for size in range(1, GRAPH.n_edges + 1):
        nodes = {GRAPH.sources[row] for row in taken.any(1).nonzero()[0]}
        reached = [
            target == "logits" or target in nodes or target.rpartition(".")[0] in nodes
            for target in GRAPH.targets
        ]
        may = GRAPH.edges & ~taken & np.array(reached)
        taken[np.unravel_index(np.where(may, values, -1).argmax(), taken.shape)] = True
        np.testing.assert_array_equal(greedy(GRAPH, scores(1), size), taken)
    np.testing.assert_array_equal(taken, GRAPH.edges)


def test_greedy_circuits_grow() -> None:
    circuits = [greedy(GRAPH, scores(2), size) for size in range(1, 47)]
    assert all(not (small & ~large).any() for small, large in itertools.pairwise(circuits))


def test_random_circuits_have_the_size_and_reach_the_logits() -> None:
    generator = np.random.default_rng(0)
    drawn = [random_circuit(GRAPH, generator.random(GRAPH.edges.shape), 9) for _ in range(20)]
    assert {int(found.sum()) for found in drawn} == {9}
    assert len({found.tobytes() for found in drawn}) == 20
    for found in drawn:
        nodes = {GRAPH.sources[row] for row in found.any(1).nonzero()[0]}
        for column in found.any(0).nonzero()[0]:
            target = GRAPH.targets[column]
            assert target == "logits" or target in nodes or target.rpartition(".")[0] in nodes


@pytest.mark.parametrize("size", [47, 0, -1])
def test_sizes_that_no_circuit_has_are_refused(size: int) -> None:
    check_sizes(GRAPH, [1, 46])
    with pytest.raises(StepError, match=f"circuit_sizes has {size}, and the model's graph has 46 edges"):
        check_sizes(GRAPH, [3, size])
