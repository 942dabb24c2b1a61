"""Active latents of CLS and of patch tokens, layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from prisma_steps.figures.average import average, frame
from prisma_steps.figures.encoding import GridParams, encode
from prisma_steps.figures.style import STANDARD_ERROR, Plot, axis_label, figure, log_ticks, require, subplots
from prisma_steps.schema import Quality
from prisma_steps.step import Field, StepError, gather

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from matplotlib.axes import Axes

TOKEN_KINDS = ["cls", "patch"]

#: Height of a panel, in inches.
HEIGHT = 2.2


class Params(GridParams):
    """Settings of the plot of L0 by layer."""

    hue: str | None = Field("token_kind", description="axis shown by colour; the first grid axis when null")
    y_scale: Literal["log", "linear"] = Field("log", description="scale of L0")


@figure(inputs={"quality": gather(Quality)})
def sae_l0_by_layer(quality: xr.Dataset, params: Params) -> Plot:
    """Plot the L0 of dictionaries against the layer that they are of, for CLS and for patch tokens.

    Seeds are averaged; error bars are ± one standard error.

    Raises:
        StepError: when the dictionaries are of one layer only, or an L0 of 0 has no place on a log axis.
    """
    require(quality, "l0", "token_kind", "layer", of="sae_l0_by_layer")
    l0 = _by_layer(quality[["l0"]])
    shown = average(_of_tokens(l0), "seed")
    if params.y_scale == "log" and not bool((shown["l0"] > 0).all()):
        raise StepError("sae_l0_by_layer: an L0 of 0 has no place on a log axis. Set y_scale: linear.")
    encoding = encode(shown, params, inner=("layer",), of="sae_l0_by_layer")
    points = frame(shown)
    panels = encoding.panels
    drawing, axes = subplots(params.inches, HEIGHT, 1, len(panels), sharex=True, sharey=True)
    for line in encoding.lines(points):
        _draw(axes[0, line.panel], line.points.sort_values("layer"), line.look)
    for panel, title in zip(axes[0], panels, strict=True):
        panel.set(title=title, yscale=params.y_scale, xlabel=axis_label(l0, "layer"))
        if params.y_scale == "log":
            log_ticks(panel.yaxis)
        panel.xaxis.get_major_locator().set_params(integer=True)
    axes[0, 0].set_ylabel(axis_label(l0, "l0"))
    encoding.legend(drawing)
    return Plot(drawing, points, _caption(quality))


def _by_layer(l0: xr.Dataset) -> xr.Dataset:
    """The data with ``layer`` as a dim, also where the grid axis that sets the layer has another name."""
    if "layer" not in l0.coords:
        raise StepError("sae_l0_by_layer: a crosscoder has one L0 for all its layers, and none of each.")
    dims = l0["layer"].dims
    if len(dims) != 1:
        raise StepError(
            "sae_l0_by_layer: the dictionaries are all of one layer. Give the layer a grid, for instance "
            "layers: {grid: [0, 1, 2]} in extract_activations."
        )
    return l0 if dims == ("layer",) else l0.swap_dims({dims[0]: "layer"}).drop_vars([dims[0]])


def _of_tokens(l0: xr.Dataset) -> xr.Dataset:
    there = l0["token_kind"].values.tolist()
    missing = [kind for kind in TOKEN_KINDS if kind not in there]
    if missing:
        raise StepError(
            f"sae_l0_by_layer: no L0 of the token_kind {', '.join(missing)}; the data has "
            f"{', '.join(there)}. Train the dictionaries on all tokens."
        )
    return l0.sel(token_kind=TOKEN_KINDS)


def _draw(panel: Axes, points: pd.DataFrame, look: dict) -> None:
    panel.errorbar(
        points["layer"],
        points["l0"],
        yerr=points.get("l0" + STANDARD_ERROR),
        **look,
        elinewidth=0.8,
        capsize=1.5,
    )


def _caption(quality: xr.Dataset) -> str:
    seeds = quality.sizes.get("seed", 1)
    averaged = f" Mean of {seeds} seeds, bars ± 1 standard error." if seeds > 1 else ""
    return f"Active latents per token (L0) of CLS and of patch tokens, by layer.{averaged}"
