"""Step ``trace_latents``: which latents of dictionaries make a model's answer, and through which others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from prisma_steps.analysis.circuits.settings import CircuitParams
from prisma_steps.job import Job
from prisma_steps.schema import Dictionary, Images, LatentCircuit, Model, Pairs, label
from prisma_steps.seeding import numpy_generator
from prisma_steps.step import Artifact, Field, StepError, gather, step

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import torch
    import xarray as xr

    from prisma_steps.analysis.circuits.curves import Variables
    from prisma_steps.analysis.circuits.latent_tracing import Nodes
    from prisma_steps.analysis.circuits.latents import Placed
    from prisma_steps.analysis.circuits.tracing import PairTensors
    from prisma_steps.models.hooked import HookedViT
    from prisma_steps.models.splicing import Splice


class Params(CircuitParams):
    """How latents are scored, and which circuits are tried."""

    ig_steps: int = Field(
        10, gt=0, description="runs between clean and corrupted latents, whose gradients are averaged"
    )
    n_latents: int = Field(
        16,
        gt=0,
        description="latents of each dictionary, those of the largest effect, between which are edges",
    )
    ablations: list[Literal["corrupted", "zero", "mean"]] = Field(
        ["corrupted"],
        min_length=1,
        description="what is outside of a circuit: as in the corrupted image, nothing, the mean over "
        "clean images",
    )
    memory_mb: int = Field(
        1024,
        gt=0,
        description="mebibytes for activations and latents; weights come on top",
        json_schema_extra={"not_in_key": True},
    )


@step(
    inputs={"model": Model, "images": Images, "pairs": Pairs, "sae": gather(Dictionary)},
    output=LatentCircuit,
)
def trace_latents(
    model: Artifact, images: xr.Dataset, pairs: xr.Dataset, sae: xr.Dataset, params: Params, job: Job
) -> xr.Dataset:
    """Score latents and error terms of dictionaries by integrated gradients, and run the best as circuits.

    All points of a grid of autoencoders or transcoders, say of one a layer, are in the model together.

    Returns:
        See ``circuit_of_latents``.

    Raises:
        StepError: as ``circuit_of_latents``; and for crosscoders.
    """
    from prisma_steps.models.loading import load_model
    from prisma_steps.sae.gathered import one_by_one
    from prisma_steps.sae.placed import as_splice

    splices = [as_splice(data, job.device) for data in one_by_one(sae)]
    return circuit_of_latents(load_model(model, job.device), images, pairs, splices, params, job)


def circuit_of_latents(
    vit: HookedViT,
    images: xr.Dataset,
    pairs: xr.Dataset,
    splices: Sequence[Splice],
    params: Params,
    job: Job,
) -> xr.Dataset:
    """What the step ``trace_latents`` returns, of a model and dictionaries in memory.

    Marks et al. 2024 (arXiv 2403.19647), section 3. An effect is the change of the metric when a latent takes
    its corrupted value, to first order along the way there, summed over tokens, the mean over pairs.

    Returns:
        ``latent_effect`` along dictionary and latent, ``error_effect`` along dictionary. ``score`` of edges
        along source and target, which are latents of the largest effect and error terms: from each dictionary
        to the next by gradients of the clean run, from the last to the logits the effect itself; NaN where
        there is no edge. For each size ``in_circuit`` and ``error_in_circuit``, and for each ablation
        ``faithfulness``, that of the circuit's complement and of random circuits of latents that differ.

    Raises:
        StepError: for dictionaries that do not belong to the model, or are not of one width, or two of one
            site; a circuit size larger than there are latents and error terms; pairs as ``trace_circuit``
            refuses them.
    """
    import xarray as xr

    from prisma_steps.analysis.circuits.latent_tracing import (
        latent_pairs_at_once,
        score_latent_edges,
        score_latents,
    )
    from prisma_steps.analysis.circuits.latents import placed_in_order
    from prisma_steps.analysis.circuits.tracing import pair_tensors

    placed = placed_in_order(vit, splices)
    _check_sizes(placed, params.circuit_sizes)
    tensors = pair_tensors(vit, images, pairs, params.metric)
    batch_size = latent_pairs_at_once(vit, placed, params.memory_mb)
    effects = score_latents(
        vit,
        placed,
        tensors,
        params.metric,
        params.ig_steps,
        batch_size,
        lambda done, total: job.progress(done, total, "effects"),
    )
    chosen = [found[:-1].abs().topk(min(params.n_latents, len(found) - 1)).indices for found in effects]
    edges = score_latent_edges(vit, placed, tensors, params.metric, chosen, batch_size)
    variables = {
        **_effects(effects),
        **_edges(effects, chosen, edges),
        **_circuits(vit, placed, tensors, effects, params, batch_size, job),
    }
    coords = _coords(placed, chosen, params)
    return label(xr.Dataset(variables, coords, {"metric": params.metric, "n_pairs": len(tensors)}))


def _check_sizes(placed: Sequence[Placed], sizes: Sequence[int]) -> None:
    widths = sorted({one.n_nodes - 1 for one in placed})
    if len(widths) > 1:
        raise StepError(f"the dictionaries have {widths} latents: give dictionaries of one width")
    n_nodes = sum(one.n_nodes for one in placed)
    unfit = [size for size in sizes if size not in range(1, n_nodes + 1)]
    if unfit:
        raise StepError(
            f"circuit_sizes has {unfit[0]}, and the dictionaries have {n_nodes} latents and error terms: "
            f"give sizes from 1 to {n_nodes}"
        )


def _effects(effects: Nodes) -> Variables:
    import torch

    stacked = torch.stack(effects).cpu().numpy()
    return {
        "latent_effect": (("dictionary", "latent"), stacked[:, :-1]),
        "error_effect": (("dictionary",), stacked[:, -1]),
    }


def _names(placed: Placed, chosen: torch.Tensor) -> list[str]:
    return [*(f"{placed.name} latent {latent}" for latent in chosen.tolist()), f"{placed.name} error"]


def _edges(effects: Nodes, chosen: Sequence[torch.Tensor], edges: Sequence[torch.Tensor]) -> Variables:
    """Scores between chosen latents and error terms of each dictionary and the next, and to the logits."""
    import numpy as np

    sizes = [len(latents) + 1 for latents in chosen]
    starts = np.cumsum([0, *sizes])
    scores = np.full((starts[-1], starts[-1] - sizes[0] + 1), np.nan)
    for place, found in enumerate(edges):
        rows, first = slice(starts[place], starts[place + 1]), starts[place + 1] - sizes[0]
        scores[rows, first : first + sizes[place + 1]] = found.cpu().numpy()
    scores[starts[-2] :, -1] = [*effects[-1][chosen[-1]].tolist(), float(effects[-1][-1])]
    return {"score": (("source", "target"), scores)}


def _coords(placed: Sequence[Placed], chosen: Sequence[torch.Tensor], params: Params) -> dict[str, object]:
    import numpy as np

    names = [_names(one, latents) for one, latents in zip(placed, chosen, strict=True)]
    return {
        "dictionary": [one.name for one in placed],
        "latent": np.arange(placed[0].n_nodes - 1),
        "source": [name for own in names for name in own],
        "target": [*(name for own in names[1:] for name in own), "logits"],
        "n_nodes": params.sizes,
        "ablation": params.ablations,
        "control": np.arange(params.n_controls),
    }


def _circuits(
    vit: HookedViT,
    placed: Sequence[Placed],
    tensors: PairTensors,
    effects: Nodes,
    params: Params,
    batch_size: int,
    job: Job,
) -> Variables:
    """The circuits of each size, and metric and faithfulness of them, their complements and random ones."""
    import numpy as np
    import torch

    from prisma_steps.analysis.circuits.curves import curves
    from prisma_steps.analysis.circuits.latent_tracing import latent_circuit_metrics

    strength = torch.cat([found.abs() for found in effects]).cpu().numpy()
    chosen = _largest(strength, params.sizes)
    circuits = [*chosen, *~chosen, *_controls(strength, params), np.zeros_like(chosen[0])]
    widths = [one.n_nodes for one in placed]
    clean, metrics = latent_circuit_metrics(
        vit,
        placed,
        tensors,
        [torch.from_numpy(circuit).to(vit.device).split(widths) for circuit in circuits],
        params.ablations,
        params.metric,
        batch_size,
        lambda done, total: job.progress(done, total, "circuits"),
    )
    per_dictionary = chosen.reshape(len(chosen), len(placed), -1)
    return {
        "latent_in_circuit": (("n_nodes", "dictionary", "latent"), per_dictionary[..., :-1]),
        "error_in_circuit": (("n_nodes", "dictionary"), per_dictionary[..., -1]),
        **curves(clean, metrics, params.ablations, params.sizes, params.n_controls, "n_nodes"),
    }


def _largest(strength: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """The nodes of the largest strength, bool [size, node]."""
    import numpy as np

    place = np.empty(len(strength), dtype=int)
    place[np.argsort(-strength, kind="stable")] = np.arange(len(strength))
    return np.stack([place < size for size in sizes])


def _controls(strength: np.ndarray, params: Params) -> list[np.ndarray]:
    """Random circuits of each size, control by control, of nodes that have an effect as far as they go."""
    drawn = []
    for control in range(params.n_controls):
        order = numpy_generator(params.seed, f"random latents {control}").random(len(strength))
        drawn += list(_largest(order + (strength > 0), params.sizes))
    return drawn
