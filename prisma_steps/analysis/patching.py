"""Activation patching of the residual stream (Wang et al. 2022, arXiv 2211.00593, section 3).

A cell of the sweep is one run of the target image in which the residual stream of one layer, at one token,
is that of the source image. Denoising takes the clean image as source and the corrupted one as target and
shows what suffices for the clean answer; noising swaps them and shows what is necessary for it.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

#: Forward passes that are run as one batch.
CELLS_PER_BATCH = 256


class Hooked(Protocol):
    """What patching asks of a model."""

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        ...

    def run_with_cache(
        self, pixels: Tensor, sites: Sequence[str]
    ) -> tuple[Tensor, Mapping[tuple[str, int | None], Tensor]]:
        """Logits, and the activations of ``sites`` by (site, layer)."""
        ...

    def forward_from(self, layer: int, resid_pre: Tensor) -> Tensor:
        """Logits of a run that starts with ``resid_pre`` in front of block ``layer``."""
        ...


def residual_stream(
    model: Hooked, pixels: Float[Tensor, "image channel row column"]
) -> tuple[Float[Tensor, "image class"], Float[Tensor, "image layer token d_model"]]:
    """Logits, and the residual stream in front of every block."""
    runs = [model.run_with_cache(batch, ["resid_pre"]) for batch in pixels.split(CELLS_PER_BATCH)]
    logits = torch.cat([logits for logits, _ in runs])
    layers = [torch.cat([cache["resid_pre", layer] for _, cache in runs]) for layer in range(model.n_layers)]
    return logits, torch.stack(layers, dim=1)


def patch_each_token(
    run_on: Callable[[Float[Tensor, "cell token d_model"]], Float[Tensor, "cell class"]],
    source: Float[Tensor, "pair token d_model"],
    target: Float[Tensor, "pair token d_model"],
) -> Float[Tensor, "pair token class"]:
    """Logits of the target's run with the residual of one token at a time taken from the source.

    Args:
        run_on: the rest of the model, from the residual stream of the patched layer to the logits.
        source: residual stream of the images that are patched in.
        target: residual stream of the images that are patched.
    """
    n_pairs, n_tokens, _ = source.shape
    pair = torch.arange(n_pairs, device=source.device).repeat_interleave(n_tokens)
    token = torch.arange(n_tokens, device=source.device).repeat(n_pairs)
    logits = []
    for cell in torch.arange(len(pair), device=source.device).split(CELLS_PER_BATCH):
        patched = target[pair[cell]]
        patched[torch.arange(len(cell), device=cell.device), token[cell]] = source[pair[cell], token[cell]]
        logits.append(run_on(patched))
    return torch.cat(logits).unflatten(0, (n_pairs, n_tokens))


def patch_resid_pre(
    model: Hooked,
    source: Float[Tensor, "pair layer token d_model"],
    target: Float[Tensor, "pair layer token d_model"],
    classes: Int[Tensor, "pair 2"],
) -> Iterator[Float[Tensor, "pair token"]]:
    """Logit differences of every cell of the sweep, one layer after the other.

    Args:
        model: the model that both residual streams are of.
        source: residual stream of the images that are patched in.
        target: residual stream of the images that are patched.
        classes: clean and corrupted class of every pair.
    """
    for layer in range(model.n_layers):
        run_on = partial(model.forward_from, layer)
        yield logit_difference(patch_each_token(run_on, source[:, layer], target[:, layer]), classes)


def logit_difference(
    logits: Float[Tensor, "pair *cell class"], classes: Int[Tensor, "pair 2"]
) -> Float[Tensor, " pair *cell"]:
    """Logit of each pair's clean class minus that of its corrupted class."""
    pair = torch.arange(len(classes), device=logits.device)
    clean, corrupted = classes.T
    return logits[pair, ..., clean] - logits[pair, ..., corrupted]


def normalise(
    difference: Float[Tensor, " pair *cell"], clean: Float[Tensor, " pair"], corrupted: Float[Tensor, " pair"]
) -> Float[Tensor, " pair *cell"]:
    """Put logit differences on the scale where each pair's clean run is 1 and its corrupted run 0."""
    per_pair = (-1, *[1] * (difference.ndim - 1))
    return (difference - corrupted.view(per_pair)) / (clean - corrupted).view(per_pair)


def pair_up(
    images: Iterable[int], classes: Sequence[int], groups: Sequence[Hashable]
) -> Iterator[tuple[int, int]]:
    """Pair images of one group and different classes, in the order in which they come.

    An image that finds no partner among those that wait waits itself, so all that wait in a group are of one
    class. Every image is used once: the one that waited is the clean one.

    Args:
        images: indices into ``classes`` and ``groups``, taken only as far as pairs are asked for.
        classes: class of every image.
        groups: what the two images of a pair must have in common.
    """
    waiting: defaultdict[Hashable, deque[int]] = defaultdict(deque)
    for image in images:
        queue = waiting[groups[image]]
        if queue and classes[queue[0]] != classes[image]:
            yield queue.popleft(), image
        else:
            queue.append(image)
