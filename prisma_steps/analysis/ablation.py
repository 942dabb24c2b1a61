"""Ablations: what a model loses when an activation no longer tells its image from others.

What takes an activation's place (Wang et al. 2022, arXiv 2211.00593, section 2; Chan et al. 2022, "Causal
scrubbing", for resampling; Zhang & Nanda 2023, arXiv 2309.16042, for how they differ):

- ``zero``: zeros, which may be far from anything that the model has seen;
- ``mean``: the mean over reference images and over the ablated tokens;
- ``mean_per_token``: the mean over reference images at the same token;
- ``resample``: the activation at the same token of one other image.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from prisma_steps.analysis.cells import Change, Tail
from prisma_steps.models.hooked import HookedViT
from prisma_steps.schema import SITE_DIMS

Ablation: TypeAlias = Literal["zero", "mean", "mean_per_token", "resample"]

#: Ablations that take means of reference images.
MEANS = ("mean", "mean_per_token")


@dataclass(frozen=True)
class Ablations:
    """A sweep: every ablation of one site in every layer, and where the site has heads, of every head.

    Attributes:
        site: a site with the dims image, token, … of every layer.
        layers: blocks.
        ablations: what takes the place of the activation.
        tokens: positions in the sequence that are ablated.
        means: ``token_means`` of reference images; None where no ablation takes them.
    """

    site: str
    layers: Sequence[int]
    ablations: Sequence[Ablation]
    tokens: Int[Tensor, " chosen"]
    means: Float[Tensor, "layer token *width"] | None = None

    @property
    def has_heads(self) -> bool:
        """Whether every head is ablated by itself."""
        return SITE_DIMS[self.site][2] == "head"


@torch.no_grad()
def token_means(
    model: HookedViT,
    batches: Iterable[Float[Tensor, "image *frame channel row column"]],
    site: str,
    layers: Sequence[int],
) -> Float[Tensor, "layer token *width"]:
    """Mean over images of what a site holds, in float64, at every token of ``layers``."""
    total, n_images = torch.zeros(()), 0
    for pixels in batches:
        values = model.read(pixels, [site], layers)
        total = torch.stack([values[site, layer].double().sum(0) for layer in layers]) + total
        n_images += len(pixels)
    return total / n_images


def ablated_logits(
    model: HookedViT,
    pixels: Float[Tensor, "image *frame channel row column"],
    sweep: Ablations,
    rows: int,
    others: Float[Tensor, "image *frame channel row column"] | None = None,
) -> Iterator[Float[Tensor, "*cell image class"]]:
    """Logits of the plain run, and then layer by layer those of its cells: ablation, (head,) image, class.

    Args:
        model: the model.
        pixels: images.
        sweep: what is ablated.
        rows: images of one forward pass, where every cell counts its own.
        others: for each image the one that ``resample`` takes activations of.
    """
    shape = tuple(pixels.shape[1:])
    tails = [Tail(model, sweep.site, layer, shape) for layer in sweep.layers]
    logits, begins = model.run_with_cache(pixels, ["resid_pre", "resid_post"])
    yield logits
    resampled = None if others is None else model.read(others, [sweep.site], sweep.layers)
    for number, (layer, tail) in enumerate(zip(sweep.layers, tails, strict=True)):
        value = None if resampled is None else resampled[sweep.site, layer]
        mean = None if sweep.means is None else sweep.means[number].to(logits)
        changes = list(_changes(sweep, mean, value, model.n_heads))
        assert tail.reads is not None, "the site is in a layer"
        cells = tail.logits(begins[tail.reads], changes, rows)
        yield cells.unflatten(0, (len(sweep.ablations), -1)) if sweep.has_heads else cells


def _changes(
    sweep: Ablations,
    mean: Float[Tensor, "token *width"] | None,
    resampled: Float[Tensor, "image token *width"] | None,
    n_heads: int,
) -> Iterator[Change]:
    """Cells of one layer."""
    heads = range(n_heads) if sweep.has_heads else [None]
    for ablation in sweep.ablations:
        instead = _instead(ablation, sweep.tokens, mean, resampled)
        for head in heads:
            yield _replacing(instead, sweep.tokens, head)


def _instead(
    ablation: Ablation, tokens: Tensor, mean: Tensor | None, resampled: Tensor | None
) -> Float[Tensor, "image chosen *width"] | None:
    """What takes the place of the ablated tokens, of one image or token where it is the same for all.

    Zeros are None.
    """
    if ablation == "zero":
        return None
    if ablation == "resample":
        assert resampled is not None, "resampling takes the activations of others"
        return resampled[:, tokens]
    assert mean is not None, "a mean ablation takes means"
    chosen = mean[tokens][None]
    return chosen.mean(1, keepdim=True) if ablation == "mean" else chosen


def _replacing(instead: Tensor | None, tokens: Int[Tensor, " chosen"], head: int | None) -> Change:
    def change(value: Tensor) -> Tensor:
        changed = value.clone()
        part = changed if head is None else changed[:, :, head]
        new = instead if instead is None or head is None else instead[:, :, head]
        part[:, tokens] = torch.zeros((), dtype=value.dtype, device=value.device) if new is None else new
        return changed

    return change


class Effects:
    """Cross-entropy and top-1 of a model and of its ablations, gathered batch by batch in float64.

    Attributes:
        n_images: images that are counted.
    """

    def __init__(
        self, model: HookedViT, sweep: Ablations, rows: int, state: Mapping[str, Any] | None = None
    ) -> None:
        """Measure ``sweep``.

        Args:
            model: the model.
            sweep: what is ablated.
            rows: images of one forward pass, where every cell counts its own.
            state: the ``state`` to go on from.
        """
        self._model, self._sweep, self._rows = model, sweep, rows
        begun = {"sums": {}, "n_images": 0} if state is None else state
        self._sums: dict[str, Tensor] = {
            name: value.to(model.device) for name, value in begun["sums"].items()
        }
        self.n_images: int = begun["n_images"]

    @property
    def state(self) -> dict[str, Any]:
        """What is known of the images so far, to go on from after an interruption."""
        return {"sums": self._sums, "n_images": self.n_images}

    @torch.no_grad()
    def add(
        self,
        pixels: Float[Tensor, "image *frame channel row column"],
        labels: Int[Tensor, " image"],
        others: Float[Tensor, "image *frame channel row column"] | None = None,
    ) -> None:
        """Count a batch of images; see ``ablated_logits``."""
        plain, *layers = (
            torch.stack(_ce_and_correct(logits, labels))
            for logits in ablated_logits(self._model, pixels, self._sweep, self._rows, others)
        )
        cells = torch.stack(layers, dim=2)  # measure, ablation, layer, (head,) image
        increase = cells[0] - plain[0]
        found = {
            "plain": plain.sum(-1),
            "cells": cells.sum(-1),
            "increase": increase.sum(-1),
            "increase_squared": increase.square().sum(-1),
        }
        self._sums = {name: value + self._sums.get(name, 0) for name, value in found.items()}
        self.n_images += len(labels)

    def results(self) -> Mapping[str, Float[np.ndarray, "*cell"]]:
        """Means over all images: [ablation, layer, (head)], and numbers of the plain run.

        ``ce`` and ``ce_ablated`` in nat, ``top1`` and ``top1_ablated`` as shares, ``ce_increase``, and its
        standard error over images (NaN of one image).
        """
        n = self.n_images
        means = {name: value / n for name, value in self._sums.items()}
        spread = (means["increase_squared"] - means["increase"].square()).clamp_min(0)
        error = (spread / (n - 1)).sqrt() if n > 1 else torch.full_like(spread, torch.nan)
        found = {
            "ce": means["plain"][0],
            "top1": means["plain"][1],
            "ce_ablated": means["cells"][0],
            "top1_ablated": means["cells"][1],
            "ce_increase": means["increase"],
            "ce_increase_standard_error": error,
        }
        return {name: value.cpu().numpy() for name, value in found.items()}


def _ce_and_correct(
    logits: Float[Tensor, "*cell image class"], labels: Int[Tensor, " image"]
) -> tuple[Float[Tensor, "*cell image"], Float[Tensor, "*cell image"]]:
    """Cross-entropy in nat, and 1 where the class has the highest logit, of every image, in float64."""
    repeated = labels.expand(logits.shape[:-1])
    ce = F.cross_entropy(logits.flatten(0, -2).double(), repeated.flatten(), reduction="none")
    return ce.view(repeated.shape), (logits.argmax(-1) == repeated).double()
