"""Whether a dictionary's latents reconstruct better than as many neurons."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prisma_steps.figures.average import frame
from prisma_steps.figures.style import Plot, figure
from prisma_steps.figures.tradeoff import TradeoffParams, caption, draw_line, draw_lines, shown_of
from prisma_steps.schema import Quality
from prisma_steps.step import StepError, gather

if TYPE_CHECKING:
    import xarray as xr

NEURONS = {"color": "0.35", "linestyle": (0, (2, 1.5)), "marker": "x", "label": "neurons"}


class Params(TradeoffParams):
    """Settings of the comparison."""


@figure(inputs={"latents": gather(Quality), "neurons": gather(Quality)})
def latents_vs_neurons(latents: xr.Dataset, neurons: xr.Dataset, params: Params) -> Plot:
    """Plot the quality of reconstruction against L0 of dictionaries and, dashed and grey, of the neurons.

    Dictionaries are drawn as in ``sae_pareto``. Neurons, the k largest of each token, are one line along k.

    Raises:
        StepError: as ``sae_pareto``, or when the neurons have a grid axis besides k.
    """
    import pandas as pd

    baseline = shown_of(neurons, params, "latents_vs_neurons")
    others = [str(dim) for dim in baseline.dims if dim != "k" and baseline.sizes[dim] > 1]
    if others:
        raise StepError(
            f"latents_vs_neurons: neurons are one line along k, the data has the grid axes "
            f"{', '.join(others)} too. Select a point of each: {{node: …, select: {{{others[0]}: …}}}}"
        )
    drawing, axes, points = draw_lines(latents, params, "latents_vs_neurons")
    of_neurons = frame(baseline)
    for row, measure in zip(axes, params.measures, strict=True):
        for panel in row:
            draw_line(panel, of_neurons, NEURONS, measure)
    axes[0, 0].legend()
    numbers = pd.concat(
        [points.assign(basis="latents"), of_neurons.assign(basis="neurons")], ignore_index=True
    )
    return Plot(drawing, numbers, caption(latents, params, "sparse autoencoders and of the neurons"))
