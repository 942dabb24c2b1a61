"""What every set of images offers, whatever it is made or read from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Integer, UInt8

from prisma_steps.schema import IMAGE_DIMS

if TYPE_CHECKING:
    from prisma_steps.data.files import Files


@dataclass(frozen=True)
class ImageSource:
    """Numbered images, or clips, of one shape, drawn or read only when asked for.

    Attributes:
        count: how many there are.
        shape: (channel, row, column); for clips (frame, channel, row, column).
        class_names: name of every class, or None where images have no class.
        coords: for images of given numbers, ``image`` (stable string ids), ``label`` where there are classes,
            and whatever else is known of each.
        pixels: the images of given numbers, 0 to 255.
        files: the files that they are read from, in the order of their numbers; None where they are drawn.
    """

    count: int
    shape: tuple[int, ...]
    class_names: tuple[str, ...] | None
    coords: Callable[[Integer[np.ndarray, " image"]], Mapping[str, np.ndarray]]
    pixels: Callable[[Integer[np.ndarray, " image"]], UInt8[np.ndarray, "image ..."]]
    files: Files | None = None

    @property
    def dims(self) -> tuple[str, ...]:
        """Names of the dimensions of one image: those of ``shape``."""
        return image_dims(self.shape)


def image_dims(shape: tuple[int, ...]) -> tuple[str, ...]:
    """Names of the dimensions of an image or clip of some shape."""
    return IMAGE_DIMS[-len(shape) :]
