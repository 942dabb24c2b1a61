"""Where the nodes of a layered graph stand, so that its edges cross little and pass beside other nodes.

As hierarchies are drawn since Sugiyama et al. 1981 (doi:10.1109/TSMC.1981.4308636): an edge over several
levels has a place of its own on each of them; places of a level are put in the order of the mean of their
neighbours, level by level, up and down.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

#: How often all levels are put in order.
SWEEPS = 30

#: A node by its name, or an edge on a level, by its number and the level.
Place = Hashable


class _Levels:
    """Places by level, with their neighbours on the levels below and above, and how wide they are."""

    def __init__(self) -> None:
        self.places: dict[int, list[Place]] = {}
        self.width: dict[Place, float] = {}
        self.below: dict[Place, list[Place]] = {}
        self.above: dict[Place, list[Place]] = {}

    def add(self, place: Place, level: int, width: float) -> None:
        self.places.setdefault(level, []).append(place)
        self.width[place] = width
        self.below[place], self.above[place] = [], []

    def join(self, path: Sequence[Place]) -> None:
        for lower, upper in zip(path, path[1:], strict=False):
            self.above[lower].append(upper)
            self.below[upper].append(lower)

    def apart(self, level: int, wanted: Sequence[float]) -> np.ndarray:
        """Where places of a level stand: in their order, as far apart as they need, and close to ``wanted``.

        Closest by least squares: isotonic regression, once the distances are taken away.
        """
        import numpy as np
        from scipy.optimize import isotonic_regression

        widths = np.array([self.width[place] for place in self.places[level]])
        starts = np.concatenate([[0.0], np.cumsum((widths[1:] + widths[:-1]) / 2)])
        return isotonic_regression(np.asarray(wanted) - starts).x + starts


def layered(
    levels: Mapping[str, int], edges: Sequence[tuple[str, str]], node: float, wire: float
) -> tuple[dict[str, float], list[list[float]]]:
    """Horizontal places of nodes, and those of every edge on each level from its start to its end.

    Args:
        levels: level of each node, from 0 and without gaps.
        edges: from a node to one of a higher level; there may be several between two nodes.
        node: distance of a node from the next.
        wire: distance of an edge that passes a level from the next.
    """
    graph = _Levels()
    for name, level in levels.items():
        graph.add(name, level, node)
    paths: list[list[Place]] = []
    for number, (start, end) in enumerate(edges):
        between = [(number, level) for level in range(levels[start] + 1, levels[end])]
        for place in between:
            graph.add(place, place[1], wire)
        paths.append([start, *between, end])
        graph.join(paths[-1])
    x = _settled(graph)
    return {name: x[name] for name in levels}, [[x[place] for place in path] for path in paths]


def _settled(graph: _Levels) -> dict[Place, float]:
    """Places after all sweeps."""
    x: dict[Place, float] = {}
    for level, places in graph.places.items():
        x.update(zip(places, graph.apart(level, [0.0] * len(places)), strict=True))
    for sweep in range(SWEEPS):
        downwards = sweep % 2 == 1
        for level in sorted(graph.places, reverse=downwards):
            # Neighbours of both sides in the second half, which makes lines straight.
            sides = [graph.above if downwards else graph.below] if sweep < SWEEPS // 2 else []
            wanted = {
                place: _mean(x, place, sides or [graph.below, graph.above]) for place in graph.places[level]
            }
            graph.places[level].sort(key=wanted.__getitem__)
            ordered = graph.places[level]
            x.update(zip(ordered, graph.apart(level, [wanted[place] for place in ordered]), strict=True))
    return x


def _mean(x: Mapping[Place, float], place: Place, sides: Sequence[Mapping[Place, list[Place]]]) -> float:
    others = [other for side in sides for other in side[place]]
    return sum(x[other] for other in others) / len(others) if others else x[place]
