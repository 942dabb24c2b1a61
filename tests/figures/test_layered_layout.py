from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from prisma_steps.figures.layered_layout import layered


def test_a_chain_is_straight_and_an_edge_beside_it_passes_the_node() -> None:
    nodes, paths = layered({"a": 0, "b": 1, "c": 2}, [("a", "b"), ("b", "c"), ("a", "c")], 1.0, 0.2)
    assert [len(path) for path in paths] == [2, 2, 3]
    assert abs(paths[2][1] - nodes["b"]) >= 0.6 - 1e-9  # half a node and half an edge
    assert paths[2][0] == nodes["a"]
    assert paths[2][2] == nodes["c"]


def test_no_two_places_of_a_level_overlap() -> None:
    random = np.random.default_rng(0)
    levels = {f"{level}.{number}": level for level in range(6) for number in range(5)}
    names = list(levels)
    ends = [sorted(random.choice(30, 2, replace=False)) for _ in range(60)]
    edges = [(names[low], names[high]) for low, high in ends if low // 5 < high // 5]
    nodes, paths = layered(levels, edges, 1.0, 0.2)
    for level in range(6):
        at = [(nodes[name], 1.0) for name in names if levels[name] == level]
        at += [
            (path[level - levels[start]], 0.2)
            for (start, end), path in zip(edges, paths, strict=True)
            if levels[start] < level < levels[end]
        ]
        for (left, wide), (right, other) in pairwise(sorted(at)):
            assert right - left >= (wide + other) / 2 - 1e-9


@pytest.mark.parametrize("flipped", [False, True])
def test_what_can_be_drawn_without_a_crossing_is(flipped: bool) -> None:
    levels = {"a": 0, "b": 0, "c": 1, "d": 1, "e": 2, "f": 2}
    edges = [("a", "d"), ("b", "c"), ("d", "e"), ("c", "f")] if flipped else [("a", "c"), ("b", "d")]
    nodes, _ = layered(levels, edges, 1.0, 0.2)
    for (one, above), (other, over) in pairwise(edges[:2]):
        assert (nodes[one] < nodes[other]) == (nodes[above] < nodes[over])
