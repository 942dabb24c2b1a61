"""The page of an experiment: its figures, where each comes from, and the state of its nodes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

if TYPE_CHECKING:
    from jinja2 import Template

    from prisma_steps.claims.table import Row

__all__ = ["FigureEntry", "NodeEntry", "Page", "Provenance", "Upstream", "render_page"]


@dataclass(frozen=True)
class Upstream:
    """One job that a figure rests on, at any distance.

    Attributes:
        node: its node in the experiment; None when the job is of no node of this experiment.
        step: what it computes.
        key: its key in the store.
        point: its place in the node's grid, by axis; empty for a node without axes.
    """

    node: str | None
    step: str
    key: str
    point: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Provenance:
    """How a figure was made.

    Attributes:
        step: the figure's function.
        key: its key in the store.
        parameters: all parameters, with the defaults filled in.
        upstream: the jobs that it rests on, inputs before what is made of them.
        seconds: time that the figure's own job took.
        date: when it was made, as it is to be shown.
        versions: versions of Python and of packages, by name.
    """

    step: str
    key: str
    parameters: Mapping[str, Any]
    upstream: Sequence[Upstream]
    seconds: float
    date: str
    versions: Mapping[str, str]


@dataclass(frozen=True)
class FigureEntry:
    """One figure of the page.

    Attributes:
        name: its node, with the point of the grid when the node has axes; shown as the heading.
        caption: shown below the picture, and read out in its place.
        png: path of the picture, relative to the page.
        pdf: path of the picture for print, relative to the page.
        csv: path of the numbers, relative to the page.
        provenance: how it was made.

    Raises:
        ValueError: when a path is not relative.
    """

    name: str
    caption: str
    png: str
    pdf: str
    csv: str
    provenance: Provenance

    def __post_init__(self) -> None:
        """Refuse targets that would not move along with the page."""
        for path in (self.png, self.pdf, self.csv):
            parts = urlsplit(path)
            if not path or parts.scheme or parts.netloc or path.startswith(("/", "\\")):
                raise ValueError(f"figure {self.name!r}: {path!r} is not a path relative to the page")


@dataclass(frozen=True)
class NodeEntry:
    """One row of the table of nodes.

    Attributes:
        name: the node.
        step: its step or figure.
        states: how many of its jobs are in each state, in words: ``{"done": 11, "failed": 1}``.
        seconds: compute time of all its jobs that are done; None when none is.
        keys: keys of its jobs, in the order of the grid.
    """

    name: str
    step: str
    states: Mapping[str, int]
    seconds: float | None
    keys: Sequence[str]


@dataclass(frozen=True)
class Page:
    """All that is on the page of an experiment. Every text may hold any characters: it is escaped.

    Attributes:
        title: title of the experiment.
        description: what it is about; may be empty.
        experiment: text of the experiment file.
        figures: its figures, in the order of the file.
        nodes: its nodes, in the order of the file.
        date: when the page was made, as it is to be shown.
        claims: what it claims and what became of it, in the order of the file.
    """

    title: str
    description: str
    experiment: str
    figures: Sequence[FigureEntry]
    nodes: Sequence[NodeEntry]
    date: str
    claims: Sequence[Row] = ()


def render_page(page: Page) -> str:
    """The page as one HTML document that needs nothing besides the figures' files."""
    return _template().render(page=page)


@cache
def _template() -> Template:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("prisma_steps.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(path=quote, json=_json, duration=duration, point=point)
    return environment.get_template("index.html.j2")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def duration(seconds: float | None) -> str:
    """A time as people say it: ``0.4 s``, ``12 s``, ``3 min 5 s``, ``2 h 7 min``."""
    if seconds is None:
        return "–"
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    hours, left = divmod(minutes, 60)
    return f"{hours} h {left} min" if hours else f"{minutes} min {rest} s"


def point(coordinates: Mapping[str, Any]) -> str:
    """A place in a grid: ``n_layers = 2, attention_only = false``."""
    return ", ".join(
        f"{axis} = {value if isinstance(value, str) else _json(value)}" for axis, value in coordinates.items()
    )
