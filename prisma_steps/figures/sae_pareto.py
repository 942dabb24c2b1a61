"""How well dictionaries reconstruct at how many active latents."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prisma_steps.figures.style import Plot, figure
from prisma_steps.figures.tradeoff import TradeoffParams, caption, draw_lines
from prisma_steps.schema import Quality
from prisma_steps.step import gather

if TYPE_CHECKING:
    import xarray as xr


class Params(TradeoffParams):
    """Settings of the Pareto plot."""


@figure(inputs={"quality": gather(Quality)})
def sae_pareto(quality: xr.Dataset, params: Params) -> Plot:
    """Plot the quality of reconstruction against L0, with a line along the sparsity of each dictionary.

    Seeds are averaged; error bars are ± one standard error.

    Raises:
        StepError: when a measure, the tokens or the axis are missing, or an L0 of 0 would be on a log axis.
    """
    drawing, _, points = draw_lines(quality, params, "sae_pareto")
    return Plot(drawing, points, caption(quality, params, "sparse autoencoders"))
