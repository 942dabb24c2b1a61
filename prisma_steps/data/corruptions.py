"""Corrupted counterparts of images: noise, masked patches, the mean image, dSprites with another factor.

What is drawn for an image depends on the seed and on the image's id alone, and not on the other images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from jaxtyping import Bool, Integer, UInt8

from prisma_steps.data import dsprites
from prisma_steps.data.pixels import raw_batch
from prisma_steps.seeding import numpy_generator
from prisma_steps.step import StepError

if TYPE_CHECKING:
    import xarray as xr

#: Numbers of the first and the last orientation of dSprites, which draw the same image.
_SAME_ORIENTATION = (0, len(dsprites.FACTORS["orientation"]) - 1)


def with_noise(
    pixels: UInt8[np.ndarray, "image ... row column"],
    sigma: float,
    where: Bool[np.ndarray, "image row column"] | None,
    ids: Sequence[str],
    seed: int,
) -> UInt8[np.ndarray, "image ... row column"]:
    """Images with Gaussian noise on them, rounded and cut at 0 and 255.

    Args:
        pixels: the images, or clips.
        sigma: standard deviation of the noise, in units of ``pixels`` (0 to 255).
        where: the pixels that get noise; None: all.
        ids: of the images.
        seed: of the noise.
    """
    noise = np.stack([_generator(seed, "noise", name).normal(0, sigma, pixels.shape[1:]) for name in ids])
    noisy = np.clip(np.rint(pixels + noise), 0, 255).astype(np.uint8)
    return noisy if where is None else np.where(_in_front(where, pixels), noisy, pixels)


def masked(
    pixels: UInt8[np.ndarray, "image ... row column"],
    where: Bool[np.ndarray, "image row column"],
    fill: int | None,
) -> UInt8[np.ndarray, "image ... row column"]:
    """Images with some pixels of the grey level ``fill``; None: each channel's mean over image or frame."""
    if fill is None:
        level = np.rint(pixels.mean(axis=(-2, -1), keepdims=True)).astype(np.uint8)
    else:
        level = np.uint8(fill)
    return np.where(_in_front(where, pixels), level, pixels)


