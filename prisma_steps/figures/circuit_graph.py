"""Which parts of a model make its answer, and what each reads from which: a circuit as a graph."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from prisma_steps.figures.average import frame
from prisma_steps.figures.faithfulness import METHODS, METRICS
from prisma_steps.figures.layered_layout import layered
from prisma_steps.figures.style import FigureParams, Plot, figure, require
from prisma_steps.schema import Circuit
from prisma_steps.step import Field, StepError

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Width and height of a node, and distances of nodes, of edges that pass beside them, and of levels, in
#: inches.
NODE, APART, WIRE, LEVEL = (0.4, 0.24), 0.5, 0.07, 0.48

#: Space for the names of layers at the left, for the legend below, and around the picture, in inches.
LEFT, LEGEND, MARGIN = 0.4, 0.42, 0.08

#: Widths of the strongest edge, and of one without a score, in points.
WIDEST, THINNEST = 3.2, 0.4

#: By the sign of a score: a colour, the ends of RdBu, and what the edge's corrupted write does to the metric.
SIGNS = {-1.0: ("#2166ac", "lowers"), 1.0: ("#b2182b", "raises")}

#: The inputs of a head, and how far from its middle each enters, in widths of a node.
INPUTS = {"q": -0.3, "k": 0.0, "v": 0.3}


class Params(FigureParams):
    """Which circuit is drawn."""

    n_edges: int = Field(gt=0, description="which of the circuits, by the number of edges that it was given")


class Edge(NamedTuple):
    """What one node reads of another; ``port`` is the input (q, k, v) of a head, else empty."""

    source: str
    target: str
    port: str
    score: float


@dataclass(frozen=True)
class Picture:
    """Nodes and edges where they are drawn, in inches.

    Attributes:
        nodes: the middle of every node.
        paths: for every edge the places that it goes through, from its source to its target.
        scale: of widths; less than 1 where the picture would be wider than the page.
    """

    nodes: dict[str, tuple[float, float]]
    paths: list[list[tuple[float, float]]]
    scale: float


@figure(inputs={"circuit": Circuit})
def circuit_graph(circuit: xr.Dataset, params: Params) -> Plot:
    """Draw the edges of a circuit from the embedding, below, through heads and MLPs to the logits, above.

    A head reads queries, keys and values apart. The width of an edge is its |score|, its colour the sign.

    Raises:
        StepError: when there is no circuit of this size, or it has no edge.
    """
    require(circuit, "score", "in_circuit", "source", "target", "n_edges", of="circuit_graph")
    numbers = _numbers(circuit, params.n_edges)
    edges = [_edge(*row) for row in numbers.itertuples(index=False)]
    return Plot(_draw(edges, params.inches), numbers, _caption(circuit, params.n_edges, len(edges)))


def _numbers(circuit: xr.Dataset, n_edges: int) -> pd.DataFrame:
    """Source, target and score of every edge of the circuit."""
    sizes = circuit["n_edges"].values.tolist()
    if n_edges not in sizes:
        raise StepError(
            f"circuit_graph: n_edges is {n_edges}, and the node has circuits of "
            f"{', '.join(map(str, sizes))} edges (its parameter circuit_sizes)"
        )
    kept = circuit["score"].where(circuit["in_circuit"].sel(n_edges=n_edges, drop=True))
    numbers = frame(kept.to_dataset()).dropna().reset_index(drop=True)
    if numbers.empty:
        raise StepError(
            f"circuit_graph: of the circuit of {n_edges} edges none is on a path from embedding to logits. "
            "Draw a larger one"
        )
    return numbers


def _edge(source: str, target: str, score: float) -> Edge:
    """An edge by the names of its ends: ``head 0.3``, ``head 1.2.q``, ``mlp 0``, ``embed``, ``logits``."""
    node, port = (target[:-2], target[-1]) if target[-2] == "." and target[-1] in INPUTS else (target, "")
    return Edge(_node(source), _node(node), port, score)


def _node(name: str) -> str:
    """A node as it is written in the picture: ``0.3``, ``MLP 1``, ``embed``."""
    return name.removeprefix("head ").replace("mlp", "MLP")


def _rank(node: str) -> tuple[float, bool]:
    """The layer of a node, and whether it comes after the layer's heads."""
    if node in ("embed", "logits"):
        return (-1 if node == "embed" else math.inf), False
    is_mlp = node.startswith("MLP")
    return int(node.removeprefix("MLP ").split(".")[0]), is_mlp


