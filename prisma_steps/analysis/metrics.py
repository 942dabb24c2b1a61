"""Metrics of an intervention: what a run answers, beside the clean and the corrupted run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

#: Logits of pairs, with any dims before them, to one number each: what an intervention is to change.
Metric: TypeAlias = Callable[[Float[Tensor, "*cell pair class"]], Float[Tensor, "*cell pair"]]


def logit_difference(classes: Int[Tensor, "pair side"]) -> Metric:
    """The logit of each pair's clean class minus that of its corrupted class (Wang et al. 2022)."""
    clean, corrupted = classes.T

    def metric(logits: Float[Tensor, "*cell pair class"]) -> Float[Tensor, "*cell pair"]:
        pair = torch.arange(len(classes), device=logits.device)
        return logits[..., pair, clean] - logits[..., pair, corrupted]

    return metric


def kl_to(clean: Float[Tensor, "pair class"]) -> Metric:
    """KL divergence of a run's probabilities from those of the clean run, in nat: 0 for the clean run.

    Its gradient vanishes there, and with it all that attribution at the clean run could tell (Syed et al.
    2023).
    """
    truth = clean.log_softmax(-1)

    def metric(logits: Float[Tensor, "*cell pair class"]) -> Float[Tensor, "*cell pair"]:
        return (truth.exp() * (truth - logits.log_softmax(-1))).sum(-1)

    return metric


@dataclass(frozen=True)
class Metrics:
    """What is measured of the logits of patched runs, each of one of several pairs.

    * ``logit_difference``: logit of the clean class minus that of the corrupted one (Wang et al. 2022, arXiv
      2211.00593);
    * ``probability`` of the clean class;
    * ``ce``: cross-entropy with the clean class, in nat;
    * ``kl``: KL(clean run ‖ patched run), in nat: 0 where the patched run answers what the clean one does.

    Attributes:
        classes: clean and corrupted class of every pair.
        clean: logits of every pair's clean run.
    """

    classes: Int[Tensor, "pair 2"]
    clean: Float[Tensor, "pair class"]

    def __call__(
        self, logits: Float[Tensor, "cell class"], pair: Int[Tensor, " cell"]
    ) -> dict[str, Float[Tensor, " cell"]]:
        """Every metric of runs of some pairs, in float32 whatever the model computes in."""
        logits = logits.float()
        log_probability = logits.log_softmax(-1).gather(1, self.classes[pair, :1])[:, 0]
        return {
            "logit_difference": logit_difference(self.classes[pair])(logits),
            "probability": log_probability.exp(),
            "ce": -log_probability,
            "kl": kl_to(self.clean[pair].float())(logits),
        }


def normalise(
    values: Float[Tensor, "pair *cell"], clean: Float[Tensor, " pair"], corrupted: Float[Tensor, " pair"]
) -> Float[Tensor, "pair *cell"]:
    """Put a metric on the scale where each pair's clean run is 1 and its corrupted run 0.

    NaN for a pair whose two runs have the same value: there is nothing to restore.
    """
    per_pair = (-1, *[1] * (values.ndim - 1))
    reach = clean - corrupted
    reach = reach.where(reach != 0, float("nan"))
    return (values - corrupted.view(per_pair)) / reach.view(per_pair)


def normalised(
    values: Mapping[str, Float[Tensor, "pair *cell"]],
    clean: Mapping[str, Float[Tensor, " pair"]],
    corrupted: Mapping[str, Float[Tensor, " pair"]],
) -> dict[str, Float[Tensor, "pair *cell"]]:
    """Every metric on the scale of ``normalise``."""
    return {name: normalise(value, clean[name], corrupted[name]) for name, value in values.items()}
