"""What every head attends to: its scores on each type of head, layer × head."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Literal

from prisma_steps.figures.average import frame
from prisma_steps.figures.style import FigureParams, Plot, as_table, figure, require, subplots
from prisma_steps.schema import Attention
from prisma_steps.step import Field

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes

#: Panels in one row, by width.
PER_ROW = {"one_column": 3, "two_columns": 5}

#: Heights of a panel's title with its ticks and of the colour bar with its label, and of a panel at most, in
#: inches.
TITLE, BAR, TALLEST = 0.42, 0.5, 1.4


class Params(FigureParams):
    """Settings of the map of head types."""

    width: Literal["one_column", "two_columns"] = Field(
        "two_columns", description="width in print: one column is 3.5 inches, two are 7.2"
    )


@figure(inputs={"attention": Attention})
def head_types(attention: xr.Dataset, params: Params) -> Plot:
    """Draw, for each type of head, the score of every head: layer × head, on one colour scale."""
    require(attention, "head_score", "uniform_head_score", "head_type", "layer", "head", of="head_types")
    shown = attention[["head_score", "uniform_head_score"]]
    strongest = float(shown["head_score"].max())
    n_types = shown.sizes["head_type"]
    rows = ceil(n_types / PER_ROW[params.width])
    per_row = ceil(n_types / rows)
    side = params.inches / per_row - 0.3
    height = min(side * shown.sizes["layer"] / shown.sizes["head"], TALLEST)
    drawing, axes = subplots(params.inches, rows * (height + TITLE) + BAR, rows, per_row)
    for panel, name in zip(axes.flat, shown["head_type"].values, strict=False):
        _draw(panel, shown.sel(head_type=name), str(name), strongest)
    for panel in axes.flat[n_types:]:
        panel.remove()
    kept = list(axes.flat[:n_types])
    label = "Share of the attention of patches"
    drawing.colorbar(kept[0].images[0], ax=kept, location="bottom", aspect=40, shrink=0.7, label=label)
    return Plot(drawing, frame(shown), _caption(attention))


def _draw(panel: Axes, scores: xr.Dataset, name: str, strongest: float) -> None:
    from matplotlib.ticker import MaxNLocator

    values, uniform = scores["head_score"], float(scores["uniform_head_score"])
    values = values.transpose("layer", "head")
    panel.imshow(values.values, cmap="Blues", vmin=0, vmax=strongest, aspect="auto")
    panel.set_title(f"{name.replace('_', ' ').replace('cls', 'CLS')} ({uniform:.2g})")
    for axis, dim in ((panel.xaxis, "head"), (panel.yaxis, "layer")):
        axis.set_major_locator(MaxNLocator(4, integer=True))
        axis.set_label_text(dim.capitalize())
    as_table(panel)


def _caption(attention: xr.Dataset) -> str:
    of = f"{int(attention['n_images'])} images" if "n_images" in attention else "all images"
    return (
        "What the heads of each layer attend to: the share of the attention of a patch that goes to keys of "
        f"a type, mean over the patches that have such keys and over {of}. In brackets: of attention that is "
        "the same to all tokens."
    )
