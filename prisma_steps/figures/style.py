"""What all figures share: one house style, how a figure is declared, and what files it leaves."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial, wraps
from io import BytesIO
from math import ceil
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from prisma_steps import schema
from prisma_steps.step import Field, Output, Slot, Step, StepError, StepParams, params_class, register

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

#: Widths of a figure in a paper, in inches.
WIDTHS = {"one_column": 3.5, "two_columns": 7.2}

#: Labels of cells that an axis has at most.
MOST_TICKS = 13

#: Ending of the name of a column that holds the standard error of another.
STANDARD_ERROR = "_standard_error"

#: The last argument of every step, which figures have no use for.
JOB = inspect.Parameter("job", inspect.Parameter.POSITIONAL_OR_KEYWORD)

STYLE = {
    "savefig.dpi": 200,
    "pdf.fonttype": 42,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 7,
    "axes.titlesize": 7,
    "axes.labelsize": 7,
    "xtick.labelsize": 6,
    "ytick.labelsize": 6,
    "legend.fontsize": 6,
    "legend.title_fontsize": 6,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.linewidth": 0.4,
    "grid.color": "0.9",
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "xtick.minor.size": 1.5,
    "ytick.minor.size": 1.5,
    "image.interpolation": "nearest",
}

Layout = Literal["constrained", "compressed"]


class FigureParams(StepParams):
    """Settings that every figure has."""

    caption: str | None = Field(
        None, description="caption; a sentence with the numbers of the data when null"
    )
    width: Literal["one_column", "two_columns"] = Field(
        "one_column", description="width in print: one column is 3.5 inches, two are 7.2"
    )

    @property
    def inches(self) -> float:
        """Width of the figure in print."""
        return WIDTHS[self.width]


class Plot(NamedTuple):
    """What a figure function returns.

    Attributes:
        figure: the drawing.
        numbers: one row for every plotted point or cell, exactly what is drawn.
        caption: what is to be seen, with units and n; used unless the user gives a caption.
        files: content of files besides the drawing and its numbers, by name.
    """

    figure: Figure
    numbers: pd.DataFrame
    caption: str
    files: Mapping[str, bytes] = MappingProxyType({})


def figure(
    *, inputs: Mapping[str, Slot | schema.Kind]
) -> Callable[[Callable[..., Plot]], Callable[..., Output]]:
    """Declare a figure. Its signature must be its slots, then ``params``.

    What is registered as a step is the function in the house style, with its numbers as a Dataset along
    ``point`` and the files figure.pdf, figure.png and numbers.csv, the same bytes every time.

    Raises:
        TypeError: when the signature does not say what the declaration says.
        ValueError: when the name is taken.
    """
    slots = {name: kind if isinstance(kind, Slot) else Slot(kind) for name, kind in inputs.items()}

    def declare(function: Callable[..., Plot]) -> Callable[..., Output]:
        signature = inspect.signature(function)
        expected, found = [*slots, "params"], list(signature.parameters)
        if found != expected:
            raise TypeError(f"figure {function.__name__}: signature is {found}, declaration says {expected}")

        called = signature.replace(parameters=[*signature.parameters.values(), JOB])

        @wraps(function)
        def draw(*args: Any, **kwargs: Any) -> Output:
            given = called.bind(*args, **kwargs).arguments
            given.pop("job")
            with house_style(), _naming_inputs(given):
                plot = function(**given)
                return _output(plot, given["params"].caption or plot.caption)

        declared: Any = draw
        declared.__signature__ = called
        register(Step(function.__name__, draw, params_class(function), slots, schema.Figure))
        return draw

    return declare


@contextmanager
def _naming_inputs(given: Mapping[str, Any]) -> Iterator[None]:
    """Have errors about what data lacks name the input by which it came."""
    try:
        yield
    except LacksError as error:
        slots = [slot for slot, data in given.items() if data is error.data]
        name = f"its input {slots[0]!r}" if slots else "the data"
        raise StepError(error.text.format(name)) from None


@contextmanager
def house_style() -> Iterator[None]:
    """The one look of all figures, for as long as the context lasts."""
    import matplotlib as mpl
    import seaborn as sns

    theme: dict[Any, Any] = {**sns.axes_style("ticks"), **sns.plotting_context("paper"), **STYLE}
    with mpl.rc_context(theme):
        yield


def subplots(
    width: float,
    height: float,
    rows: int = 1,
    columns: int = 1,
    layout: Layout = "constrained",
    **sharing: Any,
) -> tuple[Figure, np.ndarray]:
    """A figure of ``width`` × ``height`` inches that no global state holds, and its axes [row, column]."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(width, height), layout=layout)
    return drawing, drawing.subplots(rows, columns, squeeze=False, **sharing)


