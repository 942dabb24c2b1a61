"""What every set of images offers, whatever it is made or read from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Integer, UInt8


@dataclass(frozen=True)
class ImageSource:
    """Numbered images of one shape, drawn or read only when asked for.

    Attributes:
        count: how many there are.
        shape: (channel, row, column).
        class_names: name of every class, or None where images have no class.
        coords: for images of given numbers, ``image`` (stable string ids), ``label`` where there are classes,
            and whatever else is known of each.
        pixels: the images of given numbers, 0 to 255.
    """

    count: int
    shape: tuple[int, int, int]
    class_names: tuple[str, ...] | None
    coords: Callable[[Integer[np.ndarray, " image"]], Mapping[str, np.ndarray]]
    pixels: Callable[[Integer[np.ndarray, " image"]], UInt8[np.ndarray, "image channel row column"]]
