"""YAML 1.2 as plain data with the place of every key and value. Data only: no tag ever makes an object."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from prisma_steps.problems import ExperimentError, Problem

Place = tuple[str | int, ...]

#: Far above any experiment, far below what exhausts memory or the stack.
_MOST_VALUES = 100_000
_DEEPEST = 32


class _Yaml12(yaml.SafeLoader):
    """Resolves scalars as YAML 1.2 does: ``1e-3`` is a number, ``on`` and ``no`` are words."""

    yaml_implicit_resolvers: dict[str, Any] = {}


_SCALARS = {
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
    "null": r"~|null|Null|NULL|",
}
for _name, _pattern in _SCALARS.items():
    _Yaml12.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"^(?:{_pattern})$"), None)


def _number(text: str) -> int:
    return int(text, 0) if text[:2] in ("0o", "0x") else int(text)


def _float(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


_CONVERT = {
    "tag:yaml.org,2002:str": str,
    "tag:yaml.org,2002:bool": lambda text: text.lower() == "true",
    "tag:yaml.org,2002:int": _number,
    "tag:yaml.org,2002:float": _float,
    "tag:yaml.org,2002:null": lambda _text: None,
}


@dataclass
class Source:
    """The content of a YAML file, and where in the file each part of it stands."""

    file: str
    text: str
    data: Any = None
    places: dict[Place, tuple[int, int]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def at(self, *place: str | int) -> tuple[int, int]:
        """Line and column of ``place``, or of the nearest thing around it."""
        while place and place not in self.places:
            place = place[:-1]
        return self.places.get(place, (1, 1))

    def problem(self, place: Place, where: str, what: str, hint: str = "") -> None:
        """Note a mistake at ``place``."""
        self.problems.append(Problem(*self.at(*place), where, what, hint))


def read_yaml(path: Path, shown: str) -> Source:
    """Read one YAML document.

    Raises:
        ExperimentError: when the file cannot be read, is not YAML, or holds what is not plain data (tags,
            aliases without end). A repeated key leaves the rest readable: it is noted in ``problems`` of the
            result instead.
    """
    text = _read_text(path, shown)
    source = Source(shown, text)
    try:
        root = yaml.compose(text, Loader=_Yaml12)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (0, 0)
        reason = " ".join(filter(None, [error.context, error.problem]))
        hint = "indent with spaces: YAML does not allow tabs" if r"'\t'" in reason else ""
        raise ExperimentError(shown, [Problem(line, column, "", f"not valid YAML: {reason}", hint)]) from None
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        line, column = before.count("\n") + 1, error.position - before.rfind("\n")
        what = f"not valid YAML: the character U+{ord(text[error.position]):04X} is not allowed"
        raise ExperimentError(shown, [Problem(line, column, "", what, "remove it")]) from None
    except RecursionError:
        raise ExperimentError(shown, [Problem(1, 1, "", "not an experiment: nested too deeply")]) from None
    if root is not None:
        reader = _Reader(source)
        source.data = reader.value(root, ())
        if reader.refused:
            raise ExperimentError(shown, source.problems)
    return source


def _read_text(path: Path, shown: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ExperimentError(shown, [Problem(0, 0, "", "there is no such file")]) from None
    except IsADirectoryError:
        raise ExperimentError(shown, [Problem(0, 0, "", "is a folder, expected a YAML file")]) from None
    except UnicodeDecodeError as error:
        what = f"is not UTF-8 text (byte {error.start})"
        raise ExperimentError(shown, [Problem(0, 0, "", what)]) from None
    except OSError as error:
        raise ExperimentError(shown, [Problem(0, 0, "", f"cannot be read: {error.strerror}")]) from None


class _Reader:
    """Turns YAML nodes into plain data, noting places and refusing what is not data.

    Attributes:
        refused: whether something was: what was read is then not what the user wrote.
    """

    def __init__(self, source: Source) -> None:
        self.refused = False
        self._source = source
        self._open: set[int] = set()
        self._count = 0

    def value(self, node: yaml.Node, place: Place) -> Any:
        self._source.places.setdefault(place, (node.start_mark.line + 1, node.start_mark.column + 1))
        self._count += 1
        if self._count > _MOST_VALUES or len(place) > _DEEPEST:
            limit = f"{_MOST_VALUES:,} values" if self._count > _MOST_VALUES else f"{_DEEPEST} levels"
            what = f"not an experiment: more than {limit}, counting what aliases (*name) repeat"
            raise ExperimentError(self._source.file, [Problem(*self._source.at(*place), "", what)])
        if id(node) in self._open:
            return self._refuse(node, place, "is an alias of what contains it", "write the value out")
        self._open.add(id(node))
        try:
            return self._convert(node, place)
        finally:
            self._open.discard(id(node))

    def _convert(self, node: yaml.Node, place: Place) -> Any:
        if isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
            return self._mapping(node, place)
        if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
            return [self.value(item, (*place, index)) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode) and node.tag in _CONVERT:
            try:
                return _CONVERT[node.tag](node.value)
            except ValueError:
                return self._refuse(node, place, "has too many digits to be a number here")
        tag = node.tag.replace("tag:yaml.org,2002:", "!!")
        return self._refuse(
            node, place, f"has the tag {tag}: an experiment holds plain data", "remove the tag"
        )

    def _refuse(self, node: yaml.Node, place: Place, what: str, hint: str = "") -> None:
        self.refused = True
        here = (node.start_mark.line + 1, node.start_mark.column + 1)
        self._source.problems.append(Problem(*here, _dotted(place), what, hint))

    def _mapping(self, node: yaml.MappingNode, place: Place) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            here = (key_node.start_mark.line + 1, key_node.start_mark.column + 1)
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag not in _CONVERT:
                self._refuse(key_node, place, "a key must be a word")
                continue
            key = key_node.value
            if key == "<<" and key_node.style is None:
                self._refuse(key_node, place, "YAML 1.2 has no merge key (<<)", "write the keys out")
                continue
            if key in found:
                what = f"is given twice, first in line {self._source.at(*place, key)[0]}"
                self._source.problems.append(Problem(*here, _dotted((*place, key)), what))
                continue
            self._source.places[(*place, key)] = here
            found[key] = self.value(value_node, (*place, key))
        return found


def _dotted(place: Place) -> str:
    words = place[1:] if place[:1] == ("nodes",) else place
    return ".".join(map(str, words))