class LacksError(StepError):
    """Data lacks what a figure shows.

    Attributes:
        data: what lacks it.
        text: the message, with the data for ``{}``.
    """

    def __init__(self, data: xr.Dataset, text: str) -> None:
        """Say it of "the data"; the declared figure knows by which input it came."""
        super().__init__(text.format("the data"))
        self.data, self.text = data, text


def require(data: xr.Dataset, *names: str, of: str) -> None:
    """Check that ``data`` has the variables or dims that a figure shows.

    Raises:
        LacksError: naming what is missing and what there is.
    """
    missing = [name for name in names if name not in data.variables and name not in data.dims]
    if missing:
        there = ", ".join(sorted(map(str, data.variables))) or "nothing"
        dims = ", ".join(f"{dim} ({size})" for dim, size in data.sizes.items()) or "none"
        raise LacksError(
            data,
            f"{of}: {{}} has no {', '.join(missing)}; it has the dims {dims} and the variables {there}",
        )


def select(data: xr.Dataset, asked: Mapping[str, Sequence[Any] | None], of: str) -> xr.Dataset:
    """The data of those labels of each dim that the user asked for; None asks for all.

    Raises:
        StepError: when the data lacks one of the dims or labels.
    """
    for dim, values in asked.items():
        if values is None:
            continue
        require(data, dim, of=of)
        there = data[dim].values.tolist()
        if strange := [value for value in values if value not in there]:
            raise StepError(f"{of}: no {dim} {strange[0]}; the data has {', '.join(map(str, there))}")
        data = data.sel({dim: list(values)})
    return data


def log_ticks(axis: Axis) -> None:
    """Label a logarithmic axis with plain round numbers, few enough to stand apart."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    low, high = axis.get_view_interval()
    narrow = high < 4 * low
    axis.set_major_locator(MaxNLocator(4) if narrow else LogLocator(10, subs=(1.0, 2.0, 5.0)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def as_table(panel: Axes) -> None:
    """The look of a table of cells: a thin frame and no grid."""
    panel.grid(visible=False)
    panel.spines[:].set(visible=True, color="0.4", linewidth=0.4)


def cell_ticks(axis: Axis, values: np.ndarray, names: Mapping[int, str] | None = None) -> None:
    """Label the cells of a table along an axis, or every second, third, … where they are many.

    Args:
        axis: counts cells from 0.
        values: of every cell.
        names: what some values are called.
    """
    step = ceil(len(values) / MOST_TICKS)
    shown = range(0, len(values), step)
    axis.set_ticks([*shown], [(names or {}).get(values[place], str(values[place])) for place in shown])


def axis_label(data: xr.Dataset, name: str) -> str:
    """Long name and units of a variable, as an axis is labelled."""
    attrs = {**_meaning(name)._asdict(), **(data[name].attrs if name in data.variables else {})}
    text = attrs["long_name"][:1].upper() + attrs["long_name"][1:]
    return text if attrs["units"] in ("", "1") else f"{text} ({attrs['units']})"


def _meaning(name: str) -> schema.Meaning:
    """What a column holds; a name that the schema does not have is a parameter and speaks for itself."""
    if name.endswith(STANDARD_ERROR):
        of = _meaning(name.removesuffix(STANDARD_ERROR))
        return schema.Meaning(f"standard error of {of.long_name}", of.units)
    return schema.MEANINGS.get(name, schema.Meaning(name.replace("_", " "), "1"))


def _output(plot: Plot, caption: str) -> Output:
    """The numbers with labels, and a writer for each file."""
    contents = {
        "figure.pdf": _rendered(
            plot.figure, "pdf", {"CreationDate": None, "Creator": None, "Producer": None}
        ),
        "figure.png": _rendered(plot.figure, "png", {"Software": None}),
        "numbers.csv": plot.numbers.to_csv(index=False, float_format="%.9g", lineterminator="\n").encode(),
        **plot.files,
    }
    data = _labelled(plot.numbers).assign_attrs(caption=caption)
    return Output(data, {name: partial(_write, content) for name, content in contents.items()})


def _rendered(drawing: Figure, suffix: str, metadata: Mapping[str, None]) -> bytes:
    """The drawing as a file without a date or a version in it."""
    buffer = BytesIO()
    drawing.savefig(buffer, format=suffix, metadata=dict(metadata))
    return buffer.getvalue()


def _write(content: bytes, path: Path) -> None:
    path.write_bytes(content)


def _labelled(numbers: pd.DataFrame) -> xr.Dataset:
    """The plotted frame along ``point``, every column with a long name and units."""
    import numpy as np
    import xarray as xr

    data = xr.Dataset(coords={"point": np.arange(len(numbers))})
    for name, column in numbers.items():
        values = column.to_numpy()
        text = values.dtype.kind not in "biuf"
        attrs = _meaning(str(name))._asdict()
        data[name] = ("point", values.astype(str) if text else values, attrs)
    return schema.label(data)
