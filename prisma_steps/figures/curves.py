"""Curves: what figures of them share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from prisma_steps.figures.style import STANDARD_ERROR
from prisma_steps.step import StepError

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from matplotlib.axes import Axes

    from prisma_steps.figures.encoding import Encoding


def check_curves(curves: xr.Dataset, asked: Sequence[str], of: str) -> None:
    """Refuse what does not run along ``step``.

    Raises:
        StepError: in the name of the figure ``of``.
    """
    flat = [name for name in asked if "step" not in curves[name].dims]
    if flat:
        raise StepError(f"{of}: {', '.join(flat)} has no dim 'step': it is one number, not a curve")


def draw_curve(
    panels: Sequence[Axes], encoding: Encoding, points: pd.DataFrame, curve: str, along: str
) -> None:
    """A line for every point of the grid, each in its panel, with a band of ± one standard error.

    Args:
        panels: as many as the encoding has.
        encoding: how the grid is shown.
        points: one row for every point of the grid and every step.
        curve: column that is drawn; where it is missing the line goes on to the next value.
        along: column of the abscissa.
    """
    for line in encoding.lines(points):
        measured = line.points.dropna(subset=[curve]).sort_values("step")
        look = {**line.look, "marker": "none"}
        panel = panels[line.panel]
        panel.plot(measured[along], measured[curve], **look)
        error = measured.get(curve + STANDARD_ERROR)
        draw_band(panel, measured[along], measured[curve], error, look["color"])


def draw_band(panel: Axes, at: Any, mean: Any, error: Any | None, colour: Any) -> None:
    """A band of ± one standard error around a line; none where there is no error.

    Args:
        panel: where the line is.
        at: abscissa of every point.
        mean: ordinate of the line.
        error: its standard error.
        colour: of the line.
    """
    if error is not None:
        panel.fill_between(at, mean - error, mean + error, color=colour, alpha=0.2, linewidth=0)


def mark_level(row: Sequence[Axes], level: float, word: str) -> None:
    """Mark a value with a dotted line in every panel of a row, and name it beside the last."""
    for panel in row:
        panel.axhline(level, color="0.5", linestyle=":", linewidth=0.8, zorder=1)
    where = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
    row[-1].annotate(word, (1, level), (2, 0), **where, ha="left", va="center", color="0.4")
