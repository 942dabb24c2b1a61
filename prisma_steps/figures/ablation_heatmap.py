"""Which heads a model cannot do without: the effect of the ablation of each, layer × head."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Literal

from prisma_steps.figures.average import frame, largest_error
from prisma_steps.figures.replacements import ablated
from prisma_steps.figures.style import (
    STANDARD_ERROR,
    FigureParams,
    Plot,
    as_table,
    axis_label,
    cell_ticks,
    figure,
    require,
    subplots,
)
from prisma_steps.schema import Ablation
from prisma_steps.step import Field, StepError

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize

OF = "ablation_heatmap"
EFFECT = "ce_increase"

#: Panels in one row, by width, and the width of one at most, in inches.
PER_ROW, WIDEST = {"one_column": 2, "two_columns": 4}, 1.8

#: Heights of a panel's title with its ticks and label, and of the colour bar with its label, in inches.
TITLE, BAR = 0.5, 0.5


class Params(FigureParams):
    """Settings of the map."""

    width: Literal["one_column", "two_columns"] = Field(
        "two_columns", description="width in print: one column is 3.5 inches, two are 7.2"
    )


@figure(inputs={"ablation": Ablation})
def ablation_heatmap(ablation: xr.Dataset, params: Params) -> Plot:
    """Draw the increase of the cross-entropy by the ablation of every head, a panel for each ablation.

    Colours are centred on 0: no effect.

    Raises:
        StepError: when whole layers were ablated.
    """
    require(ablation, EFFECT, "ablation", "layer", of=OF)
    if "head" not in ablation.dims:
        raise StepError(
            f"{OF}: the data is of whole layers. Draw it with ablation_bars, or ablate a site of heads: z."
        )
    shown = ablation[[name for name in (EFFECT, EFFECT + STANDARD_ERROR) if name in ablation]]
    norm, kinds = _norm(shown[EFFECT]), shown["ablation"].values
    per_row = min(PER_ROW[params.width], len(kinds))
    rows, side = ceil(len(kinds) / per_row), min(params.inches / per_row, WIDEST)
    height = rows * (side * shown.sizes["layer"] / shown.sizes["head"] + TITLE) + BAR
    drawing, axes = subplots(params.inches, height, rows, per_row, layout="compressed")
    for panel, kind in zip(axes.flat, kinds, strict=False):
        _draw(panel, shown[EFFECT].sel(ablation=kind), norm)
        panel.set_title(str(kind).replace("_", " "))
    for left_over in axes.flat[len(kinds) :]:
        left_over.remove()
    label = f"{axis_label(ablation, EFFECT)}, n = {ablation.attrs['n_images']} images"
    drawing.colorbar(
        axes[0, 0].images[0],
        ax=list(axes.flat[: len(kinds)]),
        location="bottom",
        aspect=40,
        shrink=0.7,
        label=label,
    )
    return Plot(drawing, frame(shown), _caption(ablation, shown))


def _norm(effect: xr.DataArray) -> Normalize:
    from matplotlib.colors import Normalize

    reach = float(abs(effect).max()) or 1.0
    return Normalize(-reach, reach)


def _draw(panel: Axes, effect: xr.DataArray, norm: Normalize) -> None:
    panel.imshow(effect.transpose("layer", "head").values, norm=norm, cmap="RdBu_r")
    cell_ticks(panel.xaxis, effect["head"].values)
    cell_ticks(panel.yaxis, effect["layer"].values)
    panel.set(xlabel="Head", ylabel="Layer")
    as_table(panel)


def _caption(ablation: xr.Dataset, shown: xr.Dataset) -> str:
    return (
        f"{axis_label(ablation, EFFECT)}: of one head, {ablated(ablation)}. Mean over "
        f"{ablation.attrs['n_images']} images{largest_error(shown)}."
    )
