"""How much of the answer circuits of so many latents make, beside random ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prisma_steps.figures.faithfulness import FaithfulnessParams, caption, draw_curves
from prisma_steps.figures.style import Plot, figure
from prisma_steps.schema import LatentCircuit
from prisma_steps.step import gather

if TYPE_CHECKING:
    import xarray as xr


class Params(FaithfulnessParams):
    """Settings of the curves."""


@figure(inputs={"circuit": gather(LatentCircuit)})
def latent_faithfulness_curve(circuit: xr.Dataset, params: Params) -> Plot:
    """Plot faithfulness against the latents and error terms of circuits, of random ones, and of all others.

    A line for each ablation and point of the grid. Bands are ± one standard error over seeds where there are
    several, else over random circuits.

    Raises:
        StepError: when a variable is missing, or there are more axes than can be shown.
    """
    drawing, points = draw_curves(circuit, params, "n_nodes", "latent_faithfulness_curve")
    of_what = "circuits of latents and error terms, the rest of them ablated,"
    return Plot(drawing, points, caption(circuit, "n_nodes", of_what))
