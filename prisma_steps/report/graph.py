"""Where the nodes of an experiment and the lines between them go in the drawing of its graph.

Layers from left to right, each node right of all that it is made of (Sugiyama, Tagawa & Toda 1981): lines
that pass a layer have a place of their own in it, shared by all lines of one node; in each layer the order
follows the mean place of the neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import networkx as nx

#: Height of a box, of the track of a line, and the gaps between layers and between what is in one. In pixels.
BOX, TRACK, ACROSS, BETWEEN = 62.0, 6.0, 44.0, 16.0

#: Width of a character of the monospaced text in a box, and what a box has around it.
CHARACTER, AROUND = 7.3, 24.0

#: Width of a line and of the ground around the drawing.
MARGIN = 4.0

#: Rounds of sorting; the order no longer changes after a few.
ROUNDS = 12

#: A node, or the track of the lines of a node through a layer.
Item = tuple[str, int]


@dataclass(frozen=True)
class Vertex:
    """One node of the experiment, as it is drawn.

    Attributes:
        name: the node.
        lines: what is written below its name.
        inputs: the nodes that it is made of.
    """

    name: str
    lines: Sequence[str]
    inputs: Sequence[str]


@dataclass(frozen=True)
class Box:
    """Place of a node: left edge, upper edge and size, in pixels."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Drawing:
    """The drawing of a graph.

    Attributes:
        width: in pixels.
        height: in pixels.
        boxes: place of every node, by name.
        paths: an SVG path for every line from a node to one that is made of it.
    """

    width: float
    height: float
    boxes: Mapping[str, Box]
    paths: Sequence[str]


def draw(vertices: Sequence[Vertex]) -> Drawing:
    """Lay out the nodes of an experiment, which have no cycles."""
    by_name = {vertex.name: vertex for vertex in vertices}
    layers = _ordered(_graph(vertices))
    middles = _middles(layers)
    boxes, left = {}, MARGIN
    edges: list[tuple[float, float]] = []
    for layer in layers:
        names = [name for name, track in layer.items if track < 0]
        width = max(AROUND + CHARACTER * max(map(len, [name, *by_name[name].lines])) for name in names)
        for name in names:
            boxes[name] = Box(left, middles[name, -1] - BOX / 2, width, BOX)
        edges.append((left, left + width))
        left += width + ACROSS
    paths = [
        _path(start, vertex.name, layers, middles, edges) for vertex in vertices for start in vertex.inputs
    ]
    lowest = max(middle + _height(item) / 2 for item, middle in middles.items())
    return Drawing(left - ACROSS + MARGIN, lowest + MARGIN, boxes, paths)


@dataclass(frozen=True)
class _Layer:
    """What is in one layer from top to bottom, and what each item is joined to in the layer before."""

    items: list[Item]
    before: dict[Item, list[Item]]


def _graph(vertices: Sequence[Vertex]) -> nx.DiGraph:
    """The graph, every node with its layer."""
    import networkx as nx

    graph = nx.DiGraph()
    graph.add_nodes_from(vertex.name for vertex in vertices)
    graph.add_edges_from((start, vertex.name) for vertex in vertices for start in vertex.inputs)
    for number, names in enumerate(nx.topological_generations(graph)):
        for name in names:
            graph.nodes[name]["layer"] = number
    for name in list(graph):  # what is made of nothing stands right before what is made of it
        if graph.in_degree(name) == 0 and graph.out_degree(name) > 0:
            graph.nodes[name]["layer"] = min(graph.nodes[after]["layer"] for after in graph[name]) - 1
    return graph


def _ordered(graph: nx.DiGraph) -> list[_Layer]:
    """The layers, each with its items in the order in which they are drawn."""
    number = {name: graph.nodes[name]["layer"] for name in graph}
    layers = [_Layer([], {}) for _ in range(max(number.values()) + 1)]
    for name in graph:
        layers[number[name]].items.append((name, -1))
    for start, end in graph.edges:
        for layer in range(number[start] + 1, number[end]):
            if (start, layer) not in layers[layer].items:
                layers[layer].items.append((start, layer))
                layers[layer].before[start, layer] = [_passing(start, layer - 1, number[start])]
        layers[number[end]].before.setdefault((end, -1), []).append(
            _passing(start, number[end] - 1, number[start])
        )
    for turn in range(ROUNDS):
        _sort(layers, downwards=turn % 2 == 0)
    return layers


