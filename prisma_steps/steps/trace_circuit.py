"""Step ``trace_circuit``: which edges of a model's graph make its answer, and how much of it they make."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import model_validator

from prisma_steps.schema import Circuit, Images, Model, Pairs, label
from prisma_steps.seeding import numpy_generator
from prisma_steps.step import Artifact, Field, Job, StepError, StepParams, step

if TYPE_CHECKING:
    import numpy as np
    import torch
    import xarray as xr

    from prisma_steps.analysis.circuits.graph import Graph
    from prisma_steps.analysis.circuits.tracing import PairTensors
    from prisma_steps.models.hooked import HookedViT


class Params(StepParams):
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
    metric: Literal["logit_difference", "kl_to_clean"] = Field(
        "logit_difference",
        description="what is explained: the logit of the clean class minus that of the corrupted one, or the "
        "KL divergence to the clean run",
    )
    circuit_sizes: list[int] = Field(
        min_length=1, description="edges of the circuits, before those are left out that lead nowhere"
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
    n_controls: int = Field(3, ge=0, description="random circuits of each size, for comparison")
    seed: int = Field(0, ge=0, description="seed of random circuits and of resampling")
    batch_size: int = Field(8, gt=0, description="images run at once", json_schema_extra={"not_in_key": True})

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
        itself of all of these runs.

    Raises:
        StepError: for a circuit size larger than the graph, a pair of equal images or without two classes,
            classes that the model does not have, a model whose heads cannot be split.
    """
    from prisma_steps.analysis.circuits.selection import check_sizes
    from prisma_steps.analysis.circuits.split import graph_of
    from prisma_steps.analysis.circuits.tracing import score_edges
    from prisma_steps.models.loading import load_model

    vit = load_model(model, job.device)
    graph = graph_of(vit)
    check_sizes(graph, params.circuit_sizes)
    tensors = _tensors(vit, images, pairs, params)
    scores = score_edges(
        vit,
        tensors,
        params.method,
        params.metric,
        params.ig_steps,
        params.batch_size,
        lambda done, total: job.progress(done, total, "scores"),
    )
    circuits = _choose(graph, scores.cpu().double().numpy(), params)
    runs = _run(vit, tensors, circuits, params, job)
    return _labelled(graph, scores.cpu().numpy(), circuits, runs, params)


def _tensors(vit: HookedViT, images: xr.Dataset, pairs: xr.Dataset, params: Params) -> PairTensors:
    """The pairs, checked."""
    from prisma_steps.analysis.circuits.tracing import PairTensors
    from prisma_steps.data.pairs import check_pairs, classes_of, prepared_sides

    check_pairs(images, pairs)
    n_pairs = pairs.sizes["pair"]
    if n_pairs < 2 and "resample" in params.ablations:
        raise StepError("trace_circuit: resample takes images of other pairs, and there is one pair only")
    classes = None
    if params.metric == "logit_difference":
        classes = classes_of(pairs, vit.class_names).to(vit.device)
    tensors = PairTensors(*prepared_sides(images, pairs, slice(n_pairs), vit.preprocess), classes)
    tensors.check()
    return tensors


def _sizes(params: Params) -> list[int]:
    return sorted(set(params.circuit_sizes))


def _choose(graph: Graph, scores: np.ndarray, params: Params) -> dict[str, np.ndarray]:
    """Circuits, all else, and random circuits of as many edges, bool […, n_edges, source, target]."""
    import numpy as np

    from prisma_steps.analysis.circuits.selection import SELECTIONS, random_circuit

    chosen = [graph.pruned(SELECTIONS[params.selection](graph, scores, size)) for size in _sizes(params)]
    random = np.zeros((params.n_controls, len(chosen), *graph.edges.shape), dtype=bool)
    for control in range(params.n_controls):
        generator = numpy_generator(params.seed, f"random circuit {control}")
        order = generator.random(graph.edges.shape)
        for place, circuit in enumerate(chosen):
            random[control, place] = random_circuit(graph, order, int(circuit.sum()))
    return {
        "": np.stack(chosen),
        "_complement": graph.edges & ~np.stack(chosen),
        "_random": random,
        "_empty": np.zeros(graph.edges.shape, dtype=bool),
    }


