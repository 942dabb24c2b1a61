"""A table of any node: numbers of every point of its grid, for print and as LaTeX."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import TYPE_CHECKING, Any, Literal

from pydantic import field_validator

from prisma_steps.figures.average import average, frame
from prisma_steps.figures.latex import latex
from prisma_steps.figures.style import FigureParams, Plot, axis_label, figure, require
from prisma_steps.figures.table_cells import tabulate
from prisma_steps.figures.typeset import typeset
from prisma_steps.schema import Anything
from prisma_steps.step import Field, StepError, gather

if TYPE_CHECKING:
    import xarray as xr

#: Cells of a table that could still be read.
MOST_CELLS = 2000


class Params(FigureParams):
    """What is in a table, and where."""

    variables: list[str] = Field(
        min_length=1, description="variables of the node, a column or columns of each"
    )
    rows: list[str] | None = Field(
        None, description="dims that rows run along, the last one fastest; all that are left when null"
    )
    columns: list[str] = Field(
        [], description="dims that columns of each variable run along, the last one fastest"
    )
    select: dict[str, str | bool | int | float] = Field(
        {}, description="one value of each dim of the data that is to be neither row nor column"
    )
    average: str | None = Field(
        "seed", description="dim that is averaged, with ± standard error; none when null"
    )
    number_format: str | dict[str, str] = Field(
        "#.3g", description="how numbers are written, of all variables or by variable: .2f, .3g, .1%, …"
    )
    best: dict[str, Literal["highest", "lowest"]] = Field(
        {}, description="variables whose best value in each column is bold, and which it is"
    )

    @field_validator("number_format")
    @classmethod
    def _formats_numbers(cls, value: str | dict[str, str]) -> str | dict[str, str]:
        for spec in [value] if isinstance(value, str) else value.values():
            try:
                format(0.5, spec)
            except ValueError:
                raise ValueError(f"{spec!r} is no format of a number; write .2f, .3g or .1%") from None
        return value

    def formats(self) -> dict[str, str]:
        """How the numbers of each variable are written."""
        if isinstance(self.number_format, str):
            return dict.fromkeys(self.variables, self.number_format)
        return {name: self.number_format.get(name, "#.3g") for name in self.variables}


@figure(inputs={"data": gather(Anything)})
def table(data: xr.Dataset, params: Params) -> Plot:
    """Set variables of any node in a table, a row for each point of its grid, and leave it as LaTeX too.

    Seeds are averaged; after ± stands one standard error. Rows of which nothing is there are left out.

    Raises:
        StepError: when a variable or a dim is not there, when a dim is neither row nor column, or when the
            table does not fit on a page.
    """
    require(data, *_named(params), of="table")
    shown = _averaged(_selected(data, params), params)
    rows = _rows(shown, params)
    shown = shown.squeeze([dim for dim in shown.dims if dim not in (*rows, *params.columns)]).load()
    made = tabulate(shown, params.variables, rows, params.columns, params.formats(), params.best)
    if not made.rows:
        raise StepError(f"table: of {', '.join(params.variables)} all values are missing")
    drawing = typeset(made, params.inches, "table")
    points = frame(shown).dropna(subset=params.variables, how="all")
    return Plot(drawing, points, _caption(data, params), {"table.tex": latex(made).encode()})


def _named(params: Params) -> Iterator[str]:
    """All variables and dims that the user named. There need not be seeds to average over."""
    yield from (*params.variables, *(params.rows or ()), *params.columns, *params.select)
    if params.average not in (None, "seed"):
        yield params.average


def _selected(data: xr.Dataset, params: Params) -> xr.Dataset:
    if dims := [name for name in params.variables if name in data.dims]:
        raise StepError(f"table: {dims[0]} is a dim: name it under rows or columns")
    strange = [name for name in (*params.best, *_by_variable(params)) if name not in params.variables]
    if strange:
        shown = ", ".join(params.variables)
        raise StepError(f"table: best or number_format names {strange[0]}, but the variables are {shown}")
    data = data.reset_coords([name for name in params.variables if name in data.coords])
    for dim, value in params.select.items():
        data = _at(data, dim, value)
    return data[params.variables]


def _by_variable(params: Params) -> dict[str, str]:
    return params.number_format if isinstance(params.number_format, dict) else {}


def _at(data: xr.Dataset, dim: str, value: Any) -> xr.Dataset:
    if dim not in data.dims:
        dims = ", ".join(map(str, data.dims)) or "none"
        raise StepError(f"table: select names {dim}, which is no dim of the data; its dims are {dims}")
    there = data[dim].values.tolist()
    if value not in there:
        raise StepError(f"table: no {dim} {value}; the data has {', '.join(map(str, there))}")
    return data.isel({dim: there.index(value)}, drop=True)


def _averaged(data: xr.Dataset, params: Params) -> xr.Dataset:
    dim = params.average
    if dim is None or dim not in data.dims:
        return data
    if dim in (*(params.rows or ()), *params.columns):
        raise StepError(f"table: {dim} is averaged and cannot be a row or a column; set average: null")
    words = [
        name for name in params.variables if data[name].dtype.kind not in "biuf" and dim in data[name].dims
    ]
    if words:
        raise StepError(
            f"table: {words[0]} holds text, of which there is no mean over {dim}; set average: null"
        )
    return average(data, dim)


def _rows(shown: xr.Dataset, params: Params) -> list[str]:
    """The dims of rows, when all dims are rows, columns or of length 1."""
    left = [str(dim) for dim, size in shown.sizes.items() if dim not in params.columns and size > 1]
    rows = left if params.rows is None else params.rows
    for dim in (*rows, *params.columns):
        if dim not in shown.dims or (*rows, *params.columns).count(dim) > 1:
            dims = ", ".join(map(str, shown.dims)) or "none"
            raise StepError(
                f"table: {dim} is no dim of these variables, or named twice; their dims are {dims}"
            )
    if params.rows is not None and (aside := [dim for dim in left if dim not in rows]):
        what = ", ".join(f"{dim} ({shown.sizes[dim]})" for dim in aside)
        raise StepError(
            f"table: {what} is neither row nor column. Name it, or select a value: select: {{{aside[0]}: …}}"
        )
    cells = prod(shown.sizes[dim] for dim in (*rows, *params.columns)) * len(params.variables)
    if cells > MOST_CELLS:
        sizes = " × ".join(f"{dim} ({shown.sizes[dim]})" for dim in (*rows, *params.columns))
        raise StepError(
            f"table: {cells} cells ({sizes}) are too many to be read; select some, by node or by select:"
        )
    return rows


def _caption(data: xr.Dataset, params: Params) -> str:
    shown = "; ".join(axis_label(data, name) for name in params.variables)
    n = data.sizes.get(params.average, 1) if params.average else 1
    averaged = f" Mean of {n} {params.average}s ± 1 standard error." if n > 1 else ""
    at = ", ".join(f"{dim.replace('_', ' ')} {value}" for dim, value in params.select.items())
    bold = " Bold: the best of each column." if params.best else ""
    return f"{shown}{f', for {at}' if at else ''}.{averaged}{bold}"
