"""Which grid axis is shown by colour, which by line style, and which by panels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from prisma_steps.figures.style import FigureParams
from prisma_steps.step import Field, StepError

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from matplotlib.figure import Figure

#: Line styles with their markers, in the order in which values take them.
LOOKS: tuple[tuple[Any, str], ...] = (
    ("-", "o"),
    ((0, (4, 1.5)), "s"),
    ((0, (1, 1)), "^"),
    ((0, (4, 1, 1, 1)), "D"),
    ((0, (6, 1, 1, 1, 1, 1)), "v"),
    ((0, (2, 2)), "P"),
)
ROLES = ("hue", "style", "columns")

#: Coordinates that follow from the parameters of a grid and are none themselves.
FOLLOWING = ("site", "layer", "sparsity_setting")


class GridParams(FigureParams):
    """Settings of figures that compare the points of a grid."""

    hue: str | None = Field(None, description="grid axis shown by colour; the first axis when null")
    style: str | None = Field(None, description="grid axis shown by line style; the second axis when null")
    columns: str | None = Field(None, description="grid axis shown by panels; the third axis when null")


@dataclass(frozen=True)
class Channel:
    """One grid axis as a figure shows it.

    Attributes:
        axis: the dim.
        title: the name of the parameter, or parameters, that vary along it.
        values: the dim's values.
        texts: the values as the legend writes them.
        looks: a colour, or a line style and a marker, for every value.
    """

    axis: str
    title: str
    values: tuple[Any, ...]
    texts: tuple[str, ...]
    looks: tuple[Any, ...] = ()


class Line(NamedTuple):
    """The points of one line, where they go and how they look."""

    panel: int
    points: pd.DataFrame
    look: dict[str, Any]


@dataclass(frozen=True)
class Encoding:
    """How the grid axes of a Dataset are shown; a channel without an axis is None."""

    hue: Channel | None
    style: Channel | None
    columns: Channel | None

    @property
    def panels(self) -> tuple[str, ...]:
        """Titles of the panels."""
        if self.columns is None:
            return ("",)
        return tuple(f"{self.columns.title}: {text}" for text in self.columns.texts)

    def lines(self, points: pd.DataFrame) -> Iterator[Line]:
        """Every line of ``points``, panel by panel."""
        for panel, in_panel in enumerate(_parts(points, self.columns)):
            for hue, of_hue in enumerate(_parts(in_panel, self.hue)):
                for style, line in enumerate(_parts(of_hue, self.style)):
                    yield Line(panel, line, self._look(hue, style))

    def _look(self, hue: int, style: int) -> dict[str, Any]:
        dashes, marker = self.style.looks[style] if self.style else LOOKS[0]
        color = self.hue.looks[hue] if self.hue else _colours(("",))[0]
        return {"color": color, "linestyle": dashes, "marker": marker}

    def legend(self, drawing: Figure, markers: bool = True) -> None:
        """Name the colours and the line styles, right of the panels."""
        from matplotlib.lines import Line2D
        from matplotlib.offsetbox import HPacker

        entries = []
        for channel in filter(None, (self.hue, self.style)):
            entries.append(Line2D([], [], label=channel.title, visible=False))
            for text, look in zip(channel.texts, channel.looks, strict=True):
                color, (dashes, marker) = (look, LOOKS[0]) if channel is self.hue else ("0.3", look)
                marker = marker if markers else "none"
                entries.append(Line2D([], [], label=text, color=color, linestyle=dashes, marker=marker))
        if not entries:
            return
        legend = drawing.legend(handles=entries, loc="outside right upper", handlelength=2)
        for row, entry in zip(legend.findobj(HPacker), entries, strict=False):
            if not entry.get_visible():
                blank: Any = row.get_children()[0]
                blank.set_width(-legend.handletextpad * legend.prop.get_size_in_points())


def encode(data: xr.Dataset, params: GridParams, inner: Sequence[str], of: str) -> Encoding:
    """Give every grid axis of ``data`` a channel: those that the user named, then the free ones in order.

    Args:
        data: what is plotted, and nothing else. Axes of length 1 need no channel.
        params: the channels that the user named.
        inner: dims that the figure itself shows, as an axis of a panel or as an error bar.
        of: name of the figure.

    Raises:
        StepError: for an axis that is not there, for more axes than channels, and for more values along an
            axis than its channel can tell apart.
    """
    axes = [str(dim) for dim in data.dims if dim not in inner]
    chosen = {role: getattr(params, role) for role in ROLES}
    for role, axis in chosen.items():
        if axis is not None and axis not in axes:
            raise StepError(f"{of}: {role} is {axis!r}, but the grid axes are {', '.join(axes) or 'none'}")
    rest = [axis for axis in axes if data.sizes[axis] > 1 and axis not in chosen.values()]
    for role in ROLES:
        if chosen[role] is None and rest:
            chosen[role] = rest.pop(0)
    if rest:
        raise StepError(
            f"{of}: a figure shows at most three grid axes (hue, style, columns), the data has "
            f"{', '.join(axes)}. Select a point of {rest[0]!r}: {{node: …, select: {{{rest[0]}: …}}}}"
        )
    return Encoding(**{role: _channel(data, axis, role, of) for role, axis in chosen.items()})


def _channel(data: xr.Dataset, axis: str | None, role: str, of: str) -> Channel | None:
    if axis is None:
        return None
    title, texts = names(data, axis)
    values = tuple(data[axis].values.tolist())
    channel = Channel(axis, title, values, texts)
    if role == "columns":
        return channel
    looks = _colours(values) if role == "hue" else LOOKS
    if len(values) > len(looks):
        raise StepError(
            f"{of}: {role} can tell {len(looks)} values apart, {axis!r} has {len(values)}. "
            f"Name another channel for it ({', '.join(ROLES)}) or select some of its values."
        )
    return replace(channel, looks=looks[: len(values)])


def names(data: xr.Dataset, axis: str) -> tuple[str, tuple[str, ...]]:
    """Name of an axis and of its values. A zipped axis goes by the parameters on it."""
    zipped = [
        str(name)
        for name in data.coords
        if data[name].dims == (axis,) and name != axis and name not in FOLLOWING
    ]
    index = data[axis].values.tolist()
    shown = zipped if zipped and index == list(range(len(index))) else [axis]
    rows = zip(*(data[name].values.tolist() for name in shown), strict=True)
    title = ", ".join(name.replace("_", " ") for name in shown)
    return title, tuple(", ".join(map(_text, row)) for row in rows)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _colours(values: Sequence[Any]) -> tuple[Any, ...]:
    """Numbers go from dark to light; names and switches have colours apart, safe for colour-blind readers."""
    import matplotlib as mpl
    import numpy as np
    import seaborn as sns

    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        return tuple(mpl.colormaps["viridis"](np.linspace(0.0, 0.85, len(values))))
    return tuple(sns.color_palette("colorblind"))


def _parts(points: pd.DataFrame, channel: Channel | None) -> list[pd.DataFrame]:
    if channel is None:
        return [points]
    return [points.loc[points[channel.axis] == value] for value in channel.values]