def patch_masks(
    patches: float | Sequence[int],
    grid: tuple[int, int],
    size: tuple[int, int],
    ids: Sequence[str],
    seed: int,
) -> Bool[np.ndarray, "image row column"]:
    """Which pixels lie in chosen patches, the same in every frame of a clip.

    Args:
        patches: a share of all patches, drawn for each image (at least one), or numbers of patches, counted
            row by row from the top left.
        grid: rows and columns of patches.
        size: rows and columns of pixels, whole patches.
        ids: of the images.
        seed: of the draw.
    """
    count = grid[0] * grid[1]
    chosen = np.zeros((len(ids), count), dtype=bool)
    for row, name in zip(chosen, ids, strict=True):
        if isinstance(patches, float | int):
            row[_generator(seed, "patches", name).permutation(count)[: max(round(patches * count), 1)]] = True
        else:
            row[list(patches)] = True
    height, width = (side // n for side, n in zip(size, grid, strict=True))
    return chosen.reshape(-1, *grid).repeat(height, axis=1).repeat(width, axis=2)


def twins(
    index: Integer[np.ndarray, " image"], factor: str, ids: Sequence[str], seed: int
) -> Integer[np.ndarray, " image"]:
    """Numbers of dSprites that differ from ``index`` in ``factor`` alone, each drawn from the rest."""
    found = dsprites.latents(index)
    column = list(dsprites.FACTORS).index(factor)
    for row, name in zip(found, ids, strict=True):
        same = {int(row[column])}
        if factor == "orientation" and row[column] in _SAME_ORIENTATION:
            same.update(_SAME_ORIENTATION)
        others = [value for value in range(len(dsprites.FACTORS[factor])) if value not in same]
        row[column] = _generator(seed, f"twin/{factor}", name).choice(others)
    return dsprites.index(found)


class Made(NamedTuple):
    """Corrupted images.

    Attributes:
        ids: of the corrupted images.
        pixels: of them, 0 to 255.
        class_names: of them, where they are known and may be others than those of the clean images.
    """

    ids: np.ndarray
    pixels: UInt8[np.ndarray, "image ... row column"]
    class_names: np.ndarray | None = None


class Corruption(Protocol):
    """Makes corrupted images of clean ones."""

    def __call__(
        self, clean: UInt8[np.ndarray, "image ... row column"], index: Integer[np.ndarray, " image"]
    ) -> Made:
        """The counterparts of images whose places in the data set are ``index``."""
        ...


@dataclass(frozen=True)
class OnPatches:
    """Noise on images, or a mask, everywhere or on some of a model's patches.

    Attributes:
        ids: of all images.
        patches: see ``patch_masks``; None: all pixels.
        grid: rows and columns of patches.
        sigma: of noise; None: a mask.
        fill: of a mask; None: the mean.
        seed: of noise and of patches.
    """

    ids: np.ndarray
    patches: float | Sequence[int] | None
    grid: tuple[int, int]
    sigma: float | None
    fill: int | None
    seed: int

    def __call__(self, clean: UInt8[np.ndarray, "image ..."], index: Integer[np.ndarray, " image"]) -> Made:
        """See ``Corruption``."""
        ids = self.ids[index].tolist()
        size = clean.shape[-2:]
        where = None if self.patches is None else patch_masks(self.patches, self.grid, size, ids, self.seed)
        if self.sigma is not None:
            return Made(_named(ids, "noise"), with_noise(clean, self.sigma, where, ids, self.seed))
        assert where is not None
        return Made(_named(ids, "mask"), masked(clean, where, self.fill))


class MeanImage:
    """The mean of all images, rounded."""

    def __init__(self, images: xr.Dataset) -> None:
        """Read all images, some at a time."""
        count = images.sizes["image"]
        total = sum(
            raw_batch(images, slice(first, first + 256)).double().sum(0) for first in range(0, count, 256)
        )
        self._mean = np.rint(np.asarray(total) / count).astype(np.uint8)

    def __call__(self, clean: UInt8[np.ndarray, "image ..."], index: Integer[np.ndarray, " image"]) -> Made:
        """See ``Corruption``."""
        return Made(np.full(len(index), "mean image"), np.broadcast_to(self._mean, clean.shape).copy())


class Twin:
    """The image of dSprites that differs in one factor."""

    def __init__(self, images: xr.Dataset, factor: str, seed: int) -> None:
        """Find the numbers of all images in dSprites.

        Raises:
            StepError: when they are of another data set.
        """
        missing = [name for name in dsprites.FACTORS if name not in images.coords]
        if missing or "frame" in images["pixels"].dims:
            raise StepError(
                f"twins are of dSprites, with the coordinates {', '.join(dsprites.FACTORS)}; these images "
                f"{'have no ' + ', '.join(missing) if missing else 'are clips'}. Use dSprites, or another "
                "pairing."
            )
        self._numbers = dsprites.numbered({name: images[name].values for name in dsprites.FACTORS})
        self._ids, self._factor, self._seed = images["image"].values, factor, seed

    def __call__(self, clean: UInt8[np.ndarray, "image ..."], index: Integer[np.ndarray, " image"]) -> Made:
        """See ``Corruption``."""
        drawn = dsprites.source().pixels(self._numbers[index])
        if drawn.shape != clean.shape or not np.array_equal(drawn, clean):
            raise StepError("twins are of dSprites, and these images are not what dSprites draws")
        found = twins(self._numbers[index], self._factor, self._ids[index].tolist(), self._seed)
        source = dsprites.source()
        coords = source.coords(found)
        return Made(coords["image"], source.pixels(found), np.array(dsprites.SHAPES)[coords["label"]])


def _named(ids: Sequence[str], what: str) -> np.ndarray:
    return np.array([f"{name} + {what}" for name in ids])


def _generator(seed: int, purpose: str, image: str) -> np.random.Generator:
    return numpy_generator(seed, f"pairs/{purpose}/{image}")


def _in_front(
    where: Bool[np.ndarray, "image row column"], pixels: UInt8[np.ndarray, "image ... row column"]
) -> Bool[np.ndarray, "image ... row column"]:
    """``where`` with a dimension of one for every one of ``pixels`` between image and row."""
    return where.reshape(len(where), *[1] * (pixels.ndim - 3), *where.shape[1:])
