r"""Tables in LaTeX, with the rules of the package booktabs; nothing in a text is taken for a command."""

from __future__ import annotations

from collections.abc import Sequence

from prisma_steps.figures.table_cells import Cell, Span, Table

#: What stands for characters that mean something to LaTeX, or that its fonts of text have not.
_CHARACTERS = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    **{character: "\\" + character for character in "{}$&#_%"},
    **dict.fromkeys("\n\r\t", " "),
    "−": "$-$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "±": r"$\pm$",
    "√": r"$\surd$",
    "‖": r"$\Vert$",
    "→": r"$\to$",
}

#: Letters with an accent that no font has: it is a character of its own and follows them.
_ACCENTS = {"x\N{COMBINING CIRCUMFLEX ACCENT}": r"$\hat{x}$"}

_ESCAPED = str.maketrans(_CHARACTERS)


def escape(text: str) -> str:
    """A text as LaTeX writes it out, whatever is in it."""
    parts = [text]
    for accented, written in _ACCENTS.items():
        parts = [piece for part in parts for piece in _around(part, accented, written)]
    return "".join(part if part in _ACCENTS.values() else part.translate(_ESCAPED) for part in parts)


def _around(text: str, accented: str, written: str) -> list[str]:
    first, *rest = text.split(accented)
    return [first, *(piece for part in rest for piece in (written, part))]


def latex(table: Table) -> str:
    r"""The table as a ``tabular``; the document needs ``\usepackage{booktabs}``."""
    labels, width = len(table.titles), sum(span.width for span in table.headers[0])
    lines = [
        r"% needs \usepackage{booktabs}",
        rf"\begin{{tabular}}{{{'l' * labels}{'r' * width}}}",
        r"\toprule",
    ]
    for level, spans in enumerate(table.headers):
        lowest = level == len(table.headers) - 1
        titles = [escape(title) if lowest else "" for title in table.titles]
        lines.append(_line([*titles, *map(_header, spans)]))
        if not lowest:
            lines.append(" ".join(_rules(spans, labels)))
    lines.append(r"\midrule")
    for row in table.rows:
        lines.append(_line([*map(escape, row.labels), *map(_written, row.cells)]))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _header(span: Span) -> str:
    text = escape(span.text)
    return text if span.width == 1 else rf"\multicolumn{{{span.width}}}{{c}}{{{text}}}"


def _rules(spans: Sequence[Span], start: int) -> list[str]:
    """A rule below every header."""
    rules = []
    for span in spans:
        rules.append(rf"\cmidrule(lr){{{start + 1}-{start + span.width}}}")
        start += span.width
    return rules


def _written(cell: Cell) -> str:
    if cell.number is None:
        return escape(cell.text) or "--"
    numbers = [_number(text) for text in (cell.text, cell.error) if text is not None]
    return "$" + r" \pm ".join(rf"\mathbf{{{text}}}" if cell.bold else text for text in numbers) + "$"


def _number(text: str) -> str:
    """A number of Python's in math mode: 1.2e-05 is 1.2 · 10⁻⁵."""
    mantissa, _, exponent = text.lower().replace("%", r"\%").replace(",", "{,}").partition("e")
    return rf"{mantissa} \times 10^{{{int(exponent)}}}" if exponent else mantissa
