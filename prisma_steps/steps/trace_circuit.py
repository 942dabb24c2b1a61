"""Step ``trace_circuit``: which edges of a model's graph make its answer, and how much of it they make."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import model_validator

from prisma_steps.analysis.circuits.settings import CircuitParams
from prisma_steps.job import Job
from prisma_steps.schema import Circuit, Images, Model, Pairs, label
from prisma_steps.seeding import numpy_generator
from prisma_steps.step import Artifact, Field, StepError, step

if TYPE_CHECKING:
    import numpy as np
    import torch
    import xarray as xr

    from prisma_steps.analysis.circuits.curves import Variables
    from prisma_steps.analysis.circuits.graph import Graph
    from prisma_steps.analysis.circuits.tracing import PairTensors
    from prisma_steps.models.hooked import HookedViT


class Params(CircuitParams):
    """How edges are scored, and which circuits are tried."""

    method: Literal["exact", "eap", "eap_ig"] = Field(
        "eap_ig",
        description="exact patches each edge in a run of its own (small models); eap and eap_ig take "
        "gradients, of the clean run or along the line from the clean to the corrupted embedding",
    )
    ig_steps: int = Field(
        5,
        gt=0,
        description="embeddings along the line",
        json_schema_extra={"only_for": {"method": ["eap_ig"]}},
    )
    selection: Literal["greedy", "top"] = Field(
        "greedy",
        description="greedy takes the best edge that reaches the logits by edges taken before; top takes the "
        "best edges wherever they are",
    )
    ablations: list[Literal["corrupted", "zero", "mean", "resample"]] = Field(
        ["corrupted"],
        min_length=1,
        description="what edges outside of a circuit carry: what the corrupted image writes, nothing, the "
        "mean over clean images, what the clean image of another pair writes",
    )
    minimality_of: int | None = Field(
        None,
        description="the size of a circuit whose edges are cut one at a time, to see what it needs; null "
        "cuts none",
        json_schema_extra={"as_before": True},
    )
    memory_mb: int = Field(
        2048,
        gt=0,
        description="mebibytes for activations and their gradients; weights come on top",
        json_schema_extra={"not_in_key": True},
    )

    @model_validator(mode="after")
    def _has_such_a_circuit(self) -> Params:
        if self.minimality_of is not None and self.minimality_of not in self.circuit_sizes:
            raise ValueError(
                f"minimality_of is {self.minimality_of}, which is none of circuit_sizes: {self.sizes}"
            )
        return self

    @model_validator(mode="after")
    def _has_a_gradient(self) -> Params:
        if self.method == "eap" and self.metric == "kl_to_clean":
            raise ValueError(
                "the KL divergence to the clean run has no gradient at the clean run, so that method eap "
                "gives 0 for all edges: set method: eap_ig or exact, or metric: logit_difference"
            )
        return self


@step(inputs={"model": Model, "images": Images, "pairs": Pairs}, output=Circuit)
def trace_circuit(
    model: Artifact, images: xr.Dataset, pairs: xr.Dataset, params: Params, job: Job
) -> xr.Dataset:
    """Score every edge between parts of a model, and run the circuits that the best ones make.

    Returns:
        See ``circuit_of_model``.

    Raises:
        StepError: as ``circuit_of_model``.
    """
    from prisma_steps.models.loading import load_model

    return circuit_of_model(load_model(model, job.device), images, pairs, params, job)


def circuit_of_model(
    vit: HookedViT, images: xr.Dataset, pairs: xr.Dataset, params: Params, job: Job
) -> xr.Dataset:
    """What the step ``trace_circuit`` returns, of a model in memory whose parameters need no gradients.

    The graph is that of Hanna et al. 2024 (arXiv 2403.17806): embedding, heads and MLPs write to the residual
    stream; queries, keys and values of each head, MLPs and logits read it. A score is the change of the
    metric when one edge carries what the corrupted image writes, summed over tokens, the mean over pairs:
    exactly (path patching, Goldowsky-Dill et al. 2023, arXiv 2304.05969), or to first order (Syed et al.
    2023, arXiv 2310.10348; Hanna et al. 2024).

    Returns:
        ``score`` along source and target, NaN where there is no edge. ``in_circuit`` for every size, after
        edges are left out that no path from embedding to logits takes; how many are kept. ``faithfulness`` of
        each size and ablation, (m(circuit) − m(empty)) / (m(clean) − m(empty)), its mean over the range of
        sizes, and the same of the circuit's complement and of random circuits of as many edges. The metric
        itself of all of these runs. If asked for, ``minimality`` of the edges of one circuit: how much
        faithfulness it loses without the edge.

    Raises:
        StepError: for a circuit size larger than the graph, a pair of equal images or without two classes,
            classes that the model does not have, a model whose heads cannot be split, and pairs of which the
            model makes the same whatever is ablated.
    """
    from prisma_steps.analysis.circuits.selection import check_sizes
    from prisma_steps.analysis.circuits.split import graph_of
    from prisma_steps.analysis.circuits.tracing import pair_tensors, pairs_at_once, score_edges

    graph = graph_of(vit)
    check_sizes(graph, params.circuit_sizes)
    tensors = pair_tensors(vit, images, pairs, params.metric)
    if len(tensors) < 2 and "resample" in params.ablations:
        raise StepError("trace_circuit: resample takes images of other pairs, and there is one pair only")
    batch_size = pairs_at_once(vit, params.memory_mb)
    scores = score_edges(
        vit,
        tensors,
        params.method,
        params.metric,
        params.ig_steps,
        batch_size,
        lambda done, total: job.progress(done, total, "scores"),
    )
    found = scores.cpu().double().numpy()
    chosen = _choose(graph, found, params)
    runs = _run(vit, tensors, graph, chosen, batch_size, params, job)
    return label(_labelled(graph, found, chosen, runs, params).assign_attrs(n_pairs=len(tensors)))


def _choose(graph: Graph, scores: np.ndarray, params: Params) -> np.ndarray:
    """Circuits of each size, bool [n_edges, source, target]."""
    import numpy as np

    from prisma_steps.analysis.circuits.selection import SELECTIONS

    select = SELECTIONS[params.selection]
    return np.stack([graph.pruned(select(graph, scores, size)) for size in params.sizes])


def _controls(graph: Graph, chosen: np.ndarray, params: Params) -> list[np.ndarray]:
    """Random circuits with as many edges as those that were chosen, control by control."""
    from prisma_steps.analysis.circuits.selection import random_circuit

    circuits = []
    for control in range(params.n_controls):
        order = numpy_generator(params.seed, f"random circuit {control}").random(graph.edges.shape)
        circuits += [random_circuit(graph, order, int(circuit.sum())) for circuit in chosen]
    return circuits


def _run(
    vit: HookedViT,
    tensors: PairTensors,
    graph: Graph,
    chosen: np.ndarray,
    batch_size: int,
    params: Params,
    job: Job,
) -> Variables:
    """Metric and faithfulness of circuits, their complements, random ones, and one without each edge."""
    import numpy as np
    import torch

    from prisma_steps.analysis.circuits.curves import curves, losses
    from prisma_steps.analysis.circuits.selection import without_each_edge
    from prisma_steps.analysis.circuits.tracing import circuit_metrics

    cut = params.minimality_of
    smaller = [] if cut is None else without_each_edge(chosen[params.sizes.index(cut)])
    empty = np.zeros_like(graph.edges)
    circuits = [*smaller, *chosen, *(graph.edges & ~chosen), *_controls(graph, chosen, params), empty]
    clean, metrics = circuit_metrics(
        vit,
        tensors,
        torch.from_numpy(np.stack(circuits)).to(vit.device),
        params.ablations,
        params.metric,
        _others(len(tensors), params.seed),
        batch_size,
        lambda done, total: job.progress(done, total, "circuits"),
    )
    of_smaller, others = np.split(metrics, [len(smaller)], axis=1)
    found = curves(clean, others, params.ablations, params.sizes, params.n_controls, "n_edges")
    if cut is None:
        return found
    place = params.sizes.index(cut)
    lost = losses(clean, others[:, place], of_smaller, others[:, -1], chosen[place])
    return {**found, "minimality": (("ablation", "source", "target"), lost)}


def _others(n_pairs: int, seed: int) -> torch.Tensor:
    """For every pair another one, each taken once."""
    import torch

    order = torch.from_numpy(numpy_generator(seed, "resampling").permutation(n_pairs))
    others = torch.empty_like(order)
    others[order] = order.roll(1)
    return others


def _labelled(
    graph: Graph, scores: np.ndarray, chosen: np.ndarray, runs: Variables, params: Params
) -> xr.Dataset:
    import numpy as np
    import xarray as xr

    variables = {
        "score": (("source", "target"), np.where(graph.edges, scores, np.nan)),
        "in_circuit": (("n_edges", "source", "target"), chosen),
        "n_edges_kept": (("n_edges",), chosen.sum((1, 2))),
        **runs,
    }
    coords = {"source": graph.sources, "target": graph.targets, "n_edges": params.sizes}
    coords |= {"ablation": params.ablations, "control": np.arange(params.n_controls)}
    attrs = {"method": params.method, "metric": params.metric, "selection": params.selection}
    return xr.Dataset(variables, coords, {**attrs, "graph_edges": graph.n_edges})
