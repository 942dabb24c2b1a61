"""Tables drawn by matplotlib, in the manner of the LaTeX package booktabs: three rules, no lines besides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import TYPE_CHECKING

from prisma_steps.figures.table_cells import Cell, Table
from prisma_steps.step import StepError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Font size in points, and the least to which a wide table is brought.
SIZE, LEAST = 7.0, 5.5

#: Gap between columns in units of the font size: the least, and the most when there is room.
GAP, MOST_GAP = 1.2, 3.0

#: Height of a line, and the space around rules, in units of the font size.
LINE, AROUND = 1.5, 0.35

#: Thickness of the outer rules, of the one below the headers and of those below spanning ones, in points.
HEAVY, LIGHT, THIN = 0.8, 0.5, 0.3

#: Ground left and right of a table that fills the width, in points.
MARGIN = 2.0

#: Characters of a line of a header, at most.
HEADER = 18

#: Height of a page in inches, which no table may exceed.
PAGE = 9.0

_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def typeset(table: Table, inches: float, of: str) -> Figure:
    """Draw a table of the given width in print.

    Raises:
        StepError: when the table is too wide or too high for a page.
    """
    natural = _Columns.of(table, SIZE)
    room = 72 * inches - 2 * MARGIN
    size = min(SIZE, SIZE * room / natural.width(GAP))
    if size < LEAST:
        least = (natural.width(GAP) * LEAST / SIZE + 2 * MARGIN) / 72
        raise StepError(
            f"{of}: the table is {least:.1f} inches wide in the smallest print, of {inches:g}. Show fewer "
            "variables or columns, name some dims as rows, or set width: two_columns."
        )
    columns = _Columns.of(table, size)
    return _Sheet(table, columns, 72 * inches, size, of).drawn()


@dataclass(frozen=True)
class _Columns:
    """Widths of the columns in points: of the labels, then of the cells."""

    widths: tuple[float, ...]
    size: float

    @classmethod
    def of(cls, table: Table, size: float) -> _Columns:
        rows = [[*row.labels, *map(_plain, row.cells)] for row in table.rows]
        bold = [[False] * len(row.labels) + [cell.bold for cell in row.cells] for row in table.rows]
        titles = [*table.titles, *[""] * sum(span.width for span in table.headers[0])]
        widths = [_width(title, size) for title in titles]
        for texts, weights in zip(rows, bold, strict=True):
            cells = zip(widths, texts, weights, strict=True)
            widths = [max(width, _width(text, size, heavy)) for width, text, heavy in cells]
        for spans in reversed(table.headers):
            start = len(table.titles)
            for span in spans:
                inside = range(start, start + span.width)
                missing = _width_of_lines(span.text, size) - _over(widths, inside, GAP * size)
                for column in inside:
                    widths[column] += max(0.0, missing) / span.width
                start += span.width
        return cls(tuple(widths), size)

    def width(self, gap: float) -> float:
        return _over(self.widths, range(len(self.widths)), gap * self.size)


def _over(widths: Sequence[float], columns: range, gap: float) -> float:
    return sum(widths[column] for column in columns) + gap * (len(columns) - 1)


class _Sheet:
    """A figure on which a table is written from the top; lengths in points."""

    def __init__(self, table: Table, columns: _Columns, width: float, size: float, of: str) -> None:
        self.table, self.columns, self.width, self.size = table, columns, width, size
        room = (width - 2 * MARGIN - columns.width(GAP)) / max(1, len(columns.widths) - 1)
        self.gap = min(MOST_GAP * size, GAP * size + max(0.0, room))
        self.left = (width - _over(columns.widths, range(len(columns.widths)), self.gap)) / 2
        self.height = self._height()
        if self.height > PAGE * 72:
            raise StepError(
                f"{of}: the table of {len(table.rows)} rows is {self.height / 72:.1f} inches high, a page is "
                f"{PAGE:g}. Select some of them, or name some dims as columns."
            )

    def _height(self) -> float:
        headers = sum(_lines(spans) for spans in self.table.headers)
        rules = 2 + len(self.table.headers)
        return self.size * (LINE * (headers + len(self.table.rows)) + 2 * AROUND * rules)

    def drawn(self) -> Figure:
        from matplotlib.figure import Figure

        self.figure = Figure(figsize=(self.width / 72, self.height / 72))
        self.y = 0.0
        everything = range(len(self.columns.widths))
        self._rule(HEAVY, [everything])
        for level, spans in enumerate(self.table.headers):
            lowest = level == len(self.table.headers) - 1
            groups = self._header(spans, lowest)
            self._rule(LIGHT if lowest else THIN, [everything] if lowest else groups)
        for row in self.table.rows:
            self._row(row.labels, row.cells)
        self._rule(HEAVY, [everything])
        return self.figure

    def _header(self, spans: Sequence, lowest: bool) -> list[range]:
        lines = _lines(spans)
        self.y += LINE * self.size * lines
        if lowest:
            for column, title in enumerate(self.table.titles):
                self._write(title, column, "left")
        groups, start = [], len(self.table.titles)
        for span in spans:
            inside = range(start, start + span.width)
            groups.append(inside)
            for up, text in enumerate(reversed(_broken(span.text))):
                self._write(text, inside, "right" if span.width == 1 else "center", up=up)
            start += span.width
        return groups

    def _row(self, labels: Sequence[str], cells: Sequence[Cell]) -> None:
        self.y += LINE * self.size
        for column, label in enumerate(labels):
            self._write(label, column, "left")
        for column, cell in enumerate(cells, len(labels)):
            self._write(_plain(cell), column, "right", cell.bold)

    def _ends(self, columns: range) -> tuple[float, float]:
        start = self.left + sum(self.columns.widths[: columns.start]) + self.gap * columns.start
        return start, start + _over(self.columns.widths, columns, self.gap)

    def _write(self, text: str, where: int | range, align: str, bold: bool = False, up: int = 0) -> None:
        start, end = self._ends(where if isinstance(where, range) else range(where, where + 1))
        x = {"left": start, "right": end, "center": (start + end) / 2}[align]
        y = self.height - self.y + ((LINE - 1) * 0.75 + LINE * up) * self.size
        self.figure.text(
            x / self.width,
            y / self.height,
            text,
            size=self.size,
            weight="bold" if bold else "normal",
            horizontalalignment=align,
            verticalalignment="baseline",
            parse_math=False,
        )

    def _rule(self, thickness: float, groups: Sequence[range]) -> None:
        from matplotlib.lines import Line2D

        self.y += AROUND * self.size
        inset = 0.0 if len(groups) == 1 else 0.3 * self.size
        for columns in groups:
            start, end = self._ends(columns)
            ends = [(start + inset) / self.width, (end - inset) / self.width]
            height = [1 - self.y / self.height] * 2
            line = Line2D(ends, height, color="black", linewidth=thickness, solid_capstyle="butt")
            self.figure.add_artist(line)
        self.y += AROUND * self.size


def _broken(header: str) -> list[str]:
    """The lines of a header. Units go to a line of their own where not all fits into one."""
    if len(header) <= HEADER:
        return [header]
    name, bracket, units = header.partition(" (")
    return [*wrap(name, HEADER), *([bracket.strip() + units] if units else [])]


def _lines(spans: Sequence) -> int:
    return max(len(_broken(span.text)) for span in spans)


def _width_of_lines(header: str, size: float) -> float:
    return max(_width(line, size) for line in _broken(header))


def _plain(cell: Cell) -> str:
    """A cell as it is drawn."""
    if cell.number is None:
        return cell.text or "–"
    return " ± ".join(_number(text) for text in (cell.text, cell.error) if text is not None)


def _number(text: str) -> str:
    """A number of Python's as people write it: 1.2e-05 is 1.2 × 10⁻⁵."""
    mantissa, _, exponent = text.lower().partition("e")
    mantissa = mantissa.replace("-", "−")
    return f"{mantissa} × 10{str(int(exponent)).translate(_RAISED)}" if exponent else mantissa


def _width(text: str, size: float, bold: bool = False) -> float:
    """Width of a text in points."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    if not text.strip():
        return 0.0
    font = FontProperties(weight="bold" if bold else "normal")
    plain = text.replace("$", r"\$")  # between two of them would be a formula
    return TextPath((0, 0), plain, size=size, prop=font).get_extents().width
