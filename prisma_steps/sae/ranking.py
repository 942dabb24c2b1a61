"""Images by how strongly they make a latent fire, over codes of any size: kernels on blocks, joined by dask.

The score of an image is the latent's highest activation over its tokens. Everything here is exact and the
same however the codes are cut into blocks: images of equal score are in the order of the data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import dask.array as da
import numpy as np
import xarray as xr
from dask.base import compute
from dask.delayed import delayed
from jaxtyping import Float, Int

from prisma_steps.sae.codes import ENTRY_BYTES, VARIABLES

#: Images and their scores that are sorted at once, of one latent at least; 16 bytes each, and as much again
#: twice over while they are sorted.
SCORES_AT_ONCE = 2**24

#: Bytes of codes in a block, where they do not lie in shards.
BLOCK_BYTES = 2**26

_SCORE = np.dtype([("latent", "<i4"), ("image", "<i8"), ("score", "<f4")])


class Chosen(NamedTuple):
    """Some images of each latent, by their number in the data; −1 and NaN where a latent has none."""

    image: Int[np.ndarray, "latent place"]
    score: Float[np.ndarray, "latent place"]


class Codes:
    """Sparse codes as dask arrays in blocks of images."""

    def __init__(self, codes: xr.Dataset) -> None:
        """Read ``codes`` shard by shard, whatever dask computes with."""
        stored = codes["activation"].encoding.get("shards")
        size = stored[0] if stored else max(1, BLOCK_BYTES // (ENTRY_BYTES * codes.sizes["entry"]))
        self._arrays = [codes[name].chunk(image=size, entry=-1).data for name in VARIABLES.values()]
        self.n_latents = int(codes["n_latents"])
        self.n_images, self.n_tokens = codes.sizes["image"], codes.sizes["token"]
        self._starts = np.arange(0, self.n_images, size)

    def images_firing(self) -> Int[np.ndarray, " latent"]:
        """Images in which each latent fires on at least one token."""
        chunks = ((1,) * len(self._starts), (self.n_latents,))
        counts = da.map_blocks(
            _count_images, *self._arrays, n_latents=self.n_latents, dtype=np.int64, chunks=chunks
        )
        return counts.sum(axis=0).compute()

    def scores(self, latents: Int[np.ndarray, " wanted"]) -> Int[np.ndarray, " score"]:
        """Every image in which one of ``latents`` fires, with its score: records, by latent and rank."""
        asked = [(int(start), self.n_latents, latents) for start in self._starts]
        scores = np.concatenate(self._on_blocks(image_scores, asked))
        # Images rise already, and this keeps the order of what is equal.
        return scores[np.lexsort((-scores["score"], scores["latent"]))]

    def heat_maps(
        self, latents: Int[np.ndarray, " pair"], images: Int[np.ndarray, " pair"]
    ) -> Float[np.ndarray, "pair token"]:
        """Activation by token of a latent in an image, for each of these pairs."""
        once, places = np.unique(images * self.n_latents + latents, return_inverse=True)
        image, latent = np.divmod(once, self.n_latents)
        of_block = np.searchsorted(self._starts, image, side="right") - 1
        blocks, firsts = np.unique(of_block, return_index=True)
        asked = [
            (self.n_tokens, self.n_latents, latent[here], image[here] - self._starts[block])
            for block, here in zip(blocks, _slices(firsts, len(once)), strict=True)
        ]
        found = self._on_blocks(_heat_maps, asked, blocks)
        return np.concatenate([np.zeros((0, self.n_tokens), np.float32), *found])[places]

    def _on_blocks(
        self,
        kernel: Callable[..., np.ndarray],
        asked: Sequence[tuple],
        which: Sequence[int] | np.ndarray | None = None,
    ) -> list[np.ndarray]:
        """The kernel's answers on blocks (None = all), each of which is asked for something else."""
        arrays = [array.to_delayed().ravel() for array in self._arrays]
        numbers = range(len(self._starts)) if which is None else which
        tasks = [
            delayed(kernel, pure=True)(*(blocks[number] for blocks in arrays), *question)
            for number, question in zip(numbers, asked, strict=True)
        ]
        return list(compute(*tasks))


def _slices(firsts: Int[np.ndarray, " group"], total: int) -> list[slice]:
    """Consecutive groups, by where each begins."""
    return [slice(*ends) for ends in zip(firsts, [*firsts, total][1:], strict=True)]


