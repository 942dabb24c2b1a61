"""How dictionaries became what they are: FVU, L0, dead latents and loss against the tokens seen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from prisma_steps.figures.average import average, frame
from prisma_steps.figures.curves import check_curves, draw_curve
from prisma_steps.figures.encoding import GridParams, encode
from prisma_steps.figures.style import Plot, axis_label, figure, log_ticks, require, subplots
from prisma_steps.schema import Dictionary
from prisma_steps.step import Field, gather

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr
    from matplotlib.axes import Axes

#: Height of a row of panels, and of titles and what is below the last, in inches.
HEIGHT, BELOW = 1.35, 0.3

#: What spans decades, and is drawn on a log axis wherever all of it is positive.
LOG = ("fvu", "l0", "loss", "sparsity_loss")

#: Short names for narrow panels, where the schema's would not fit.
SHORT = {"dead_latents": "Dead latents", "loss": "Loss", "sparsity_loss": "Sparsity term"}


class Params(GridParams):
    """Settings of the training curves."""

    width: Literal["one_column", "two_columns"] = Field(
        "two_columns", description="width in print: one column is 3.5 inches, two are 7.2"
    )
    curves: list[str] = Field(
        ["fvu", "l0", "dead_latents", "loss"],
        min_length=1,
        description="variables along step, one panel each",
    )
    columns: str | None = Field(
        None, description="grid axis shown by rows of panels; the third axis when null"
    )


@figure(inputs={"sae": gather(Dictionary)})
def sae_training_curves(sae: xr.Dataset, params: Params) -> Plot:
    """Plot the history of the training of dictionaries, a panel for each curve, a line for each point.

    Every value is that of one batch. Seeds are averaged; bands are ± one standard error.

    Raises:
        StepError: when a curve is missing, does not run along ``step``, or the dictionary was not trained
            here and has no history.
    """
    require(sae, *params.curves, "tokens_seen", of="sae_training_curves")
    curves = average(sae[[*params.curves, "tokens_seen"]].reset_coords("tokens_seen"), "seed")
    check_curves(curves, params.curves, of="sae_training_curves")
    encoding = encode(curves, params, inner=("step",), of="sae_training_curves")
    points, rows = frame(curves), encoding.panels
    drawing, axes = subplots(
        params.inches, HEIGHT * len(rows) + BELOW, len(rows), len(params.curves), sharex=True, sharey="col"
    )
    for column, curve in zip(axes.T, params.curves, strict=True):
        draw_curve(column, encoding, points, curve, along="tokens_seen")
        _scale(column, curve, bool((points[curve].dropna() > 0).all()))
        for panel in column:
            panel.set_ylabel(SHORT.get(curve, axis_label(sae, curve)))
    for row, title in zip(axes, rows, strict=True):
        row[0].set_title(title, loc="left")
    _count_tokens(axes, float(sae["tokens_seen"].max()))
    drawing.supxlabel(axis_label(sae, "tokens_seen"), fontsize=7)
    encoding.legend(drawing, markers=False)
    return Plot(drawing, points, _caption(sae, params))


def _scale(column: np.ndarray, curve: str, positive: bool) -> None:
    if curve in LOG and positive:
        for panel in column:
            panel.set_yscale("log")
            log_ticks(panel.yaxis)
    else:
        column[0].set_ylim(bottom=0)


def _count_tokens(axes: np.ndarray, most: float) -> None:
    """Few ticks, of thousands or millions."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    panel: Axes
    for panel in axes.flat:
        panel.set_xlim(0, most)
        panel.xaxis.set_major_locator(MaxNLocator(3))
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))


def _caption(sae: xr.Dataset, params: Params) -> str:
    shown = ", ".join(axis_label(sae, curve) for curve in params.curves)
    seeds = sae.sizes.get("seed", 1)
    averaged = f" Mean of {seeds} seeds, bands ± 1 standard error." if seeds > 1 else ""
    return (
        f"Training of dictionaries of {sae.sizes['latent']:,} latents, of each batch: {shown}, against the "
        f"tokens seen.{averaged}"
    )
