"""A node's parameters: values and grids of values, checked at every point of the node's own grid."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from prisma_steps.axes import PART, Axis, Index, points
from prisma_steps.fingerprint import idle
from prisma_steps.problems import close, nearest, shown
from prisma_steps.step import InParts, StepParams, outside_fields
from prisma_steps.yaml_source import Source

#: Far above any grid that could be run, far below one that could not even be planned.
MOST_POINTS = 100_000

#: Stands for a grid that cannot be read: noted already, and not to be complained of again.
_UNREADABLE = object()

#: What was expected, by the kind of error in pydantic's terms.
_EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "finite_number": "a finite number",
    "literal_error": "{expected}",
    "greater_than": "a number greater than {gt}",
    "greater_than_equal": "{ge} or more",
    "less_than": "a number less than {lt}",
    "less_than_equal": "{le} or less",
    "too_short": "at least {min_length} entry",
}

Detail = Mapping[str, Any]


@dataclass(frozen=True)
class Grid:
    """Several values of one parameter, along one axis."""

    values: tuple[Any, ...]
    axis: str


def read_parameters(
    source: Source, name: str, body: Mapping[str, Any], params: type[StepParams], seed: int, folder: Path
) -> tuple[tuple[Axis, ...], dict[Index, StepParams]]:
    """The axes that a node's own grids make, and its parameters at every index of them.

    Problems are noted in ``source``; where there are any, points may be missing.
    """
    fields = settable(params)
    read = {key: _grid(source, name, key, body[key], fields[key]) for key in body if key in fields}
    given = {key: value for key, value in read.items() if value is not _UNREADABLE}
    if "seed" in params.model_fields and "seed" not in read:
        given["seed"] = seed
    own = _own_axes(source, name, given)
    count = _parts(params, given)
    if count > 1:
        given[PART] = Grid(tuple(range(count)), PART)
        own = (*own, Axis(PART, {PART: tuple(f"{i + 1} of {count}" for i in range(count))}, joined="image"))
    if not check_size(source, name, own):
        return own, {}
    checked = _Checked(source, name, params, read.keys() - given.keys())
    order = {axis.name: i for i, axis in enumerate(own)}
    combinations = {}
    for index in points(own):
        at = {key: index[order[value.axis]] for key, value in given.items() if isinstance(value, Grid)}
        values = {key: value.values[at[key]] if key in at else value for key, value in given.items()}
        combination = checked.at(values, at, folder)
        if combination is not None:
            combinations[index] = combination
    _check_effect(source, name, given, combinations)
    return own, combinations


def settable(params: type[StepParams]) -> dict[str, FieldInfo]:
    """The parameters that an experiment may set."""
    fields = params.model_fields.items()
    return {key: info for key, info in fields if not (key == PART and issubclass(params, InParts))}


def _parts(params: type[StepParams], given: Mapping[str, Any]) -> int:
    """The number of parts of a node; 1 where it is wrong, which is told with the other parameters."""
    if not issubclass(params, InParts) or "parts" not in given:
        return 1
    try:
        return InParts.model_validate({"parts": given["parts"]}).parts
    except ValidationError:
        return 1


def check_size(source: Source, name: str, axes: Sequence[Axis]) -> bool:
    """Whether a grid can be planned; a problem is noted when it cannot."""
    count = math.prod(map(len, axes))
    if count > MOST_POINTS:
        sizes = " × ".join(f"{len(axis):,} {axis.name}" for axis in axes)
        what = f"the grid has {count:,} points ({sizes}), at most {MOST_POINTS:,} can be planned"
        source.problem(("nodes", name), name, what, "select: fewer of them, or zip grids with axis:")
    return count <= MOST_POINTS


def _grid(source: Source, name: str, key: str, value: Any, info: FieldInfo) -> Any:
    """A parameter as given, or as a ``Grid``."""
    if not isinstance(value, dict) or (_takes_mapping(info) and "grid" not in value):
        return value
    place, where = ("nodes", name, key), f"{name}.{key}"
    values, axis = value.get("grid"), value.get("axis", key)
    strange = [word for word in value if word not in ("grid", "axis")]
    if "grid" not in value or strange:
        hint = nearest(strange[0], ["grid", "axis"]) if strange else "add grid: […]"
        source.problem(place, where, f"is {shown(value)}, expected a value or {{grid: […]}}", hint)
    elif not isinstance(values, list) or not values:
        source.problem(place, where, f"grid is {shown(values)}, expected a list of at least one value")
    elif not isinstance(axis, str) or not axis.isidentifier():
        hint = "letters, digits and _, not starting with a digit"
        source.problem((*place, "axis"), where, f"axis is {shown(axis)}, expected a name", hint)
    elif axis == PART:
        hint = f"name it otherwise: axis: {key}_value"
        source.problem((*place, "axis"), where, "the axis 'part' is that of a node's parts", hint)
    elif isinstance(info.json_schema_extra, dict) and info.json_schema_extra.get("no_grid"):
        hint = f"{key}: {info.description}"
        source.problem(place, where, f"is {shown(value)}, expected one value: no grid is over it", hint)
    else:
        return Grid(tuple(values), axis)
    return _UNREADABLE


def _takes_mapping(info: FieldInfo) -> bool:
    """Whether a value of the parameter may itself be a mapping."""
    return any(get_origin(kind) is dict for kind in (info.annotation, *get_args(info.annotation)))


def _own_axes(source: Source, name: str, given: Mapping[str, Any]) -> tuple[Axis, ...]:
    """The axes that the node's own grids make; several grids on one axis are a zip."""
    zips: dict[str, dict[str, tuple[Any, ...]]] = {}
    for key, value in given.items():
        if isinstance(value, Grid):
            zips.setdefault(value.axis, {})[key] = tuple(map(_coordinate, value.values))
    return tuple(_axis(source, name, axis, zipped) for axis, zipped in zips.items())