def image_scores(
    entry_token: Int[np.ndarray, "image slot"],  # noqa: ARG001
    entry_latent: Int[np.ndarray, "image slot"],
    activation: Float[np.ndarray, "image slot"],
    first: int,
    n_latents: int,
    wanted: Int[np.ndarray, " wanted"],
) -> Int[np.ndarray, " score"]:
    """Every one of the latents ``wanted`` and image in which it fires, with its highest activation there.

    Args:
        entry_token: of a block of codes.
        entry_latent: as well.
        activation: as well.
        first: number of the block's first image.
        n_latents: of the dictionary.
        wanted: numbers of latents.
    """
    found = [np.empty(0, _SCORE)]
    for image, (latent, values) in enumerate(zip(entry_latent, activation, strict=True), first):
        # An image at a time: a dense row of latents is quicker than sorting all that fires.
        highest = np.zeros(n_latents, np.float32)
        there = latent >= 0
        np.maximum.at(highest, latent[there], values[there])
        fires = wanted[highest[wanted] > 0]
        scores = np.empty(len(fires), _SCORE)
        scores["latent"], scores["image"], scores["score"] = fires, image, highest[fires]
        found.append(scores)
    return np.concatenate(found)


def _count_images(
    entry_token: np.ndarray, entry_latent: np.ndarray, activation: np.ndarray, n_latents: int
) -> Int[np.ndarray, "1 latent"]:
    scores = image_scores(entry_token, entry_latent, activation, 0, n_latents, np.arange(n_latents))
    return np.bincount(scores["latent"], minlength=n_latents)[None]


def _heat_maps(
    entry_token: np.ndarray,
    entry_latent: np.ndarray,
    activation: np.ndarray,
    n_tokens: int,
    n_latents: int,
    latents: Int[np.ndarray, " pair"],
    images: Int[np.ndarray, " pair"],
) -> Float[np.ndarray, "pair token"]:
    """Activation by token of each latent in the image of the block that goes with it; no pair comes twice."""
    maps = np.zeros((len(latents), n_tokens), np.float32)
    by_image = np.argsort(images, kind="stable")
    ends = np.searchsorted(images[by_image], np.arange(len(entry_latent)), side="right")
    for image, pairs in enumerate(np.split(by_image, ends[:-1])):
        if len(pairs):
            # The last place is that of padding.
            row = np.full(n_latents + 1, -1)
            row[latents[pairs]] = pairs
            of_entry = row[entry_latent[image]]
            here = of_entry >= 0
            maps[of_entry[here], entry_token[image][here]] = activation[image][here]
    return maps


def groups(
    latents: Int[np.ndarray, " latent"], counts: Int[np.ndarray, " latent"]
) -> Iterator[Int[np.ndarray, " some"]]:
    """``latents`` in groups of at most ``SCORES_AT_ONCE`` images, or of one latent.

    Args:
        latents: numbers of latents.
        counts: images in which each of them fires.
    """
    start = total = 0
    for place, count in enumerate(counts.tolist()):
        if place > start and total + count > SCORES_AT_ONCE:
            yield latents[start:place]
            start, total = place, 0
        total += count
    yield latents[start:]


def choose(
    scores: Int[np.ndarray, " score"],
    latents: Int[np.ndarray, " latent"],
    top: int,
    quantiles: Sequence[float],
) -> tuple[Chosen, Chosen]:
    """The ``top`` images of each latent, and its image at each quantile.

    The image at quantile q of the n in which a latent fires is the ⌈qn⌉-th from the weakest (the inverse of
    the empirical distribution).

    Args:
        scores: as ``Codes.scores`` has them, of at least ``latents``.
        latents: numbers of latents.
        top: images of each.
        quantiles: in (0, 1].
    """
    first = np.searchsorted(scores["latent"], latents)
    counts = np.searchsorted(scores["latent"], latents, side="right") - first
    # Less a little: 0.1 × 30 is more than 3.
    from_weakest = np.ceil(counts[:, None] * np.asarray(quantiles) - 1e-9).astype(np.int64)
    at_quantile = np.where(counts[:, None] > 0, counts[:, None] - np.maximum(from_weakest, 1), -1)
    at_rank = np.where(np.arange(top) < counts[:, None], np.arange(top), -1)
    return _at(scores, first, at_rank), _at(scores, first, at_quantile)


def _at(scores: np.ndarray, first: np.ndarray, place: np.ndarray) -> Chosen:
    """What lies at these places after each latent's first; −1 is no place."""
    image = np.full(place.shape, -1, np.int64)
    score = np.full(place.shape, np.nan, np.float32)
    there = place >= 0
    where = (first[:, None] + place)[there]
    image[there], score[there] = scores["image"][where], scores["score"][where]
    return Chosen(image, score)
