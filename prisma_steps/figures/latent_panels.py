"""One panel for each latent: what figures of single latents share."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Any

from prisma_steps.figures.style import FigureParams, subplots

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

#: Panels in one row, by width.
PER_ROW = {"one_column": 2, "two_columns": 4}

#: Height of a row of panels, and of the label below them, in inches.
HEIGHT, BELOW = 1.4, 0.2


def latent_panels(
    latents: np.ndarray, params: FigureParams, sharey: bool = False
) -> tuple[Figure, np.ndarray]:
    """A figure with a panel titled by each latent, and the axes [row, column].

    What is left over of the last row is taken away; the panels above it number their own axis.
    """
    per_row = min(PER_ROW[params.width], len(latents))
    rows = ceil(len(latents) / per_row)
    drawing, axes = subplots(params.inches, rows * HEIGHT + BELOW, rows, per_row, sharex=True, sharey=sharey)
    for panel, latent in zip(axes.flat, latents, strict=False):
        panel.set_title(f"Latent {latent}")
    for panel in axes.flat[len(latents) :]:
        panel.remove()
    for above in axes.flat[len(latents) - per_row : (rows - 1) * per_row]:
        above.tick_params(labelbottom=True)
    return drawing, axes


def colours(count: int) -> list[Any]:
    """Colours of lines within a panel, safe for colour-blind readers."""
    import seaborn as sns

    return list(sns.color_palette("colorblind", count))
