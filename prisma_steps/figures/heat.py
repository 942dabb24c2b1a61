"""A map of token values over the image that it is of, translucent where little is to be seen."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

#: Perceptually uniform, from dark to light.
COLOURS = "inferno"

#: How much of the image the highest value hides.
OPACITY = 0.85


def over_image(pixels: np.ndarray, patches: np.ndarray, highest: float) -> np.ndarray:
    """The image in grey under the map, as [row, column, RGB] in 0 … 1.

    Args:
        pixels: [row, column, channel], 0 to 255.
        patches: [patch_row, patch_col]; missing values hide nothing.
        highest: value at the end of the colour scale, which hides most; 0 and below hide nothing.
    """
    import matplotlib as mpl
    import numpy as np

    share = np.clip(np.nan_to_num(patches / highest if highest > 0 else 0 * patches), 0, 1)
    rows, columns = (
        np.arange(size) * count // size for size, count in zip(pixels.shape, patches.shape, strict=False)
    )
    spread = share[rows[:, None], columns]
    grey = np.repeat(pixels.mean(-1, keepdims=True) / 255, 3, axis=-1)
    hidden = OPACITY * spread[..., None] ** 0.5  # the root: half the highest value is well to be seen
    return (1 - hidden) * grey + hidden * mpl.colormaps[COLOURS](spread)[..., :3]