def _draw(edges: Sequence[Edge], width: float) -> Figure:
    from matplotlib.figure import Figure

    picture = _picture(edges, width)
    top = max(y for _, y in picture.nodes.values()) + NODE[1] / 2 + MARGIN
    drawing = Figure(figsize=(width, top))
    panel = drawing.add_axes((0, 0, 1, 1))
    panel.set(xlim=(0, width), ylim=(0, top))
    panel.set_axis_off()
    _shade_layers(panel, picture)
    strongest = max(abs(edge.score) for edge in edges) or 1.0
    for edge, path in sorted(zip(edges, picture.paths, strict=True), key=lambda pair: abs(pair[0].score)):
        _draw_edge(panel, edge, path, strongest, picture.scale)
    ports = {(edge.target, edge.port) for edge in edges}
    for name, place in picture.nodes.items():
        _draw_node(panel, name, place, [port for port in INPUTS if (name, port) in ports], picture.scale)
    _legend(drawing, edges, strongest)
    return drawing


def _picture(edges: Sequence[Edge], width: float) -> Picture:
    """Where everything goes on a page of a width in inches."""
    nodes = sorted({node for edge in edges for node in (edge.source, edge.target)}, key=_order)
    ranks = sorted({_rank(node) for node in nodes})
    levels = {node: ranks.index(_rank(node)) for node in nodes}
    across, passed = layered(levels, [(edge.source, edge.target) for edge in edges], APART, WIRE)
    everywhere = [x for path in passed for x in path]
    low, high = min(everywhere) - NODE[0] / 2, max(everywhere) + NODE[0] / 2
    room = width - LEFT - MARGIN
    scale = min(1.0, room / (high - low))
    left = LEFT + (room - scale * (high - low)) / 2

    def place(x: float, level: int) -> tuple[float, float]:
        return left + scale * (x - low), LEGEND + NODE[1] / 2 + level * LEVEL

    return Picture(
        {node: place(across[node], levels[node]) for node in nodes},
        [
            [place(x, levels[edge.source] + step) for step, x in enumerate(path)]
            for edge, path in zip(edges, passed, strict=True)
        ],
        scale,
    )


def _order(node: str) -> tuple[tuple[float, bool], int]:
    """Nodes from below, heads of a layer by number."""
    return _rank(node), int(node.split(".")[1]) if "." in node else 0


def _shade_layers(panel: Axes, picture: Picture) -> None:
    """A band behind the nodes of each layer, with its name."""
    heights: dict[float, list[float]] = {}
    for node, (_, y) in picture.nodes.items():
        heights.setdefault(_rank(node)[0], []).append(y)
    for layer, here in heights.items():
        if not math.isfinite(layer) or layer < 0:
            continue
        low, high = min(here) - 0.46 * LEVEL, max(here) + 0.46 * LEVEL
        panel.axhspan(low, high, color="0.955", linewidth=0, zorder=0)
        panel.text(0.04, (low + high) / 2, f"Layer {layer}", fontsize=6, color="0.35", va="center")


