"""What stands in the cells and headers of a table, as text; how it is set is told elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import isnan, nan, prod
from typing import TYPE_CHECKING, Any, NamedTuple

from prisma_steps.figures.encoding import names
from prisma_steps.figures.style import STANDARD_ERROR, axis_label

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True)
class Cell:
    """One value.

    Attributes:
        text: the number, in the notation of Python, or the word; empty when it is missing.
        error: standard error of the number, if it has one.
        number: the value that ``text`` is of; None for a word and a missing value.
        bold: whether it is the best of its column.
    """

    text: str
    error: str | None = None
    number: float | None = None
    bold: bool = False


class Span(NamedTuple):
    """A header above one or several columns that stand together."""

    text: str
    width: int


class Row(NamedTuple):
    """One line of a table: a label for each row dim, empty where it is that of the line above, and cells."""

    labels: tuple[str, ...]
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """A table, to be set.

    Attributes:
        titles: of the columns of row labels.
        headers: from the top, the variables and then each column dim; every one is as wide as the table.
        rows: from the top.
    """

    titles: tuple[str, ...]
    headers: tuple[tuple[Span, ...], ...]
    rows: tuple[Row, ...]


def tabulate(
    data: xr.Dataset,
    variables: Sequence[str],
    rows: Sequence[str],
    columns: Sequence[str],
    formats: Mapping[str, str],
    best: Mapping[str, str],
) -> Table:
    """Make a table of ``data``. Rows in which all is missing are left out.

    Args:
        data: variables along row and column dims alone, with their standard errors if they have some.
        variables: the widest groups of columns, in their order.
        rows: dims; the last changes from line to line.
        columns: dims within each variable; the last changes from column to column.
        formats: how a number of each variable is written, as ``format`` takes it.
        best: variables whose best value in each column is bold: highest or lowest.
    """
    along_rows, along_columns = ([names(data, dim) for dim in dims] for dims in (rows, columns))
    labels = product(*(texts for _, texts in along_rows))
    found = [
        _marked(column, best.get(name))
        for name in variables
        for column in _columns(data, name, rows, columns, formats[name])
    ]
    lines = zip(labels, zip(*found, strict=True), strict=True)
    full = [(labels, cells) for labels, cells in lines if any(cell.text for cell in cells)]
    titles = tuple(_capital(title) for title, _ in along_rows)
    return Table(titles, tuple(_headers(data, variables, along_columns)), tuple(_told_once(full)))


def _columns(
    data: xr.Dataset, name: str, rows: Sequence[str], columns: Sequence[str], spec: str
) -> list[list[Cell]]:
    """The cells of each column of a variable, from the top."""
    values = _values(data[name], data, rows, columns)
    if name + STANDARD_ERROR not in data:
        return [[_cell(value, nan, spec) for value in column] for column in values]
    errors = _values(data[name + STANDARD_ERROR], data, rows, columns)
    pairs = zip(values, errors, strict=True)
    return [[_cell(*cell, spec) for cell in zip(*column, strict=True)] for column in pairs]


def _values(
    variable: xr.DataArray, data: xr.Dataset, rows: Sequence[str], columns: Sequence[str]
) -> list[list[Any]]:
    """What a variable holds, column by column; where it has not one of the dims it is the same along it."""
    dims = (*columns, *rows)
    missing = {dim: data.sizes[dim] for dim in dims if dim not in variable.dims}
    width = prod(data.sizes[dim] for dim in columns)
    return variable.expand_dims(missing).transpose(*dims).values.reshape(width, -1).tolist()


def _cell(value: bool | str | float, error: float, spec: str) -> Cell:
    """A value and its standard error, NaN where there is none."""
    if isinstance(value, bool | str):
        return Cell(str(value).lower() if isinstance(value, bool) else value)
    if isnan(value):
        return Cell("")
    text = str(value) if isinstance(value, int) else format(value, spec).rstrip(".")
    return Cell(text, None if isnan(error) else _error(error, text, spec), value)


def _error(error: float, beside: str, spec: str) -> str:
    """A standard error, to as many decimals as the number that it is of."""
    if "e" in beside.lower() or not beside.strip("-+").replace(".", "").isdigit():
        return format(error, spec).rstrip(".")
    return f"{error:.{len(beside.partition('.')[2])}f}"


def _marked(cells: list[Cell], best: str | None) -> list[Cell]:
    """The cells of a column, the best bold, with all that are written alike."""
    numbers = [cell for cell in cells if cell.number is not None]
    if best is None or not numbers:
        return cells
    choose = max if best == "highest" else min
    first = choose(numbers, key=lambda cell: cell.number or 0.0)
    return [replace(cell, bold=cell.number is not None and cell.text == first.text) for cell in cells]


def _headers(
    data: xr.Dataset, variables: Sequence[str], along: Sequence[tuple[str, tuple[str, ...]]]
) -> list[tuple[Span, ...]]:
    """Variables with units, then the values along each column dim, numbers with the name of the dim."""
    width = 1
    for _, texts in along:
        width *= len(texts)
    headers = [tuple(Span(axis_label(data, name), width) for name in variables)]
    repeated = len(variables)
    for title, texts in along:
        width //= len(texts)
        told = [
            text if text[:1].isalpha() and text not in ("true", "false") else f"{title} = {text}"
            for text in texts
        ]
        headers.append(tuple(Span(text, width) for text in told) * repeated)
        repeated *= len(texts)
    return headers


def _told_once(lines: Sequence[tuple[tuple[str, ...], tuple[Cell, ...]]]) -> list[Row]:
    """Rows without the labels that would repeat those above them; the last label is in every row."""
    found: list[Row] = []
    above: tuple[str, ...] = ()
    for labels, cells in lines:
        alike = [label == other for label, other in zip(labels[:-1], above, strict=False)]
        same = (*alike, False).index(False)
        found.append(Row(("",) * same + labels[same:], cells))
        above = labels
    return found


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
