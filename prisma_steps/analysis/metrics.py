"""Metrics of an intervention: what the patched run answers, beside the clean and the corrupted run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor


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
        clean_class, corrupted_class = self.classes[pair, :, None].unbind(1)
        expected, found = (some.float().log_softmax(-1) for some in (self.clean[pair], logits))
        log_probability = found.gather(1, clean_class)[:, 0]
        difference = logits.gather(1, clean_class).float() - logits.gather(1, corrupted_class).float()
        return {
            "logit_difference": difference[:, 0],
            "probability": log_probability.exp(),
            "ce": -log_probability,
            "kl": (expected.exp() * (expected - found)).sum(-1),
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