def _run(
    vit: HookedViT, tensors: PairTensors, circuits: dict[str, np.ndarray], params: Params, job: Job
) -> dict[str, np.ndarray]:
    """The metric of each circuit, [ablation, …, n_edges], by the names of ``circuits``; ``_clean`` too."""
    import numpy as np
    import torch

    from prisma_steps.analysis.circuits.tracing import circuit_metrics

    flat = [circuit.reshape(-1, *circuit.shape[-2:]) for circuit in circuits.values()]
    clean, found = circuit_metrics(
        vit,
        tensors,
        torch.from_numpy(np.concatenate(flat)).to(vit.device),
        params.ablations,
        params.metric,
        _others(len(tensors), params.seed),
        params.batch_size,
        lambda done, total: job.progress(done, total, "circuits"),
    )
    parts = np.split(found, np.cumsum([len(part) for part in flat])[:-1], axis=1)
    shapes = [circuit.shape[:-2] for circuit in circuits.values()]
    runs = {
        name: part.reshape(len(found), *shape)
        for name, part, shape in zip(circuits, parts, shapes, strict=True)
    }
    _check_ends(clean, runs["_empty"], params)
    return {**runs, "_clean": np.array(clean)}


def _others(n_pairs: int, seed: int) -> torch.Tensor:
    """For every pair another one, each taken once."""
    import torch

    order = torch.from_numpy(numpy_generator(seed, "resampling").permutation(n_pairs))
    others = torch.empty_like(order)
    others[order] = order.roll(1)
    return others


def _check_ends(clean: float, empty: np.ndarray, params: Params) -> None:
    for ablation, value in zip(params.ablations, empty, strict=True):
        if value == clean:
            raise StepError(
                f"trace_circuit: with all edges ablated ({ablation}) the metric is {clean:.6g} as in the "
                "clean run, so that there is nothing a circuit could be faithful to. Give pairs that the "
                "model answers differently"
            )


def _labelled(
    graph: Graph,
    scores: np.ndarray,
    circuits: dict[str, np.ndarray],
    runs: dict[str, np.ndarray],
    params: Params,
) -> xr.Dataset:
    import numpy as np
    import xarray as xr

    chosen = circuits[""]
    variables = {
        "score": (("source", "target"), np.where(graph.edges, scores, np.nan)),
        "in_circuit": (("n_edges", "source", "target"), chosen),
        "n_edges_kept": (("n_edges",), chosen.sum((1, 2))),
        "clean_metric": ((), runs["_clean"]),
        "empty_metric": (("ablation",), runs["_empty"]),
        **_curves(runs, _sizes(params)),
    }
    coords = {"source": graph.sources, "target": graph.targets, "n_edges": _sizes(params)}
    coords |= {"ablation": params.ablations, "control": np.arange(params.n_controls)}
    attrs = {"method": params.method, "metric": params.metric, "selection": params.selection}
    return label(xr.Dataset(variables, coords, {**attrs, "graph_edges": graph.n_edges}))


def _curves(runs: dict[str, np.ndarray], sizes: list[int]) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    """Metric, faithfulness and its area, of the circuits, of their complements and of random ones."""
    from prisma_steps.analysis.circuits.faithfulness import area, faithfulness

    found: dict[str, tuple[tuple[str, ...], np.ndarray]] = {}
    for which in ("", "_complement", "_random"):
        run = runs[which]
        dims = ("ablation", *["control"] * (run.ndim - 2), "n_edges")
        empty = runs["_empty"].reshape(-1, *[1] * (run.ndim - 1))
        curve = faithfulness(run, float(runs["_clean"]), empty)
        found[f"circuit_metric{which}"] = dims, run
        found[f"faithfulness{which}"] = dims, curve
        found[f"faithfulness_area{which}"] = dims[:-1], area(curve, sizes)
    return found