def _axis(source: Source, name: str, axis: str, zipped: Mapping[str, tuple[Any, ...]]) -> Axis:
    place = ("nodes", name, next(iter(zipped)))
    lengths = {key: len(values) for key, values in zipped.items()}
    if len(set(lengths.values())) > 1:
        text = ", ".join(f"{key} has {length}" for key, length in lengths.items())
        what = f"the grids on axis {axis!r} must have the same length: {text}"
        source.problem(place, name, what, "add the missing values, or give a grid an axis of its own")
        zipped = {key: values[: min(lengths.values())] for key, values in zipped.items()}
    rows = [
        tuple((type(value) is bool, value) for value in row) for row in zip(*zipped.values(), strict=True)
    ]
    first = {row: i for i, row in reversed(list(enumerate(rows)))}
    again = next((i for i, row in enumerate(rows) if first[row] < i), None)
    if again is not None:
        row = ", ".join(f"{key} = {shown(values[again])}" for key, values in zipped.items())
        source.problem(place, f"{name}.{place[-1]}", f"the grid holds {row} twice", "remove one")
    if len(zipped) == 1:
        zipped = {axis: next(iter(zipped.values()))}
    return Axis(axis, dict(zipped))


def _coordinate(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool) else shown(value)


def _check_effect(
    source: Source, name: str, given: Mapping[str, Any], combinations: Mapping[Index, StepParams]
) -> None:
    """A grid over a parameter that has no effect at any of its points is a mistake."""
    for key in (key for key, value in given.items() if isinstance(value, Grid)):
        if combinations and all(key in idle(point) for point in combinations.values()):
            what = "a grid over a parameter that has no effect with the node's other parameters"
            hint = "remove it, or change what it depends on"
            source.problem(("nodes", name, key), f"{name}.{key}", what, hint)


