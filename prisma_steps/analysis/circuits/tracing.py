"""Edge scores and circuits of many pairs, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prisma_steps.analysis.circuits.exact import exact_scores
from prisma_steps.analysis.circuits.gradients import edge_attribution
from prisma_steps.analysis.circuits.running import Ablation, run_circuit
from prisma_steps.analysis.circuits.split import graph_of, writes_of
from prisma_steps.analysis.metrics import Metric, kl_to, logit_difference
from prisma_steps.data.pairs import check_pairs, classes_of, prepared_sides
from prisma_steps.step import StepError

if TYPE_CHECKING:
    import xarray as xr

    from prisma_steps.models.hooked import HookedViT

#: How edges are scored: by patching each, or by gradients at the clean run or along a path of inputs.
Method: TypeAlias = Literal["exact", "eap", "eap_ig"]

#: What is explained.
MetricName: TypeAlias = Literal["logit_difference", "kl_to_clean"]

#: Told how many of how many batches are done.
Progress: TypeAlias = Callable[[int, int], None]


@dataclass(frozen=True)
class PairTensors:
    """Clean images with their counterparts, as the model takes them.

    Attributes:
        clean: pixels.
        corrupted: pixels.
        classes: clean and corrupted class; only the logit difference needs them.
    """

    clean: Float[Tensor, "pair *frame channel row column"]
    corrupted: Float[Tensor, "pair *frame channel row column"]
    classes: Int[Tensor, "pair 2"] | None = None

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.clean)

    def batches(self, size: int) -> Iterator[PairTensors]:
        """These pairs, so many at once."""
        classes = [None] * len(self) if self.classes is None else self.classes.split(size)
        for part in zip(self.clean.split(size), self.corrupted.split(size), classes, strict=False):
            yield PairTensors(*part)

    def check(self) -> None:
        """Refuse pairs that leave nothing to explain.

        Raises:
            StepError: for two equal images, and for a pair of one class whose logits are to differ.
        """
        equal = (self.clean == self.corrupted).flatten(1).all(1)
        if equal.any():
            place = int(equal.int().argmax())
            raise StepError(
                f"the two images of pair {place} are equal, so that nothing is corrupted. Pair the "
                "image with another one, or leave the pair out"
            )
        if self.classes is not None and (self.classes[:, 0] == self.classes[:, 1]).any():
            place = int((self.classes[:, 0] == self.classes[:, 1]).int().argmax())
            raise StepError(
                f"the two images of pair {place} are of one class, which has no logit difference to itself. "
                "Set metric: kl_to_clean, or give pairs of two classes"
            )

    def metric(self, model: HookedViT, name: MetricName) -> Metric:
        """The metric of these pairs.

        Raises:
            StepError: when they have no classes to tell apart.
        """
        if name == "kl_to_clean":
            with torch.no_grad():
                return kl_to(model(self.clean))
        if self.classes is None:
            raise StepError("the metric logit_difference needs the classes of the pairs")
        return logit_difference(self.classes)


def pair_tensors(model: HookedViT, images: xr.Dataset, pairs: xr.Dataset, metric: MetricName) -> PairTensors:
    """Labelled pairs as the model takes them, checked before it runs.

    Raises:
        StepError: for pairs that are not of these images, that leave nothing to explain, or that the metric
            does not fit.
    """
    check_pairs(images, pairs)
    classes = classes_of(pairs, model.class_names) if metric == "logit_difference" else None
    sides = prepared_sides(images, pairs, slice(pairs.sizes["pair"]), model.preprocess)
    tensors = PairTensors(*sides, None if classes is None else classes.to(model.device))
    tensors.check()
    return tensors


def pairs_at_once(model: HookedViT, memory_mb: int) -> int:
    """Pairs that go through the model together in so many mebibytes, one at least.

    A pair takes the writes of all sources thrice (clean, corrupted, their difference) and, for gradients,
    some 30 activations of the stream's width a block (q, k, v, z, four of them in the MLP, each kept before
    and after a function; the reads of one block's heads).
    """
    graph = graph_of(model)
    n_tokens = len(model.token_coords()["token_kind"])
    vectors = 3 * len(graph.sources) + 30 * graph.n_layers + 6 * graph.n_heads
    return max(1, memory_mb * 2**20 // (4 * n_tokens * model.d_model * vectors))


def score_edges(
    model: HookedViT,
    pairs: PairTensors,
    method: Method,
    metric: MetricName,
    n_steps: int,
    batch_size: int,
    progress: Progress = lambda _done, _total: None,
) -> Float[Tensor, "source target"]:
    """The score of every edge, the mean over pairs; 0 where there is no edge.

    Args:
        model: the model, whose parameters need no gradients.
        pairs: what is explained.
        method: see ``exact.exact_scores`` and ``gradients.edge_attribution``.
        metric: see ``analysis.metrics``.
        n_steps: embeddings along the path, of ``eap_ig``.
        batch_size: pairs, or of ``exact`` patched runs too, that go through the model together.
        progress: is told after each batch.
    """
    total: Tensor | float = 0.0
    for done, batch in enumerate(pairs.batches(batch_size)):
        sides, of = (batch.clean, batch.corrupted), batch.metric(model, metric)
        if method == "exact":
            total = total + exact_scores(model, *sides, of, batch_size)
        else:
            total = total + edge_attribution(model, *sides, of, n_steps if method == "eap_ig" else 0)
        progress(done + 1, -(-len(pairs) // batch_size))
    assert isinstance(total, Tensor), "no pairs"
    return total / len(pairs)


@torch.no_grad()
def circuit_metrics(
    model: HookedViT,
    pairs: PairTensors,
    circuits: Bool[Tensor, "circuit source target"],
    ablations: Sequence[Ablation],
    metric: MetricName,
    others: Int[Tensor, " pair"],
    batch_size: int,
    progress: Progress = lambda _done, _total: None,
) -> tuple[float, Float[np.ndarray, "ablation circuit"]]:
    """The metric of the clean run, and of the run of each circuit; means over pairs.

    Args:
        model: the model.
        pairs: what is explained.
        circuits: edges that are kept.
        ablations: what the other edges carry.
        metric: see ``analysis.metrics``.
        others: for every pair the one whose clean image is taken by ``resample``.
        batch_size: pairs that go through the model together.
        progress: is told after each batch.
    """
    mean = _mean_writes(model, pairs, batch_size) if "mean" in ablations else None
    clean, sums, done = 0.0, np.zeros((len(ablations), len(circuits))), 0
    for batch, other in zip(pairs.batches(batch_size), others.split(batch_size), strict=True):
        logits, writes = writes_of(model, batch.clean)
        of = batch.metric(model, metric)
        clean += float(of(logits).sum())
        for row, ablation in enumerate(ablations):
            ablated = _ablated(model, ablation, writes, batch.corrupted, pairs.clean[other], mean)
            for place, circuit in enumerate(circuits):
                sums[row, place] += float(of(run_circuit(model, circuit, writes[0], ablated)).sum())
        done += len(batch)
        progress(done, len(pairs))
    return clean / len(pairs), sums / len(pairs)


def _mean_writes(
    model: HookedViT, pairs: PairTensors, batch_size: int
) -> Float[Tensor, "source 1 token d_model"]:
    """What each source writes at each token, the mean over clean images."""
    sums = [writes_of(model, batch)[1].sum(1, keepdim=True) for batch in pairs.clean.split(batch_size)]
    return torch.stack(sums).sum(0) / len(pairs)


def _ablated(
    model: HookedViT,
    ablation: Ablation,
    writes: Float[Tensor, "source pair token d_model"],
    corrupted: Tensor,
    other: Tensor,
    mean: Float[Tensor, "source 1 token d_model"] | None,
) -> Float[Tensor, "source #pair token d_model"]:
    """What edges outside of a circuit carry."""
    if ablation == "zero":
        return torch.zeros_like(writes[:, :1])
    if ablation == "mean":
        assert mean is not None
        return mean
    return writes_of(model, corrupted if ablation == "corrupted" else other)[1]
