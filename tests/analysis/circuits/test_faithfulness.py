from __future__ import annotations

import numpy as np
import pytest
import torch

from prisma_steps.analysis.circuits.curves import area, faithfulness
from prisma_steps.analysis.circuits.running import run_circuit
from prisma_steps.analysis.circuits.split import graph_of, writes_of
from tests.analysis.circuits.naive import naive_circuit
from tests.models.families import frozen, pixels_for

# Float64: sums in another order, of numbers of about 1.
CLOSE = {"rtol": 1e-9, "atol": 1e-10}

TOYS = ["toy", "toy attention-only", "toy without LayerNorm", "toy bare"]
FAMILIES = [
    *TOYS,
    "toy mean, registers",
    "toy video",
    "vit",
    "beit",
    "clip classifier",
    "siglip",
    "dinov2",
    "dinov2_with_registers",
    "videomae",
    "vivit",
    "vjepa2",
    "timm",
    "timm mean of patches, QK-norm",
]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_whole_graph_is_the_clean_run_and_the_empty_one_the_corrupted(name: str) -> None:
    model = frozen(name)
    clean, corrupted = pixels_for(model, 2, seed=3), pixels_for(model, 2, seed=4)
    embed, ablated = writes_of(model, clean)[1][0], writes_of(model, corrupted)[1]
    whole = torch.from_numpy(graph_of(model).edges)
    torch.testing.assert_close(run_circuit(model, whole, embed, ablated), model(clean), **CLOSE)
    nothing = torch.zeros_like(whole)
    torch.testing.assert_close(run_circuit(model, nothing, embed, ablated), model(corrupted), **CLOSE)


@pytest.mark.parametrize("name", TOYS)
@pytest.mark.parametrize("ablation", ["corrupted", "zero", "mean"])
def test_a_circuit_is_run_as_node_by_node(name: str, ablation: str) -> None:
    model = frozen(name)
    graph = graph_of(model)
    clean, corrupted = pixels_for(model, 2, seed=3), pixels_for(model, 2, seed=4)
    before, after = writes_of(model, clean)[1], writes_of(model, corrupted)[1]
    ablated = {"corrupted": after, "zero": 0 * before, "mean": before.mean(1, keepdim=True)}[ablation]
    named = dict(zip(graph.sources, ablated, strict=True))
    random = np.random.default_rng(0)
    for share in (0.1, 0.5, 0.9):
        circuit = graph.edges & (random.random(graph.edges.shape) < share)
        found = run_circuit(model, torch.from_numpy(circuit), before[0], ablated)
        expected = naive_circuit(model, graph, circuit, clean, named)
        torch.testing.assert_close(found, expected, **CLOSE)
        assert not torch.allclose(found, model(clean))


def test_pruning_changes_nothing_where_edges_carry_corrupted_writes() -> None:
    model = frozen("toy")
    graph = graph_of(model)
    clean, corrupted = pixels_for(model, 2, seed=3), pixels_for(model, 2, seed=4)
    embed, ablated = writes_of(model, clean)[1][0], writes_of(model, corrupted)[1]
    circuit = graph.edges & (np.random.default_rng(0).random(graph.edges.shape) < 0.15)
    pruned = graph.pruned(circuit)
    assert pruned.sum() < circuit.sum()
    found = [run_circuit(model, torch.from_numpy(edges), embed, ablated) for edges in (circuit, pruned)]
    torch.testing.assert_close(*found, **CLOSE)


def test_faithfulness_is_1_of_the_clean_run_and_0_of_the_empty_circuit() -> None:
    found = faithfulness(np.array([[4.0, -2.0, 1.0], [4.0, 2.0, 6.0]]), 4.0, np.array([[-2.0], [2.0]]))
    np.testing.assert_array_equal(found, [[1, 0, 0.5], [1, 0, 2]])


def test_area_is_the_mean_over_the_range_of_sizes() -> None:
    # From 1 to 3: (0 + 1) / 2 · 2; from 3 to 7: 1 · 4; over a range of 6.
    assert area(np.array([0.0, 1.0, 1.0]), [1, 3, 7]) == pytest.approx(5 / 6)
    assert area(np.full((2, 3), 0.25), [1, 10, 100]) == pytest.approx([0.25, 0.25])
    assert area(np.array([0.3]), [5]) == 0.3
