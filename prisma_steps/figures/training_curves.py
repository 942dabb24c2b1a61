"""Accuracy and loss of models against epochs of training."""

from __future__ import annotations

from math import log
from typing import TYPE_CHECKING

from prisma_steps.figures.average import average, frame
from prisma_steps.figures.curves import check_curves, draw_curve, mark_level
from prisma_steps.figures.encoding import GridParams, encode
from prisma_steps.figures.style import Plot, axis_label, figure, require, subplots
from prisma_steps.schema import Model
from prisma_steps.step import Field, gather

if TYPE_CHECKING:
    import xarray as xr

#: Height of one panel, in inches.
HEIGHT = 1.75


class Params(GridParams):
    """Settings of the training curves."""

    curves: list[str] = Field(
        ["test_accuracy_history", "test_loss"],
        min_length=1,
        description="variables along step, one row of panels each",
    )


@figure(inputs={"model": gather(Model)})
def training_curves(model: xr.Dataset, params: Params) -> Plot:
    """Plot accuracy and loss against epochs, a line for each point of the grid.

    Seeds are averaged; bands are ± one standard error. Dotted grey lines are chance: 1 / classes for an
    accuracy, ln(classes) for a loss.

    Raises:
        StepError: when a curve is missing or does not run along ``step``.
    """
    require(model, *params.curves, "epoch", "class", of="training_curves")
    curves = average(model[[*params.curves, "epoch"]].reset_coords("epoch"), "seed")
    check_curves(curves, params.curves, of="training_curves")
    encoding = encode(curves, params, inner=("step",), of="training_curves")
    points = frame(curves)
    panels = encoding.panels
    drawing, axes = subplots(
        params.inches, HEIGHT * len(params.curves), len(params.curves), len(panels), sharex=True, sharey="row"
    )
    for row, curve in zip(axes, params.curves, strict=True):
        draw_curve(row, encoding, points, curve, along="epoch")
        row[0].set_ylabel(axis_label(model, curve))
        n_classes = model.sizes["class"]
        mark_level(row, 1 / n_classes if "accuracy" in curve else log(n_classes), "chance")
    for panel, title in zip(axes[0], panels, strict=True):
        panel.set_title(title)
    for panel in axes[-1]:
        panel.set_xlabel("Epoch")
        panel.xaxis.get_major_locator().set_params(integer=True)
    encoding.legend(drawing, markers=False)
    return Plot(drawing, points, _caption(model, params))


def _caption(model: xr.Dataset, params: Params) -> str:
    shown = " and ".join(axis_label(model, curve).lower() for curve in params.curves)
    seeds = model.sizes.get("seed", 1)
    averaged = f" Mean of {seeds} seeds, bands ± 1 standard error." if seeds > 1 else ""
    return f"{shown[0].upper()}{shown[1:]}. Dotted: chance.{averaged}"
