"""What a circuit is to explain: one number of the logits of each pair."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

#: Logits of pairs, with any dims before them, to one number each.
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