def _passing(name: str, layer: int, own: int) -> Item:
    """What the lines of a node start from, or pass through, in a layer."""
    return (name, -1) if layer == own else (name, layer)


def _sort(layers: Sequence[_Layer], downwards: bool) -> None:
    """Sort every layer by the mean place of the neighbours in the layer before, or in the one after."""
    for before, after in pairwise(layers) if downwards else reversed([*pairwise(layers)]):
        fixed, moved = (before, after) if downwards else (after, before)
        place = {item: (index + 0.5) / len(fixed.items) for index, item in enumerate(fixed.items)}
        joined = after.before if downwards else _turned(after.before)
        own = {item: (index + 0.5) / len(moved.items) for index, item in enumerate(moved.items)}
        aims = {item: _mean([place[other] for other in joined.get(item, ())], own[item]) for item in own}
        moved.items.sort(key=aims.__getitem__)


def _turned(joined: Mapping[Item, Sequence[Item]]) -> dict[Item, list[Item]]:
    turned: dict[Item, list[Item]] = {}
    for end, starts in joined.items():
        for start in starts:
            turned.setdefault(start, []).append(end)
    return turned


def _mean(values: Sequence[float], default: float) -> float:
    return sum(values) / len(values) if values else default


def _middles(layers: Sequence[_Layer]) -> dict[Item, float]:
    """Vertical middle of every item, near those of its neighbours."""
    middle: dict[Item, float] = {}
    for layer in layers:
        _settle(layer, dict.fromkeys(layer.items, 0.0), middle)
    for turn in range(ROUNDS):
        for before, after in pairwise(layers) if turn % 2 == 0 else reversed([*pairwise(layers)]):
            moved = after if turn % 2 == 0 else before
            joined = after.before if turn % 2 == 0 else _turned(after.before)
            aims = {
                item: _mean([middle[other] for other in joined.get(item, ())], middle[item])
                for item in moved.items
            }
            _settle(moved, aims, middle)
    top = min(middle[item] - _height(item) / 2 for item in middle) - MARGIN
    return {item: value - top for item, value in middle.items()}


def _settle(layer: _Layer, aims: Mapping[Item, float], middle: dict[Item, float]) -> None:
    """Place the items of a layer in their order without overlap, on the whole where they aim."""
    edge, shift = float("-inf"), 0.0
    for item in layer.items:
        half = _height(item) / 2
        middle[item] = max(aims[item], edge + half)
        edge = middle[item] + half + BETWEEN
        shift += (aims[item] - middle[item]) / len(layer.items)
    for item in layer.items:
        middle[item] += shift


def _height(item: Item) -> float:
    return BOX if item[1] < 0 else TRACK


def _path(
    start: str,
    end: str,
    layers: Sequence[_Layer],
    middles: Mapping[Item, float],
    edges: Sequence[tuple[float, float]],
) -> str:
    """From the right of one box to the left of another: curves between layers, straight through them."""
    first, last = (_layer_of((name, -1), layers) for name in (start, end))
    y = middles[start, -1]
    words = [f"M{edges[first][1]:.1f} {y:.1f}"]
    for layer in range(first + 1, last + 1):
        to = middles[end, -1] if layer == last else middles[start, layer]
        left, right = edges[layer - 1][1], edges[layer][0]
        bend = (left + right) / 2
        words.append(f"C{bend:.1f} {y:.1f} {bend:.1f} {to:.1f} {right:.1f} {to:.1f}")
        if layer < last:
            words.append(f"H{edges[layer][1]:.1f}")
        y = to
    return "".join(words)


def _layer_of(item: Item, layers: Sequence[_Layer]) -> int:
    return next(number for number, layer in enumerate(layers) if item in layer.items)
