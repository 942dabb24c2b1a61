"""A measure of the reconstruction against L0: what figures of this trade-off share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import field_validator

from prisma_steps.figures.average import average, frame
from prisma_steps.figures.encoding import GridParams, encode
from prisma_steps.figures.style import STANDARD_ERROR, axis_label, log_ticks, require, subplots
from prisma_steps.step import Field, StepError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Parameters that set how sparse a dictionary is: a line runs along the first of them that is a grid axis.
SPARSITY = ("sparsity", "l1_coefficient", "l0_coefficient", "k")

#: Height of a figure of one row, and of each of several, in inches.
HEIGHT, ROW = 2.4, 1.8

Measure = Literal["fvu", "explained_variance", "mse", "ce_recovered"]


class TradeoffParams(GridParams):
    """Settings of a plot of the reconstruction against L0."""

    token_kind: Literal["all", "cls", "patch"] = Field("all", description="tokens that L0 and FVU are of")
    along: str | None = Field(
        None, description="grid axis that lines run along; the one that sets the sparsity when null"
    )
    y: Measure | list[Measure] = Field(
        "fvu", description="measure of the reconstruction; of a list, each has a row of panels"
    )

    @field_validator("y")
    @classmethod
    def _each_once(cls, y: str | list[str]) -> str | list[str]:
        if isinstance(y, list) and (not y or len(set(y)) < len(y)):
            raise ValueError(f"name at least one measure, each once; got {y}")
        return y

    @property
    def measures(self) -> list[str]:
        """The measures, one a row."""
        return [self.y] if isinstance(self.y, str) else list(self.y)


def shown_of(quality: xr.Dataset, params: TradeoffParams, of: str) -> xr.Dataset:
    """L0 and the measures on the tokens asked for, averaged over seeds.

    Raises:
        StepError: when they are missing, or an L0 of 0 would be on a log axis.
    """
    require(quality, "l0", *params.measures, "token_kind", of=of)
    kinds = quality["token_kind"].values.tolist()
    if params.token_kind not in kinds:
        there = ", ".join(map(str, kinds))
        raise StepError(f"{of}: token_kind is {params.token_kind!r}, the data has {there}")
    shown = average(quality[["l0", *params.measures]].sel(token_kind=params.token_kind), "seed")
    if not bool((shown["l0"] > 0).all()):
        raise StepError(
            f"{of}: the L0 of some dictionaries is 0 or missing, which has no place on a log axis. They "
            "never fire: lower their sparsity coefficient, or select the others."
        )
    return shown


def draw_lines(
    quality: xr.Dataset, params: TradeoffParams, of: str
) -> tuple[Figure, np.ndarray, pd.DataFrame]:
    """Panels, a row a measure, with a line along the sparsity of each dictionary; a legend; and the points.

    Raises:
        StepError: as ``shown_of``, or when there is no such axis to draw along.
    """
    shown = shown_of(quality, params, of)
    along = line_axis(shown, params.along, of)
    encoding = encode(shown, params, inner=(along,) if along else (), of=of)
    points = frame(shown)
    panels, n_rows = encoding.panels, len(params.measures)
    height = HEIGHT if n_rows == 1 else ROW * n_rows
    drawing, axes = subplots(params.inches, height, n_rows, len(panels), sharex=True, sharey="row")
    for row, measure in zip(axes, params.measures, strict=True):
        for line in encoding.lines(points):
            look = line.look if along else {**line.look, "linestyle": "none"}
            draw_line(row[line.panel], line.points, look, measure)
        row[0].set_ylabel(axis_label(quality, measure))
    for first, last, title in zip(axes[0], axes[-1], panels, strict=True):
        first.set(title=title, xscale="log")
        last.set_xlabel(axis_label(quality, "l0"))
        log_ticks(last.xaxis)
    encoding.legend(drawing)
    return drawing, axes, points


def line_axis(shown: xr.Dataset, along: str | None, of: str) -> str | None:
    """The grid axis that lines run along.

    Raises:
        StepError: when it is named and not there.
    """
    if along is None:
        return next((axis for axis in SPARSITY if axis in shown.dims), None)
    if along not in shown.dims:
        there = ", ".join(map(str, shown.dims)) or "none"
        raise StepError(f"{of}: along is {along!r}, but the grid axes are {there}")
    return along


def draw_line(panel: Axes, points: pd.DataFrame, look: dict[str, Any], y: str) -> None:
    """One line, by rising L0, with error bars where there are standard errors."""
    points = points.sort_values("l0")
    errors = {
        direction: points.get(name + STANDARD_ERROR) for direction, name in (("xerr", "l0"), ("yerr", y))
    }
    panel.errorbar(points["l0"], points[y], **errors, **look, elinewidth=0.8, capsize=1.5)


def caption(quality: xr.Dataset, params: TradeoffParams, of_what: str) -> str:
    """What is to be seen."""
    seeds = quality.sizes.get("seed", 1)
    averaged = f" Mean of {seeds} seeds, bars ± 1 standard error." if seeds > 1 else ""
    tokens = {"all": "all tokens", "cls": "CLS tokens", "patch": "patch tokens"}[params.token_kind]
    measures = " and ".join(axis_label(quality, measure) for measure in params.measures)
    return f"{measures} against L0 of {of_what}, on {tokens}.{averaged}"