def _draw_edge(
    panel: Axes, edge: Edge, path: Sequence[tuple[float, float]], strongest: float, scale: float
) -> None:
    """A line that leaves at the top of its source, and enters its target from below."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    (x, y), *between, (end, top) = path
    points, codes = [(x, y + NODE[1] / 2)], [Path.MOVETO]
    last = (end + scale * NODE[0] * INPUTS.get(edge.port, 0.0), top - NODE[1] / 2)
    for step in [*between, None]:
        start = points[-1]
        goal = last if step is None else (step[0], step[1] - NODE[1] / 2)
        middle = (start[1] + goal[1]) / 2
        points += [(start[0], middle), (goal[0], middle), goal]
        codes += [Path.CURVE4] * 3
        if step is not None:  # straight up beside the nodes of the level
            points.append((step[0], step[1] + NODE[1] / 2))
            codes.append(Path.LINETO)
    color = SIGNS[math.copysign(1.0, edge.score)][0]
    look = {"edgecolor": color, "linewidth": _width(edge.score, strongest), "capstyle": "butt"}
    panel.add_patch(PathPatch(Path(points, codes), facecolor="none", alpha=0.85, zorder=1, **look))


def _width(score: float, strongest: float) -> float:
    return THINNEST + (WIDEST - THINNEST) * abs(score) / strongest


def _draw_node(
    panel: Axes, name: str, place: tuple[float, float], ports: Sequence[str], scale: float
) -> None:
    """A box with a name; of a head, with the inputs that the circuit has."""
    from matplotlib.patches import FancyBboxPatch

    (x, y), width, height = place, scale * NODE[0], NODE[1]
    box = FancyBboxPatch(
        (x - width / 2, y - height / 2),
        width,
        height,
        boxstyle="round,pad=0,rounding_size=0.04",
        facecolor="white",
        edgecolor="0.25",
        linewidth=0.6,
        zorder=2,
    )
    panel.add_patch(box)
    look = {"ha": "center", "va": "center", "zorder": 3}
    panel.text(x, y + (0.05 if ports else 0), name, fontsize=6 * scale, **look)
    for port in ports:
        at = (x + width * INPUTS[port], y - 0.06)
        panel.text(*at, port, fontsize=5 * scale, color="0.35", **look)


def _legend(drawing: Figure, edges: Sequence[Edge], strongest: float) -> None:
    """What colours and widths say, below the picture."""
    from matplotlib.lines import Line2D

    signs = sorted({math.copysign(1.0, edge.score) for edge in edges})
    lines = [
        Line2D([], [], color=SIGNS[sign][0], linewidth=2, label=f"corrupting it {SIGNS[sign][1]} the metric")
        for sign in signs
    ]
    lines += [
        Line2D([], [], color="0.4", linewidth=_width(size, strongest), label=f"|score| {size:.2g}")
        for size in (strongest, strongest / 4)
    ]
    drawing.legend(handles=lines, loc="lower center", ncols=2, handlelength=1.5, columnspacing=1.5)


def _caption(circuit: xr.Dataset, n_edges: int, n_drawn: int) -> str:
    attrs = circuit.attrs
    method, metric = METHODS.get(attrs.get("method", "")), METRICS.get(attrs.get("metric", ""), "the metric")
    scored = f" with edges scored by {method}" if method else ""
    of_graph = f" of the {attrs['graph_edges']} edges of the graph" if "graph_edges" in attrs else ""
    pruned = f" ({n_edges - n_drawn} more lead nowhere)" if n_edges > n_drawn else ""
    pairs = f", mean over {attrs['n_pairs']} pairs" if "n_pairs" in attrs else ""
    return (
        f"Circuit of {n_drawn}{of_graph}{pruned}{scored}. Score: change of {metric} when the edge carries "
        f"what the corrupted image writes{pairs}.{_faithful(circuit, n_edges)} Heads are named layer.head "
        "and read queries (q), keys (k) and values (v) apart."
    )


def _faithful(circuit: xr.Dataset, n_edges: int) -> str:
    """Faithfulness of the circuit, for every ablation."""
    if "faithfulness" not in circuit:
        return ""
    found = circuit["faithfulness"].sel(n_edges=n_edges)
    each = (f"{float(found.sel(ablation=name)):.2f} ({name})" for name in found["ablation"].values)
    return f" Faithfulness {', '.join(each)}."
