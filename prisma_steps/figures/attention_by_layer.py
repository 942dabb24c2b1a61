"""How far, or how sharply, the heads of each layer look."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from prisma_steps.figures.average import frame
from prisma_steps.figures.style import FigureParams, Plot, axis_label, figure, require, subplots
from prisma_steps.schema import Attention
from prisma_steps.step import Field, StepError

if TYPE_CHECKING:
    import xarray as xr

#: Height of the figure, in inches.
HEIGHT = 2.2


class Params(FigureParams):
    """What to show of every head."""

    measure: Literal["attention_distance", "attention_frame_distance", "attention_entropy"] = Field(
        "attention_distance", description="the number that is shown of every head"
    )
    query_kind: str = Field(
        "patch", description="of attention_entropy: the tokens that attend (all, cls, register, patch)"
    )


@figure(inputs={"attention": Attention})
def attention_by_layer(attention: xr.Dataset, params: Params) -> Plot:
    """Plot one point for every head against its layer, and the level of uniform attention.

    As figure 7 of Dosovitskiy et al. 2020 (arXiv 2010.11929).

    Raises:
        StepError: when the data has no such measure or kind of query.
    """
    require(attention, params.measure, "layer", "head", of="attention_by_layer")
    shown = attention[[params.measure, f"uniform_{params.measure}"]]
    if params.measure == "attention_entropy":
        shown = _of_queries(shown, params.query_kind)
    points = frame(shown)
    drawing, axes = subplots(params.inches, HEIGHT)
    panel = axes[0, 0]
    panel.plot(points["layer"], points[params.measure], "o", alpha=0.7, markeredgewidth=0)
    uniform = float(shown[f"uniform_{params.measure}"])
    panel.axhline(uniform, color="0.4", linestyle="--", linewidth=0.8, label="Uniform attention")
    panel.set(xlabel="Layer", ylabel=axis_label(attention, params.measure))
    panel.set_ylim(0, 1.1 * max(uniform, float(shown[params.measure].max())))
    panel.set_xlim(points["layer"].min() - 0.5, points["layer"].max() + 0.5)
    panel.xaxis.get_major_locator().set_params(integer=True)
    drawing.legend(loc="outside upper right")
    return Plot(drawing, points, _caption(attention, params))


def _of_queries(shown: xr.Dataset, kind: str) -> xr.Dataset:
    there = shown["query_kind"].values.tolist()
    if kind not in there:
        raise StepError(
            f"attention_by_layer: query_kind is {kind!r}, the data has {', '.join(map(str, there))}"
        )
    return shown.sel(query_kind=kind, drop=True)


def _caption(attention: xr.Dataset, params: Params) -> str:
    what = {
        "attention_distance": "Mean distance in the image of patches to the patches that they attend to",
        "attention_frame_distance": "Mean distance in time of patches to the patches that they attend to",
        "attention_entropy": f"Mean entropy of the attention of tokens of the kind {params.query_kind}",
    }[params.measure]
    of = f"{int(attention['n_images'])} images" if "n_images" in attention else "all images"
    return f"{what}, one point a head, over {of}. Dashed: attention that is the same to all tokens."
