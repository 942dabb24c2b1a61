"""The JSON schema of an experiment file, for editors: completion, hover texts, red underlines."""

from __future__ import annotations

import itertools
from typing import Any

from prisma_steps.claims.criterion import WORDS
from prisma_steps.step import Step, all_steps


def experiment_schema() -> dict[str, Any]:
    """The schema, made from the parameters and slots of every step."""
    steps = all_steps()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "prisma-steps experiment",
        "type": "object",
        "additionalProperties": False,
        "required": ["nodes"],
        "properties": {
            "title": {"type": "string", "description": "what the experiment asks"},
            "description": {"type": "string", "description": "shown on the experiment's page"},
            "seed": {
                "type": "integer",
                "minimum": 0,
                "description": "seed of every node that names none",
                "default": 0,
            },
            "nodes": {
                "type": "object",
                "propertyNames": {"pattern": "^[a-z][a-z0-9_]*$"},
                "additionalProperties": {"oneOf": [{"$ref": f"#/$defs/{name}"} for name in steps]},
            },
            "claims": {
                "type": "array",
                "items": _claim(),
                "description": "what the experiment states of its results",
            },
        },
        "$defs": {
            "reference": _reference(),
            **{name: _node(step) for name, step in steps.items()},
        },
    }


def _claim() -> dict[str, Any]:
    number, text = {"type": "number"}, {"type": "string", "pattern": r"\S"}
    pairs = itertools.combinations(WORDS, 2)
    return {
        "type": "object",
        "additionalProperties": False,
        "required": ["says", "value"],
        "properties": {
            "says": {**text, "description": "the statement in words"},
            "value": {**text, "description": "an expression, as node.variable.sel(layer=2).mean('seed')"},
            "published": {**number, "description": "the published number"},
            "source": {**text, "description": "where it was published"},
            "within": {**number, "minimum": 0, "description": "greatest distance from published"},
            "above": {**number, "description": "what the value is greater than"},
            "below": {**number, "description": "what the value is less than"},
            "between": {
                "type": "array",
                "items": number,
                "minItems": 2,
                "maxItems": 2,
                "description": "the lowest and the highest value",
            },
        },
        # What follows a comma in a value that is not in quotes is a key without a value to YAML.
        "patternProperties": {r"[().=]": {"type": "null"}},
        "dependentRequired": {"within": ["published"]},
        "not": {"anyOf": [{"required": list(pair)} for pair in pairs]},
    }


def _reference() -> dict[str, Any]:
    selected = {
        "type": "object",
        "additionalProperties": False,
        "required": ["node"],
        "properties": {
            "node": {"type": "string"},
            "select": {"type": "object", "description": "axis: value keeps one point, axis: [values] some"},
        },
    }
    return {"anyOf": [{"type": "string", "description": "a node"}, selected]}


def _node(step: Step) -> dict[str, Any]:
    word = "figure" if step.is_figure else "step"
    schema = step.params.model_json_schema()
    slots = {
        slot: {"$ref": "#/$defs/reference", "description": f"a node of kind {wanted.kind.name}"}
        for slot, wanted in step.inputs.items()
    }
    return {
        "type": "object",
        "description": step.summary,
        "additionalProperties": False,
        "required": [word, *slots, *schema.get("required", [])],
        "properties": {
            word: {"const": step.name, "description": step.summary},
            **slots,
            **{name: _or_grid(parameter) for name, parameter in schema.get("properties", {}).items()},
        },
    }


def _or_grid(parameter: dict[str, Any]) -> dict[str, Any]:
    """A parameter's schema, or a grid of such values; without the engine's own marks."""
    marks = ("as_before", "only_for", "not_in_key", "no_grid", "may_differ", "title")
    plain = {key: value for key, value in parameter.items() if key not in marks}
    if parameter.get("no_grid"):
        return plain
    outer = {key: plain.pop(key) for key in ("description", "default") if key in plain}
    grid = {
        "type": "object",
        "additionalProperties": False,
        "required": ["grid"],
        "properties": {
            "grid": {"type": "array", "minItems": 1, "items": plain},
            "axis": {"type": "string", "description": "grids on one axis are zipped"},
        },
    }
    return {**outer, "anyOf": [plain, grid]}
