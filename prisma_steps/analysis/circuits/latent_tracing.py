"""Effects, edges and circuits of latents over many pairs, batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prisma_steps.analysis.circuits.latents import (
    Placed,
    State,
    latent_edges,
    latent_effects,
    run_latents,
    states_of,
)
from prisma_steps.analysis.circuits.tracing import MetricName, PairTensors, Progress

if TYPE_CHECKING:
    from prisma_steps.models.hooked import HookedViT

#: What latents and error terms outside of a circuit are: as in the corrupted image; nothing; the mean over
#: the clean images, token by token.
LatentAblation: TypeAlias = Literal["corrupted", "zero", "mean"]

#: One number for each latent of each dictionary, and for its error term in the last place.
Nodes: TypeAlias = list[Float[Tensor, " node"]]


def latent_pairs_at_once(model: HookedViT, placed: Sequence[Placed], memory_mb: int) -> int:
    """Pairs that go through the model together in so many mebibytes, one at least.

    A pair takes some 8 copies of the latents of a dictionary (clean, corrupted, their difference, a step
    between, before and after the activation function, gradients) and 30 activations of the stream's width a
    block.
    """
    n_tokens = len(model.token_coords()["token_kind"])
    width = 8 * sum(one.n_nodes for one in placed) + 30 * model.n_layers * model.d_model
    return max(1, memory_mb * 2**20 // (4 * n_tokens * width))


def score_latents(
    model: HookedViT,
    placed: Sequence[Placed],
    pairs: PairTensors,
    metric: MetricName,
    n_steps: int,
    batch_size: int,
    progress: Progress = lambda _done, _total: None,
) -> Nodes:
    """The effect of every latent and error term, means over pairs; see ``latents.latent_effects``."""
    sums = [torch.zeros((), device=model.device)] * len(placed)
    for done, batch in enumerate(pairs.batches(batch_size)):
        of = batch.metric(model, metric)
        with torch.no_grad():
            before, after = (states_of(model, side, placed)[1] for side in (batch.clean, batch.corrupted))
        for place, one in enumerate(placed):
            latents, error = latent_effects(one, batch.clean, before[place], after[place], of, n_steps)
            sums[place] = sums[place] + torch.cat([latents, error.view(1)])
        progress(done + 1, -(-len(pairs) // batch_size))
    return [total / len(pairs) for total in sums]


def score_latent_edges(
    model: HookedViT,
    placed: Sequence[Placed],
    pairs: PairTensors,
    metric: MetricName,
    chosen: Sequence[Int[Tensor, " latent"]],
    batch_size: int,
) -> list[Float[Tensor, "source target"]]:
    """Edges from each dictionary to the next, means over pairs; see ``latents.latent_edges``.

    Both ends are the chosen latents of their dictionary, and its error term in the last place.
    """
    sums = [torch.zeros((), device=model.device)] * (len(placed) - 1)
    for batch in pairs.batches(batch_size):
        of = batch.metric(model, metric)
        with torch.no_grad():
            before, after = (states_of(model, side, placed)[1] for side in (batch.clean, batch.corrupted))
        for place, (one, following) in enumerate(pairwise(placed)):
            found = latent_edges(
                one,
                following,
                batch.clean,
                (before[place], before[place + 1]),
                after[place],
                of,
                chosen[place + 1],
            )
            sums[place] = sums[place] + torch.cat([found[chosen[place]], found[-1:]])
    return [total / len(pairs) for total in sums]


@torch.no_grad()
def latent_circuit_metrics(
    model: HookedViT,
    placed: Sequence[Placed],
    pairs: PairTensors,
    circuits: Sequence[Sequence[Bool[Tensor, " node"]]],
    ablations: Sequence[LatentAblation],
    metric: MetricName,
    batch_size: int,
    progress: Progress = lambda _done, _total: None,
) -> tuple[float, Float[np.ndarray, "ablation circuit"]]:
    """The metric of the clean run, and of a run of each circuit; means over pairs.

    Args:
        model: the model.
        placed: dictionaries in the order of a run.
        pairs: what is explained.
        circuits: for each, what is kept of every dictionary, as ``latents.run_latents`` takes it.
        ablations: what the rest is.
        metric: see ``analysis.metrics``.
        batch_size: pairs that go through the model together.
        progress: is told after each batch.
    """
    mean = _mean_states(model, placed, pairs, batch_size) if "mean" in ablations else []
    clean, sums, done = 0.0, np.zeros((len(ablations), len(circuits))), 0
    for batch in pairs.batches(batch_size):
        of = batch.metric(model, metric)
        logits, before = states_of(model, batch.clean, placed)
        clean += float(of(logits).sum())
        values = {
            "corrupted": lambda batch=batch: states_of(model, batch.corrupted, placed)[1],
            "zero": lambda before=before: [State(*map(torch.zeros_like, state)) for state in before],
            "mean": lambda: mean,
        }
        for row, ablation in enumerate(ablations):
            ablated = values[ablation]()
            for place, kept in enumerate(circuits):
                sums[row, place] += float(of(run_latents(model, batch.clean, placed, kept, ablated)).sum())
        done += len(batch)
        progress(done, len(pairs))
    return clean / len(pairs), sums / len(pairs)


def _mean_states(
    model: HookedViT, placed: Sequence[Placed], pairs: PairTensors, batch_size: int
) -> list[State]:
    """Latents and error terms at each token, means over clean images."""
    sums: list[State] = []
    for batch in pairs.batches(batch_size):
        states = states_of(model, batch.clean, placed)[1]
        found = [State(*(part.sum(0, keepdim=True) for part in state)) for state in states]
        sums = (
            [State(*map(torch.add, one, other)) for one, other in zip(sums, found, strict=True)]
            if sums
            else found
        )
    return [State(*(part / len(pairs) for part in state)) for state in sums]
