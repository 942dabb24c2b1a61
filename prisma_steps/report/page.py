"""The page of an experiment: its figures, where each comes from, and the state of its nodes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from prisma_steps.report.graph import Drawing, Vertex, draw

if TYPE_CHECKING:
    from jinja2 import Template

    from prisma_steps.claims.table import Row

__all__ = ["FigureEntry", "Made", "NodeEntry", "Page", "Provenance", "Upstream", "render_page"]


@dataclass(frozen=True)
class Made:
    """One artifact that a figure rests on.

    Attributes:
        key: its key in the store.
        point: its place in the grid of its node, by axis; empty for a node without axes.
        folder: path of the folder with its data, relative to the page; None when it is not there.
        digest: of its content; None when it is not told.
        parameters: what it was made with; None when it is not told.
    """

    key: str
    point: Mapping[str, Any] = field(default_factory=dict)
    folder: str | None = None
    digest: str | None = None
    parameters: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Upstream:
    """A node that a figure rests on, at any distance, with those of its artifacts that it rests on."""

    node: str
    step: str
    artifacts: Sequence[Made]


@dataclass(frozen=True)
class Provenance:
    """How a figure was made.

    Attributes:
        step: the figure's function.
        key: its key in the store.
        parameters: all parameters, with the defaults filled in.
        upstream: the nodes that it rests on, inputs before what is made of them.
        seconds: time that the figure's own job took.
        date: when it was made, as it is to be shown.
        versions: versions of Python and of packages, by name.
        experiment: the lines of the experiment file that define the figure and what it rests on.
    """

    step: str
    key: str
    parameters: Mapping[str, Any]
    upstream: Sequence[Upstream]
    seconds: float
    date: str
    versions: Mapping[str, str]
    experiment: str


@dataclass(frozen=True)
class FigureEntry:
    """One figure of the page.

    Attributes:
        name: its node, with the point of the grid when the node has axes; shown as the heading.
        caption: shown below the picture, and read out in its place.
        png: path of the picture, relative to the page.
        files: paths of all that it consists of, relative to the page, by what their links say.
        provenance: how it was made.

    Raises:
        ValueError: when a path is not relative.
    """

    name: str
    caption: str
    png: str
    files: Mapping[str, str]
    provenance: Provenance

    def __post_init__(self) -> None:
        """Refuse targets that would not move along with the page."""
        for path in (self.png, *self.files.values()):
            parts = urlsplit(path)
            if not path or parts.scheme or parts.netloc or path.startswith(("/", "\\")):
                raise ValueError(f"figure {self.name!r}: {path!r} is not a path relative to the page")


@dataclass(frozen=True)
class NodeEntry:
    """One row of the table of nodes, and one box of the graph.

    Attributes:
        name: the node.
        step: its step or figure.
        states: how many of its jobs are in each state, in words: ``{"done": 11, "failed": 1}``.
        seconds: compute time of all its jobs that are done; None when none is.
        keys: keys of its jobs, in the order of the grid.
        inputs: names of the nodes that it is made of.
        figures: places, from 1, of its figures among those of the page; None when it makes none.
        folder: path of the folder with its artifacts, relative to the page; None when there are none.
    """

    name: str
    step: str
    states: Mapping[str, int]
    seconds: float | None
    keys: Sequence[str]
    inputs: Sequence[str] = ()
    figures: Sequence[int] | None = None
    folder: str | None = None

    @property
    def state(self) -> str:
        """The one word for the states of all its jobs: that of all, or else ``failed`` or ``partly``."""
        if len(self.states) == 1:
            return next(iter(self.states))
        return "failed" if "failed" in self.states else "partly"

    @property
    def summary(self) -> str:
        """Number and state of its jobs: ``6 jobs, done``, ``2 of 6 jobs done``."""
        total = sum(self.states.values())
        jobs = f"{total} job{'' if total == 1 else 's'}"
        if len(self.states) == 1:
            return f"{jobs}, {self.state}"
        state = "failed" if self.state == "failed" else "done"
        return f"{self.states.get(state, 0)} of {jobs} {state}"

    @property
    def target(self) -> str:
        """Id of what is shown of it: its first figure, or its row in the table."""
        return f"figure-{self.figures[0]}" if self.figures else f"node-{self.name}"


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
    return _template().render(
        page=page, graph=_graph(page.nodes), by_name={node.name: node for node in page.nodes}
    )


def _graph(nodes: Sequence[NodeEntry]) -> Drawing | None:
    if not nodes:
        return None
    return draw([Vertex(node.name, (written(node), node.summary), node.inputs) for node in nodes])


def written(node: NodeEntry) -> str:
    """What a node does, as its box in the graph says it."""
    return node.step if node.figures is None else f"figure: {node.step}"


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
    environment.filters.update(path=quote, json=_json, duration=duration, point=point, written=written)
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
