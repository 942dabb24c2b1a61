"""Pairs of a clean and a corrupted image: their pixels and classes as tensors.

A ``Pairs`` artifact names the images of both sides by their ids (``clean_image``, ``corrupted_image``) and
their classes by name. It holds ``corrupted_pixels`` where corrupted images are none of the data set.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from prisma_steps.data.pixels import labels, raw_batch
from prisma_steps.schema import IMAGE_DIMS
from prisma_steps.step import StepError

if TYPE_CHECKING:
    import xarray as xr

#: The two images of a pair.
SIDES = ("clean", "corrupted")


def raw_sides(
    images: xr.Dataset, pairs: xr.Dataset, where: slice
) -> tuple[UInt8[Tensor, "pair *frame channel row column"], UInt8[Tensor, "pair *frame channel row column"]]:
    """Pixels of the clean and of the corrupted images of some pairs, 0 to 255."""
    some = pairs.isel(pair=where)
    clean = raw_batch(images, _places(images, some["clean_image"].values))
    if "corrupted_pixels" not in pairs:
        return clean, raw_batch(images, _places(images, some["corrupted_image"].values))
    dims = [dim for dim in ("pair", *IMAGE_DIMS) if dim in some["corrupted_pixels"].dims]
    corrupted = some["corrupted_pixels"].compute().transpose(*dims)
    return clean, torch.from_numpy(np.array(corrupted.values))


def prepared_sides(
    images: xr.Dataset,
    pairs: xr.Dataset,
    where: slice,
    prepare: Callable[[UInt8[Tensor, "pair ..."]], Float[Tensor, "pair ..."]],
) -> tuple[Float[Tensor, "pair ..."], Float[Tensor, "pair ..."]]:
    """What ``prepare`` (a model's ``preprocess``) makes of both sides of some pairs."""
    clean, corrupted = raw_sides(images, pairs, where)
    return prepare(clean), prepare(corrupted)


def classes_of(pairs: xr.Dataset, class_names: Sequence[str] | None) -> Int[Tensor, "pair side"]:
    """Clean and corrupted class of every pair, as numbers of the model's classes.

    Raises:
        StepError: when the model's classes have no names, or none of a pair's.
    """
    named = np.stack([pairs[f"{side}_class"].values for side in SIDES], axis=1)
    return torch.from_numpy(_numbers(named, class_names)).view(-1, len(SIDES))


def classes_in_model(images: xr.Dataset, class_names: Sequence[str] | None) -> Int[np.ndarray, " image"]:
    """The class of every image, as a number of the model's classes.

    Raises:
        StepError: when images or model have no classes with names, or when the model has none of an image's.
    """
    if "class_name" not in images.variables:
        raise StepError("the images have no classes; give the data set of the model")
    return _numbers(images["class_name"].values, class_names)[labels(images).numpy()]


def _numbers(named: np.ndarray, class_names: Sequence[str] | None) -> Int[np.ndarray, "..."]:
    if class_names is None:
        raise StepError(
            "the model has no named classes. Give a classifier; load_model names its classes with "
            "class_names."
        )
    numbers = {name: number for number, name in enumerate(class_names)}
    strange = sorted({str(name) for name in named.flat if name not in numbers})
    if strange:
        raise StepError(
            f"the class {strange[0]!r} is none of the model's, which are {_shown(class_names)}. Give the "
            "model images of classes that it was trained on."
        )
    return np.vectorize(numbers.__getitem__, otypes=[np.int64])(named)


def check_pairs(images: xr.Dataset, pairs: xr.Dataset) -> None:
    """Refuse pairs that are not of these images, or of an image with itself.

    Raises:
        StepError: naming the first such pair.
    """
    sides = SIDES[:1] if "corrupted_pixels" in pairs else SIDES
    known = images.get_index("image")
    for side in sides:
        missing = pairs[f"{side}_image"].values[known.get_indexer(pairs[f"{side}_image"].values) < 0]
        if len(missing):
            raise StepError(
                f"the pairs have the {side} image {missing[0]}, which is not among the "
                f"{len(known)} images given. Give the images that the pairs were made of."
            )
    same = pairs["clean_image"].values == pairs["corrupted_image"].values
    if same.any():
        place = int(same.argmax())
        raise StepError(
            f"pair {place} is of the image {pairs['clean_image'].values[place]} with itself: nothing is "
            "corrupted. Pair it with another image, or leave the pair out."
        )


def _places(images: xr.Dataset, ids: np.ndarray) -> np.ndarray:
    return images.get_index("image").get_indexer(ids)


def _shown(names: Sequence[str], most: int = 10) -> str:
    more = f", … ({len(names)} in all)" if len(names) > most else ""
    return ", ".join(names[:most]) + more
