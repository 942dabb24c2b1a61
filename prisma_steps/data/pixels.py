"""From labelled images to tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor

from prisma_steps.step import StepError

if TYPE_CHECKING:
    import xarray as xr


def pixel_batch(
    images: xr.Dataset, where: slice | Sequence[int] | Integer[np.ndarray, " batch"]
) -> Float[Tensor, "image channel row column"]:
    """The pixels of some images, float32 in [0, 1]. Only these are read from the store."""
    chosen = where if isinstance(where, slice) else np.asarray(where)
    stored = images["pixels"].isel(image=chosen).transpose("image", "channel", "row", "column")
    return torch.from_numpy(np.array(stored.values)).float() / 255


def labels(images: xr.Dataset) -> Int[Tensor, " image"]:
    """The class of every image.

    Raises:
        StepError: when the images have no classes.
    """
    if "label" not in images.variables:
        raise StepError(
            "the images have no classes (no `label`). A folder of images gets them from its subfolders: "
            "put the images of each class into one."
        )
    return torch.from_numpy(np.array(images["label"].values)).long()
