"""Which components make a logit: the largest contributions, as bars."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prisma_steps.figures.average import average, frame
from prisma_steps.figures.style import STANDARD_ERROR, FigureParams, Plot, figure, require, subplots
from prisma_steps.schema import Attribution
from prisma_steps.step import Field

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from matplotlib.figure import Figure

CONTRIBUTION = "logit_contribution"

#: Heights of a bar with its space, and of the axis with its label and of the legend, in inches.
BAR, REST = 0.13, 0.75

#: Groups of components that share a colour.
GROUPS = {"head": "head", "attn": "attention", "mlp": "MLP"}


class Params(FigureParams):
    """Settings of the bars."""

    n: int = Field(20, gt=0, description="components shown, from the one with the largest mean contribution")


@figure(inputs={"attribution": Attribution})
def attribution_bars(attribution: xr.Dataset, params: Params) -> Plot:
    """Draw the mean over images of what the largest components add to the logit.

    Error bars are ± one standard error.
    """
    require(attribution, CONTRIBUTION, "component_kind", "image", of="attribution_bars")
    data = attribution[[CONTRIBUTION]]
    points = frame(average(data, "image"))
    order = points[CONTRIBUTION].abs().rank(ascending=False, method="first").argsort()
    shown = points.iloc[order[: params.n]].reset_index(drop=True)
    return Plot(
        _draw(shown, params, attribution.sizes["image"]), shown, _caption(attribution, shown, len(points))
    )


def _draw(shown: pd.DataFrame, params: Params, n_images: int) -> Figure:
    import seaborn as sns

    groups = [GROUPS.get(str(kind), "embedding or bias") for kind in shown["component_kind"]]
    names = ["head", "attention", "MLP", "embedding or bias"]
    colours = dict(zip(names, sns.color_palette("colorblind"), strict=False))
    drawing, axes = subplots(params.inches, BAR * len(shown) + REST)
    panel = axes[0, 0]
    for name in (name for name in names if name in groups):
        here = [place for place, group in enumerate(groups) if group == name]
        bars = shown.iloc[here]
        panel.barh(
            here,
            bars[CONTRIBUTION],
            xerr=bars.get(CONTRIBUTION + STANDARD_ERROR),
            color=colours[name],
            label=name,
            error_kw={"elinewidth": 0.6},
        )
    panel.axvline(0, color="0.4", linewidth=0.6)
    panel.set(
        xlabel=f"Contribution to the logit, n = {n_images} images",
        ylabel="Component",
        ylim=(len(shown) - 0.4, -0.6),
    )
    panel.set_yticks(range(len(shown)), [_name(str(name)) for name in shown["component"]])
    panel.grid(False, axis="y")
    drawing.legend(loc="outside upper center", ncols=4)
    return drawing


def _name(component: str) -> str:
    return component.replace("_", " ").replace("mlp", "MLP").replace("cls", "CLS")


def _caption(attribution: xr.Dataset, shown: pd.DataFrame, n_components: int) -> str:
    n, of = attribution.sizes["image"], "the logit"
    total = float(attribution["attributed_logit"].mean())
    if "subtracted_class" in attribution:
        of = "the difference of two logits"
    bars = ", bars ± 1 standard error over images" if n > 1 else ""
    return (
        f"Direct logit attribution: what the {len(shown)} largest of {n_components} components add to {of}, "
        f"mean of {n} images{bars}. All components sum to it, {total:.3g} in the mean."
    )
