from __future__ import annotations

import random
import re
from itertools import combinations

import pytest

from prisma_steps.report.graph import Box, Drawing, Vertex, draw


def vertices(edges: dict[str, list[str]]) -> list[Vertex]:
    return [Vertex(name, (f"step of {name}", "1 job, done"), inputs) for name, inputs in edges.items()]


def some(count: int, seed: int) -> dict[str, list[str]]:
    """A graph of nodes each of which is made of at most three of those before it."""
    draws = random.Random(seed)
    names = [f"node_{number}" for number in range(count)]
    return {
        name: draws.sample(names[max(0, i - 8) : i], k=min(i, draws.choice([0, 1, 1, 2, 3])))
        for i, name in enumerate(names)
    }


def along(path: str) -> list[tuple[float, float]]:
    """Points along a path of ``M``, ``C`` and ``H``, close to one another."""
    found: list[tuple[float, float]] = []
    for word, text in re.findall(r"([MCH])([^MCH]*)", path):
        numbers = [float(number) for number in text.split()]
        if word == "M":
            found.append((numbers[0], numbers[1]))
            continue
        (x0, y0), steps = found[-1], [i / 40 for i in range(1, 41)]
        if word == "H":
            found += [(x0 + t * (numbers[0] - x0), y0) for t in steps]
        else:
            xs, ys = [x0, *numbers[::2]], [y0, *numbers[1::2]]
            found += [(bezier(xs, t), bezier(ys, t)) for t in steps]
    return found


def bezier(p: list[float], t: float) -> float:
    return (1 - t) ** 3 * p[0] + 3 * (1 - t) ** 2 * t * p[1] + 3 * (1 - t) * t**2 * p[2] + t**3 * p[3]


def inside(box: Box, x: float, y: float) -> bool:
    return box.x + 1 < x < box.x + box.width - 1 and box.y < y < box.y + box.height


def check(edges: dict[str, list[str]]) -> Drawing:
    found = draw(vertices(edges))
    assert found.boxes.keys() == edges.keys()
    for one, other in combinations(found.boxes.values(), 2):
        apart = abs(one.y - other.y) >= one.height + 10
        assert apart or one.x + one.width < other.x or other.x + other.width < one.x
    for box in found.boxes.values():
        assert box.x >= 0 and box.x + box.width <= found.width
        assert box.y >= 0 and box.y + box.height <= found.height
    ends = [(start, end) for end, inputs in edges.items() for start in inputs]
    assert len(found.paths) == len(ends)
    for (start, end), path in zip(ends, found.paths, strict=True):
        points = along(path)
        box, last = found.boxes[start], found.boxes[end]
        assert points[0] == pytest.approx((box.x + box.width, box.y + box.height / 2), abs=0.1)
        assert points[-1] == pytest.approx((last.x, last.y + last.height / 2), abs=0.1)
        assert all(0 <= y <= found.height for _, y in points)
        assert not any(inside(other, *point) for other in found.boxes.values() for point in points)
    return found


@pytest.mark.parametrize("count", [1, 2, 7, 30, 60])
@pytest.mark.parametrize("seed", range(5))
def test_boxes_stand_apart_and_no_line_runs_through_one(count: int, seed: int) -> None:
    check(some(count, seed))


def test_every_node_is_right_of_what_it_is_made_of() -> None:
    edges = some(30, 9)
    boxes = check(edges).boxes
    for name, inputs in edges.items():
        assert all(boxes[before].x + boxes[before].width < boxes[name].x for before in inputs)


def test_what_is_made_of_nothing_stands_right_before_its_first_use() -> None:
    boxes = check({"a": [], "b": ["a"], "c": ["b"], "late": [], "d": ["c", "late"]}).boxes
    assert boxes["late"].x == boxes["c"].x


def test_boxes_are_wide_enough_for_their_text_and_a_chain_is_straight() -> None:
    long = "a_node_whose_name_is_rather_long_indeed"
    found = check({"a": [], long: ["a"], "c": [long]})
    assert found.boxes[long].width > 7.2 * len(long)
    assert len({round(box.y, 6) for box in found.boxes.values()}) == 1


def test_two_chains_do_not_cross() -> None:
    boxes = check({"a": [], "b": [], "c": ["b"], "d": ["a"], "e": ["c"], "f": ["d"]}).boxes
    assert (boxes["a"].y < boxes["b"].y) == (boxes["d"].y < boxes["c"].y) == (boxes["f"].y < boxes["e"].y)


def test_it_is_the_same_every_time() -> None:
    assert draw(vertices(some(30, 3))) == draw(vertices(some(30, 3)))
