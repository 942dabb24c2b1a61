"""Reading an experiment: a YAML file becomes checked nodes, or a list of everything that is wrong with it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prisma_steps.axes import Axis, AxisConflict, View, merge, view
from prisma_steps.claims.check import Grid
from prisma_steps.claims.declaration import Claim, read_claims
from prisma_steps.node import Node, Reference, read_node
from prisma_steps.parameters import check_size
from prisma_steps.problems import ExperimentError, Problem, close, nearest, shown
from prisma_steps.yaml_source import Source, read_yaml

_TOP_LEVEL = {"title": str, "description": str, "seed": int, "nodes": dict, "claims": list}
_NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclass
class Experiment:
    """A checked experiment: nodes in an order in which each follows its inputs.

    Attributes:
        order: names of the nodes in the order of the file.
        axes: the grid of every node, inherited axes first.
        views: how a node's slot sees the grid of the node that it names.
        claims: what it states of its results; in no key, so that a new claim reruns nothing.
    """

    name: str
    file: str
    text: str
    title: str
    description: str
    order: tuple[str, ...] = ()
    nodes: dict[str, Node] = field(default_factory=dict)
    axes: dict[str, tuple[Axis, ...]] = field(default_factory=dict)
    views: dict[tuple[str, str], View] = field(default_factory=dict)
    claims: tuple[Claim, ...] = ()


def find_experiment(name: str | Path) -> Path:
    """The file of an experiment given by path, or by name within ``experiments/``."""
    path = Path(name)
    if path.exists():
        return path
    if path.suffix in (".yaml", ".yml"):
        hint = close(path.name, (file.name for file in path.parent.glob("*.y*ml")))
        raise ExperimentError(str(name), [Problem(0, 0, "", "there is no such file", hint)])
    named = Path("experiments") / f"{name}.yaml"
    if named.exists():
        return named
    known = sorted(file.stem for file in Path("experiments").glob("*.yaml"))
    hint = nearest(str(name), known) if known else "run the command in the folder that holds experiments/"
    raise ExperimentError(str(name), [Problem(0, 0, "", "there is no such experiment", hint)])


def read_experiment(path: Path) -> Experiment:
    """Read and check an experiment file.

    Raises:
        ExperimentError: with every problem in the file.
    """
    source = read_yaml(path, str(path))
    experiment = _read_top_level(source, path)
    experiment.order = tuple(experiment.nodes)
    sorted_nodes = _sort(experiment.nodes, source)
    experiment.nodes = {node.name: node for node in sorted_nodes}
    for node in sorted_nodes:
        _resolve_axes(experiment, node, source)
    experiment.claims = _read_claims(experiment, source)
    if source.problems:
        raise ExperimentError(source.file, source.problems)
    return experiment


def _read_top_level(source: Source, path: Path) -> Experiment:
    data = source.data
    if not isinstance(data, dict):
        found = "is empty" if data is None else f"holds {shown(data)}"
        what = f"the file {found}, expected a mapping with title: and nodes:"
        raise ExperimentError(source.file, [Problem(1, 1, "", what)])
    for key in data:
        if key not in _TOP_LEVEL:
            source.problem((key,), key, "unknown key", nearest(key, _TOP_LEVEL))
    values = {key: _typed(source, data, key, kind) for key, kind in _TOP_LEVEL.items()}
    nodes = values["nodes"]
    if not nodes and not any(p.where == "nodes" or "'nodes'" in p.hint for p in source.problems):
        hint = "add nodes: {name: {step: …}}"
        source.problem(("nodes",), "nodes", "an experiment needs at least one node", hint)
    if values["seed"] < 0:
        source.problem(("seed",), "seed", f"is {values['seed']}, expected 0 or more")
        values["seed"] = 0
    experiment = Experiment(
        name=path.stem,
        file=source.file,
        text=source.text,
        title=values["title"] or path.stem,
        description=values["description"] or "",
    )
    known = [name for name in nodes or {} if isinstance(name, str)]
    for name, body in (nodes or {}).items():
        if not _NAME.fullmatch(name):
            what = "a node's name is lower-case letters, digits and _, and starts with a letter"
            better = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
            hint = f"for example {better}" if _NAME.fullmatch(better) else ""
            source.problem(("nodes", name), name or "''", what, hint)
        node = read_node(source, name, body, known, values["seed"], path.parent)
        if node is not None:
            experiment.nodes[name] = node
    return experiment


def _read_claims(experiment: Experiment, source: Source) -> tuple[Claim, ...]:
    entries = source.data.get("claims")
    known = source.data.get("nodes")
    grids: dict[str, Grid | None] = dict.fromkeys(known if isinstance(known, dict) else ())
    # Of a grid where something is wrong axes may be missing, here and in all that inherits them.
    for name, axes in experiment.axes.items() if not source.problems else ():
        kept = tuple(axis for axis in axes if axis.joined is None)
        grids[name] = Grid(kept, experiment.nodes[name].step.output)
    return read_claims(source, entries if isinstance(entries, list) else [], grids)


def _typed(source: Source, data: Mapping[str, Any], key: str, kind: type) -> Any:
    value = data.get(key)
    if value is None:
        return 0 if kind is int else None
    if not isinstance(value, kind) or isinstance(value, bool):
        words = {
            str: "text",
            int: "a whole number",
            dict: "a mapping of node names to nodes",
            list: "a list of claims",
        }
        source.problem((key,), key, f"is {shown(value)}, expected {words[kind]}")
        return 0 if kind is int else None
    return value


def _sort(nodes: Mapping[str, Node], source: Source) -> list[Node]:
    """Inputs before their consumers; cycles and what hangs on them are left out and reported."""
    done: dict[str, Node] = {}
    waiting = dict(nodes)
    while waiting:
        ready = [node for node in waiting.values() if not (set(_producers(node)) & waiting.keys())]
        if not ready:
            for name in _report_cycle(waiting, source):
                del waiting[name]
        for node in ready:
            done[node.name] = waiting.pop(node.name)
    return list(done.values())


def _producers(node: Node) -> Iterator[str]:
    return (reference.node for reference in node.references.values())


def _report_cycle(waiting: Mapping[str, Node], source: Source) -> set[str]:
    """Report one cycle, and return the nodes on it."""
    path = [next(iter(waiting))]
    while path[-1] not in path[:-1]:
        path.append(next(name for name in _producers(waiting[path[-1]]) if name in waiting))
    cycle = path[path.index(path[-1]) :]
    what = f"is made from itself: {' → '.join(reversed(cycle))}"
    source.problem(("nodes", cycle[0]), cycle[0], what, "break the cycle at one node")
    return set(cycle)


def _resolve_axes(experiment: Experiment, node: Node, source: Source) -> None:
    """Give ``node`` the axes of its inputs and its own, and check that they fit."""
    axes: dict[str, Axis] = {}
    for slot, reference in node.references.items():
        seen = _view(experiment, node, slot, reference, source)
        if seen is None:
            continue
        experiment.views[node.name, slot] = seen
        if not node.step.inputs[slot].gather:
            for axis in seen.points:
                _add(axes, axis, node, slot, source)
    for slot, seen in ((s, experiment.views.get((node.name, s))) for s in node.references):
        if seen is not None and node.step.inputs[slot].gather:
            mine = axes.keys() | {axis.name for axis in node.own_axes}
            for axis in (axis for axis in seen.points if axis.name in mine):
                _add(dict(axes), axis, node, slot, source)
    for axis in node.own_axes:
        _add(axes, axis, node, "", source)
    check_size(source, node.name, list(axes.values()))
    _check_names(axes, node, source)
    experiment.axes[node.name] = tuple(axes.values())


def _check_names(axes: dict[str, Axis], node: Node, source: Source) -> None:
    """Every axis becomes a dimension beside those of the data, every coordinate belongs to one axis."""
    own = {axis.name for axis in node.own_axes}
    holders: dict[str, str] = {}
    for axis in list(axes.values()):
        if axis.name in node.step.output.dims - node.step.output.seldom:
            which = "" if axis.name in own else ", inherited from an input,"
            what = f"the axis {axis.name!r}{which} is also a dimension of {node.step.output.name}"
            hint = f"name it otherwise where it is made: axis: {axis.name}_value"
            source.problem(("nodes", node.name), node.name, what, hint)
            del axes[axis.name]  # consumers would only be told the same
        for coordinate in axis.coords:
            if holders.setdefault(coordinate, axis.name) != axis.name:
                what = f"{coordinate!r} is on two axes, {holders[coordinate]!r} and {axis.name!r}"
                hint = "put it on an axis of its own name at one of the nodes, or select: one value"
                source.problem(("nodes", node.name), node.name, what, hint)


def _view(experiment: Experiment, node: Node, slot: str, reference: Reference, source: Source) -> View | None:
    producer = experiment.nodes.get(reference.node)
    if producer is None or reference.node not in experiment.axes:
        return None
    axes = experiment.axes[reference.node]
    place, where = ("nodes", node.name, slot, "select"), f"{node.name}.{slot}"
    try:
        return view(axes, reference.select)
    except KeyError as error:
        known = [name for axis in axes for name in axis.coords if axis.joined is None]
        hint = nearest(error.args[0], known) or f"{reference.node} has no grid: leave select out"
        what = f"{reference.node} has no axis {error.args[0]!r}"
        source.problem((*place, error.args[0]), where, what, hint)
    except ValueError as error:
        source.problem(place, where, str(error))
    return None


def _add(axes: dict[str, Axis], axis: Axis, node: Node, slot: str, source: Source) -> None:
    try:
        axes[axis.name] = merge(axes[axis.name], axis) if axis.name in axes else axis
    except AxisConflict as error:
        where = f"{node.name}.{slot}" if slot else node.name
        place = ("nodes", node.name, slot) if slot else ("nodes", node.name)
        hint = "use the same values, select: some of them, or name one of the axes otherwise with axis:"
        source.problem(place, where, str(error), hint)
