"""How much of the answer circuits of so many edges make, beside random ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prisma_steps.figures.faithfulness import METHODS, FaithfulnessParams, caption, draw_curves
from prisma_steps.figures.style import Plot, figure
from prisma_steps.schema import Circuit
from prisma_steps.step import gather

if TYPE_CHECKING:
    import xarray as xr


class Params(FaithfulnessParams):
    """Settings of the curves."""


@figure(inputs={"circuit": gather(Circuit)})
def faithfulness_curve(circuit: xr.Dataset, params: Params) -> Plot:
    """Plot faithfulness against the edges of circuits, of random ones, and of all that a circuit leaves out.

    A line for each ablation and point of the grid. Bands are ± one standard error over seeds where there are
    several, else over random circuits.

    Raises:
        StepError: when a variable is missing, or there are more axes than can be shown.
    """
    drawing, points = draw_curves(circuit, params, "n_edges", "faithfulness_curve")
    method = METHODS.get(circuit.attrs.get("method", ""))
    scored = f" with edges scored by {method}" if method else ""
    return Plot(drawing, points, caption(circuit, "n_edges", f"circuits{scored}"))