@dataclass
class _Checked:
    """Checks the points of one node's grid, and notes each mistake once however many points have it."""

    source: Source
    name: str
    params: type[StepParams]
    unreadable: set[str]

    def __post_init__(self) -> None:
        self._noted: set[tuple[Any, ...]] = set()

    def at(self, values: dict[str, Any], at: Mapping[str, int], folder: Path) -> StepParams | None:
        """The parameters at one point; ``at`` gives the position in their grids of those that have one."""
        for key in outside_fields(self.params):
            self._resolve_outside(key, values, at, folder)
        try:
            return self.params.model_validate(values)
        except ValidationError as error:
            self._note(error, at)
        return None

    def _resolve_outside(self, key: str, values: dict[str, Any], at: Mapping[str, int], folder: Path) -> None:
        """Make a path absolute; relative ones start at the experiment's folder."""
        value = values.get(key)
        if not isinstance(value, str):
            return
        path = Path(os.path.abspath(folder / os.path.expanduser(value)))
        values[key] = str(path)
        if not value or not path.is_dir():
            what = (
                f"{value!r} is a file, expected a folder"
                if path.is_file()
                else f"there is no folder {value!r}"
            )
            hint = f"looked for {path}: relative paths start at the experiment file's folder"
            self._problem(key, (), at, what, hint if value else "name a folder")

    def _note(self, error: ValidationError, at: Mapping[str, int]) -> None:
        by_key: dict[str, list[Detail]] = {}
        for detail in error.errors(include_url=False):
            if detail["type"] != "extra_forbidden":
                by_key.setdefault(str(detail["loc"][0]) if detail["loc"] else "", []).append(detail)
        for key, details in by_key.items():
            if not key:
                for detail in details:
                    self._problem("", (), at, detail["msg"].removeprefix("Value error, "))
            elif details[0]["type"] != "missing":
                for inner, what, hint in _mistakes(details):
                    self._problem(key, inner, at, what, self._describe(key) if hint is None else hint)
            elif key not in self.unreadable:
                self._problem(key, (), {}, "is missing", self._describe(key))

    def _problem(
        self, key: str, inner: tuple[Any, ...], at: Mapping[str, int], what: str, hint: str = ""
    ) -> None:
        if (key, inner, what) in self._noted:
            return
        self._noted.add((key, inner, what))
        point = ("grid", at[key]) if key in at else ()
        place = ("nodes", self.name, *([key] if key else []), *point, *inner)
        self.source.problem(
            place, ".".join(map(str, filter(None, [self.name, key, *map(str, inner)]))), what, hint
        )

    def _describe(self, key: str) -> str:
        return f"{key}: {self.params.model_fields[key].description}"


def _mistakes(details: Sequence[Detail]) -> Iterator[tuple[tuple[Any, ...], str, str | None]]:
    """(place inside the value, what is wrong, hint if there is one) for what is wrong with one parameter.

    Of a parameter of several types, pydantic tells for each why it does not fit. Where the value has the
    shape of one of them, that one is meant; else all are told in one line.
    """
    if not isinstance([*details[0]["loc"], 0, 0][1], str):
        meant = [(detail["loc"][1:], [detail]) for detail in details]
    else:
        deeper = [(detail["loc"][2:], [detail]) for detail in details if len(detail["loc"]) > 2]
        meant = deeper or [((), list(details))]
    for inner, found in meant:
        value = shown(found[0]["input"])
        if found[0]["type"] == "value_error":
            yield inner, f"is {value}: {found[0]['msg'].removeprefix('Value error, ')}", ""
            continue
        expected = " or ".join(map(_expected, found))
        yield inner, f"is {value}, expected {expected}", _choice(found[0]["input"], expected)


def _expected(detail: Detail) -> str:
    told = _EXPECTED.get(detail["type"])
    return told.format(**detail.get("ctx", {})) if told else detail["msg"]


def _choice(value: Any, expected: str) -> str | None:
    words = re.findall(r"'([^']*)'", expected)
    return (close(value, words) if isinstance(value, str) else "") or None
