"""One node of an experiment: its step, its parameters over its grid, and the nodes that it names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prisma_steps.axes import Axis, Index
from prisma_steps.parameters import read_parameters, settable
from prisma_steps.problems import close, nearest, shown
from prisma_steps.schema import Kind
from prisma_steps.step import Step, StepParams, all_steps
from prisma_steps.yaml_source import Source


@dataclass(frozen=True)
class Reference:
    """A slot's value: the node that fills it, and which part of its grid."""

    node: str
    select: Mapping[str, Any]


@dataclass(frozen=True)
class Node:
    """A checked node.

    Attributes:
        combinations: the parameters at every index of ``own_axes``.
    """

    name: str
    step: Step
    own_axes: tuple[Axis, ...]
    combinations: Mapping[Index, StepParams]
    references: Mapping[str, Reference]


def read_node(
    source: Source, name: str, body: Any, known: Sequence[str], seed: int, folder: Path
) -> Node | None:
    """Check one node; problems are noted in ``source``, and None is returned when it has any."""
    place = ("nodes", name)
    before = len(source.problems)
    if not isinstance(body, dict):
        example = "{step: train_vit, images: …}"
        source.problem(place, name, f"is {shown(body)}, expected a mapping", f"write it as {example}")
        return None
    found = _step_of(source, name, body)
    if found is None:
        return None
    fields = settable(found.params)
    for key in body:
        if key not in ("step", "figure") and key not in fields and key not in found.inputs:
            what = f"{found.name} has no parameter or slot of this name"
            source.problem((*place, key), f"{name}.{key}", what, nearest(key, [*fields, *found.inputs]))
    references = _references(source, name, body, found, known)
    own, combinations = read_parameters(source, name, body, found.params, seed, folder)
    if len(source.problems) > before:
        return None if not references and found.inputs else Node(name, found, own, {}, references)
    return Node(name, found, own, combinations, references)


def _step_of(source: Source, name: str, body: Mapping[str, Any]) -> Step | None:
    words = [word for word in ("step", "figure") if word in body]
    if len(words) != 1:
        what = "needs either step: or figure:" if not words else "has both step: and figure:, expected one"
        hint = next(filter(None, (close(key, ["step", "figure"]) for key in body)), "") if not words else ""
        source.problem(("nodes", name), name, what, hint)
        return None
    word, value = words[0], body[words[0]]
    steps = {step.name: step for step in all_steps().values() if step.is_figure == (word == "figure")}
    if isinstance(value, str) and value in steps:
        return steps[value]
    other = "step" if word == "figure" else "figure"
    hint = nearest(str(value), steps)
    if isinstance(value, str) and value in all_steps():
        hint = f"{value} is a {other}: write {other}: {value}"
    source.problem(("nodes", name, word), f"{name}.{word}", f"there is no {word} {shown(value)}", hint)
    return None


def _references(
    source: Source, name: str, body: Mapping[str, Any], found: Step, known: Sequence[str]
) -> dict[str, Reference]:
    references = {}
    for slot, wanted in found.inputs.items():
        where = f"{name}.{slot}"
        if slot not in body:
            what = f"is missing: {found.name} needs a node of kind {wanted.kind.name}"
            source.problem(("nodes", name), where, what, f"add {slot}: <node>")
            continue
        reference = _reference(source, name, slot, body[slot])
        if reference is None:
            continue
        if reference.node not in known:
            hint = nearest(reference.node, [other for other in known if other != name])
            source.problem(("nodes", name, slot), where, f"there is no node {reference.node!r}", hint)
            continue
        _check_kind(source, name, slot, reference, found)
        references[slot] = reference
    return references


def _reference(source: Source, name: str, slot: str, value: Any) -> Reference | None:
    place, where = ("nodes", name, slot), f"{name}.{slot}"
    if isinstance(value, str):
        return Reference(value, {})
    words, form = ("node", "select"), "or {node: name, select: {axis: value}}"
    if (
        not isinstance(value, dict)
        or not value.keys() <= set(words)
        or not isinstance(value.get("node"), str)
    ):
        strange = [key for key in value if key not in words] if isinstance(value, dict) else []
        hint = close(strange[0], words) if strange else ""
        source.problem(place, where, f"is {shown(value)}, expected the name of a node", hint or form)
        return None
    select = value.get("select", {})
    if isinstance(select, dict):
        return Reference(value["node"], select)
    what = f"select is {shown(select)}, expected {{axis: value}} or {{axis: [values]}}"
    source.problem((*place, "select"), where, what)
    return None


def _check_kind(source: Source, name: str, slot: str, reference: Reference, found: Step) -> None:
    body = source.data["nodes"][reference.node]
    produced = isinstance(body, dict) and all_steps().get(str(body.get("step", body.get("figure"))))
    wanted = found.inputs[slot].kind
    if produced and not wanted.takes(produced.output):
        what = f"{reference.node} is {produced.output.name} (from {produced.name}), expected {wanted.name}"
        source.problem(("nodes", name, slot), f"{name}.{slot}", what, _fitting(source, wanted))


def _fitting(source: Source, wanted: Kind) -> str:
    """Hint: the nodes of a kind, or the steps that make it."""
    making = [step.name for step in all_steps().values() if wanted.takes(step.output)]
    nodes = [
        node
        for node, body in source.data["nodes"].items()
        if isinstance(body, dict) and body.get("step") in making
    ]
    if nodes:
        return f"nodes of kind {wanted.name}: {', '.join(nodes)}"
    return f"add a node of {' or '.join(making)}"
