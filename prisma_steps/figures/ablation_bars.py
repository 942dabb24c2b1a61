"""What a model loses without one site of one layer: effects of ablations, as bars."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from prisma_steps.figures.average import frame
from prisma_steps.figures.replacements import ablated
from prisma_steps.figures.style import (
    STANDARD_ERROR,
    FigureParams,
    Plot,
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

OF = "ablation_bars"

#: Height of the figure, in inches.
HEIGHT = 2.4

#: Width of the bars of a layer together, a layer being 1 wide.
GROUP = 0.8

#: What the plain run has of each measure, where that is not 0 for all.
PLAIN = {"ce_ablated": "ce", "top1_ablated": "top1"}


class Params(FigureParams):
    """What to show of every layer."""

    measure: Literal["ce_increase", "ce_ablated", "top1_ablated"] = Field(
        "ce_increase", description="the number that is shown of every layer and ablation"
    )


@figure(inputs={"ablation": Ablation})
def ablation_bars(ablation: xr.Dataset, params: Params) -> Plot:
    """Draw what the ablation of each layer does to the cross-entropy or to top-1, a bar for each ablation.

    Error bars are ± one standard error over images, of the increase of the cross-entropy. The dashed line is
    the plain run.

    Raises:
        StepError: when the measure is not there, or heads were ablated one by one.
    """
    require(ablation, params.measure, "ablation", "layer", of=OF)
    if "head" in ablation.dims:
        raise StepError(f"{OF}: the data is of heads, one by one. Draw it with ablation_heatmap.")
    names = [params.measure, params.measure + STANDARD_ERROR, PLAIN.get(params.measure)]
    shown = ablation[[name for name in names if name in ablation]]
    drawing, axes = subplots(params.inches, HEIGHT)
    _draw(axes[0, 0], shown, params.measure)
    drawing.legend(loc="outside upper center", ncols=4, columnspacing=1.2, handlelength=1.2)
    axes[0, 0].set(xlabel="Layer", ylabel=axis_label(ablation, params.measure))
    return Plot(drawing, frame(shown), _caption(ablation, params.measure))


def _draw(panel: Axes, shown: xr.Dataset, measure: str) -> None:
    import numpy as np
    import seaborn as sns

    places, kinds = np.arange(shown.sizes["layer"]), shown["ablation"].values
    width = GROUP / len(kinds)
    for number, (kind, colour) in enumerate(zip(kinds, sns.color_palette("colorblind"), strict=False)):
        of_kind = shown.sel(ablation=kind)
        error = of_kind.get(measure + STANDARD_ERROR)
        panel.bar(
            places + (number - (len(kinds) - 1) / 2) * width,
            of_kind[measure].values,
            width,
            yerr=None if error is None else error.values,
            color=colour,
            label=str(kind).replace("_", " "),
            error_kw={"elinewidth": 0.6},
        )
    if measure in PLAIN:
        plain = float(shown[PLAIN[measure]])
        panel.axhline(plain, color="0.4", linestyle="--", linewidth=0.8)
        panel.annotate(
            "plain run",
            (1, plain),
            (-2, 2),
            ("axes fraction", "data"),
            "offset points",
            ha="right",
            color="0.4",
        )
    else:
        panel.axhline(0, color="0.4", linewidth=0.6)
    cell_ticks(panel.xaxis, shown["layer"].values)
    panel.grid(visible=False, axis="x")


def _caption(ablation: xr.Dataset, measure: str) -> str:
    bars = ", bars ± 1 standard error over images" if measure + STANDARD_ERROR in ablation else ""
    plain = " Dashed: the plain run." if measure in PLAIN else ""
    return (
        f"{axis_label(ablation, measure)}: of one layer, {ablated(ablation)}. Mean over "
        f"{ablation.attrs['n_images']} images{bars}.{plain}"
    )
