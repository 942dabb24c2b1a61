from __future__ import annotations

import pytest
import torch

from prisma_steps.analysis.circuits.exact import exact_scores
from prisma_steps.analysis.circuits.gradients import edge_attribution
from prisma_steps.analysis.circuits.graph import Graph
from prisma_steps.analysis.circuits.running import run_circuit
from prisma_steps.analysis.circuits.selection import greedy, top
from prisma_steps.analysis.circuits.split import graph_of, writes_of
from prisma_steps.analysis.metrics import logit_difference
from prisma_steps.models.hooked import HookedViT
from tests.analysis.circuits.planted import CIRCUIT, planted_pixels, planted_vit

TRUTH = torch.tensor([0.0, 1.0, 1.0, 0.0])
CLASSES = torch.stack([TRUTH, 1 - TRUTH], dim=1).long()


@pytest.fixture(scope="module")
def model() -> HookedViT:
    return HookedViT(planted_vit().requires_grad_(False))


@pytest.fixture(scope="module")
def sides() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return planted_pixels(TRUTH, generator), planted_pixels(1 - TRUTH, generator)


def names(graph: Graph, circuit: torch.Tensor) -> set[tuple[str, str]]:
    return {(graph.sources[source], graph.targets[target]) for source, target in circuit.nonzero().tolist()}


def test_it_answers_what_the_last_patch_says(
    model: HookedViT, sides: tuple[torch.Tensor, torch.Tensor]
) -> None:
    assert torch.equal(model(sides[0]).argmax(-1), CLASSES[:, 0])
    assert torch.equal(model(sides[1]).argmax(-1), CLASSES[:, 1])


@pytest.mark.parametrize("way", ["exact", "eap", "eap_ig"])
def test_exactly_the_planted_edges_score(
    model: HookedViT, sides: tuple[torch.Tensor, torch.Tensor], way: str
) -> None:
    metric = logit_difference(CLASSES)
    scores = (
        exact_scores(model, *sides, metric, 16)
        if way == "exact"
        else edge_attribution(model, *sides, metric, 3 if way == "eap_ig" else 0)
    )
    graph = graph_of(model)
    # The score of an edge is the whole effect, from 1 to −1 in each of four pairs; a softmax of 100 / √6
    # leaves e⁻⁴⁰ for other tokens, and float32 rounds at 1e-7.
    assert names(graph, scores.abs() > 1e-4) == CIRCUIT
    for source, target in CIRCUIT:
        found = scores[graph.sources.index(source), graph.targets.index(target)]
        assert float(found) == pytest.approx(-8, abs=1e-4)
    for select in (top, greedy):
        assert names(graph, torch.from_numpy(select(graph, scores.numpy(), 3))) == CIRCUIT


def test_the_planted_circuit_is_faithful_and_each_of_its_edges_is_needed(
    model: HookedViT, sides: tuple[torch.Tensor, torch.Tensor]
) -> None:
    graph, metric = graph_of(model), logit_difference(CLASSES)
    embed, ablated = writes_of(model, sides[0])[1][0], writes_of(model, sides[1])[1]
    circuit = torch.tensor([[(a, b) in CIRCUIT for b in graph.targets] for a in graph.sources])

    def answer(kept: torch.Tensor) -> torch.Tensor:
        return metric(run_circuit(model, kept, embed, ablated))

    torch.testing.assert_close(answer(circuit), torch.ones(4), rtol=0, atol=1e-4)
    for source, target in circuit.nonzero().tolist():
        less = circuit.clone()
        less[source, target] = False
        torch.testing.assert_close(answer(less), -torch.ones(4), rtol=0, atol=1e-4)
