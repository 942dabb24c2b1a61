"""From labelled images to tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from jaxtyping import Int, Integer, UInt8
from torch import Tensor

from prisma_steps.schema import IMAGE_DIMS
from prisma_steps.step import StepError

if TYPE_CHECKING:
    import xarray as xr


Where: TypeAlias = slice | Sequence[int] | Integer[np.ndarray, " batch"]


def raw_batch(images: xr.Dataset, where: Where) -> UInt8[Tensor, "image *frame channel row column"]:
    """The pixels of some images, or clips, 0 to 255, as a model's image processor starts from."""
    chosen = where if isinstance(where, slice) else np.asarray(where)
    dims = [dim for dim in ("image", *IMAGE_DIMS) if dim in images["pixels"].dims]
    # Read first: of pixels that stay in files, another order of dims makes a list of single ones to be read.
    read = images["pixels"].isel(image=chosen).compute().transpose(*dims)
    return torch.from_numpy(np.array(read.values))


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
