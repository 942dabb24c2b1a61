"""One number of every point of a grid against one of the grid's axes."""

from __future__ import annotations

from textwrap import fill
from typing import TYPE_CHECKING, Any

from prisma_steps.figures.average import average, frame
from prisma_steps.figures.curves import mark_level
from prisma_steps.figures.encoding import Encoding, GridParams, Line, encode, names
from prisma_steps.figures.style import STANDARD_ERROR, Plot, axis_label, figure, require, subplots
from prisma_steps.schema import Anything
from prisma_steps.step import Field, StepError, gather

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Height of a panel in inches, and the letters that fit along it.
HEIGHT, LETTERS = 2.2, 36


class Params(GridParams):
    """What is plotted against what."""

    variable: str = Field(description="variable of the node, with a number for each point of the grid")
    along: str = Field(description="grid axis, or dim of the variable, that lines run along")
    over: str = Field(
        "seed", description="grid axis or dim that is averaged; bars are ± one standard error over it"
    )
    level: float | None = Field(None, description="value of the variable to mark with a dotted line")
    level_name: str = Field("chance", description="the word beside the dotted line")


@figure(inputs={"data": gather(Anything)})
def metric_by_axis(data: xr.Dataset, params: Params) -> Plot:
    """Plot a variable of any node against one axis of its grid, a line for each point of the others.

    Seeds (or ``over``) are averaged; error bars are ± one standard error. An axis of numbers has them to
    scale, any other has its values side by side.

    Raises:
        StepError: when the variable or the axis is not there, or there are no numbers to plot.
    """
    require(data, params.variable, params.along, of="metric_by_axis")
    _check(data[params.variable], params.along)
    shown = data[[params.variable]]
    if params.along != params.over:
        shown = average(shown, params.over)
    encoding = encode(shown, params, inner=(params.along,), of="metric_by_axis")
    points = frame(shown)
    drawing, axes = _draw(data, params, encoding, points)
    _ticks(axes[0], shown, params.along)
    if params.level is not None:
        mark_level(axes[0], params.level, params.level_name)
    encoding.legend(drawing)
    return Plot(drawing, points, _caption(data, params))


def _check(variable: xr.DataArray, along: str) -> None:
    if along not in variable.dims:
        dims = ", ".join(map(str, variable.dims)) or "none"
        raise StepError(f"metric_by_axis: {variable.name} has no dim {along!r}; its dims are {dims}")
    if variable.dtype.kind not in "biuf":
        raise StepError(f"metric_by_axis: {variable.name} holds text, and no numbers to plot")


def _draw(
    data: xr.Dataset, params: Params, encoding: Encoding, points: pd.DataFrame
) -> tuple[Figure, np.ndarray]:
    panels = encoding.panels
    drawing, axes = subplots(params.inches, HEIGHT, 1, len(panels), sharex=True, sharey=True)
    places = _places(data[params.along].values.tolist())
    for line in encoding.lines(points):
        _draw_line(axes[0, line.panel], line, params, places)
    for panel, title in zip(axes[0], panels, strict=True):
        panel.set(title=title, xlabel=_title(data, params.along))
    axes[0, 0].set_ylabel(fill(axis_label(data, params.variable), LETTERS))
    return drawing, axes


def _draw_line(panel: Axes, line: Line, params: Params, places: dict[Any, float]) -> None:
    there = line.points.dropna(subset=[params.variable])
    there = there.assign(place=[places[value] for value in there[params.along]]).sort_values("place")
    # What lies in no frame comes before none: no line leads from it to the first one.
    aside = there["place"] < 0 if params.along == "patch_frame" else there["place"].isna()
    for part in (there[aside], there[~aside]):
        if len(part):
            errors = part.get(params.variable + STANDARD_ERROR)
            panel.errorbar(
                part["place"], part[params.variable], yerr=errors, **line.look, elinewidth=0.8, capsize=1.5
            )


def _are_numbers(values: list[Any]) -> bool:
    return all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)


def _places(values: list[Any]) -> dict[Any, float]:
    """Where on the horizontal axis each value is."""
    return {value: value if _are_numbers(values) else place for place, value in enumerate(values)}


def _ticks(panels: np.ndarray, shown: xr.Dataset, along: str) -> None:
    """A tick with its text for each value; many numbers have round ones, whole where they are whole."""
    values = shown[along].values.tolist()
    if _are_numbers(values) and len(values) > 8:
        for panel in panels:
            panel.xaxis.get_major_locator().set_params(integer=all(isinstance(one, int) for one in values))
        return
    _, texts = names(shown, along)
    if along == "patch_frame":
        texts = tuple("CLS" if text == "-1" else text for text in texts)
    for panel in panels:
        panel.set_xticks(list(_places(values).values()), texts)


def _title(data: xr.Dataset, along: str) -> str:
    title, _ = names(data, along)
    title = title.replace("n ", "number of ", 1) if title.startswith("n ") else title
    title = "frame" if along == "patch_frame" else title
    return title[:1].upper() + title[1:]


def _caption(data: xr.Dataset, params: Params) -> str:
    n = data.sizes.get(params.over, 1) if params.along != params.over else 1
    averaged = f" Mean of {n} {params.over}s, bars ± 1 standard error." if n > 1 else ""
    marked = f" Dotted: {params.level_name}." if params.level is not None else ""
    by = _title(data, params.along)
    return f"{axis_label(data, params.variable)} by {by[:1].lower()}{by[1:]}.{marked}{averaged}"
