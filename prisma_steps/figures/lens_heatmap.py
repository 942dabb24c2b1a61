"""Where the answer appears: the correct class by the logit lens, layers × tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from prisma_steps.figures.average import average, frame, largest_error
from prisma_steps.figures.patch_grid import require_tokens, token_axis
from prisma_steps.figures.style import (
    FigureParams,
    Plot,
    as_table,
    axis_label,
    cell_ticks,
    figure,
    require,
    subplots,
)
from prisma_steps.schema import Lens
from prisma_steps.step import Field

if TYPE_CHECKING:
    import xarray as xr

#: Height of the figure, in inches.
HEIGHT = 2.2


class Params(FigureParams):
    """What to show of every token."""

    measure: Literal["correct_probability", "correct_logit", "correct_rank", "ce"] = Field(
        "correct_probability", description="the number that is shown of every layer and token"
    )


@figure(inputs={"lens": Lens})
def lens_heatmap(lens: xr.Dataset, params: Params) -> Plot:
    """Draw the mean over images of how the lens rates the correct class, layers × tokens.

    Raises:
        StepError: when the lens was made without the correct class.
    """
    require(lens, params.measure, "image", "layer", "token", of="lens_heatmap")
    require_tokens(lens, of="lens_heatmap")
    data = lens[[params.measure]]
    shown = average(data, "image")
    drawing, axes = subplots(params.inches, HEIGHT)
    panel = axes[0, 0]
    drawn = panel.imshow(
        shown[params.measure].transpose("layer", "token").values,
        cmap="viridis",
        aspect="auto",
        origin="lower",
    )
    token_axis(panel, lens["token_kind"], line="white")
    cell_ticks(panel.yaxis, lens["layer"].values)
    panel.set(xlabel="Token", ylabel="Layer")
    as_table(panel)
    drawing.colorbar(drawn, ax=panel, label=axis_label(lens, params.measure))
    of = f"mean of {lens.sizes['image']} images{largest_error(shown)}"
    caption = (
        f"Logit lens: {axis_label(lens, params.measure)} when the head reads each token alone, {of}. Layer 0 "
        f"is the embedding, layer {int(lens['layer'][-1])} the end."
    )
    return Plot(drawing, frame(shown), caption)
