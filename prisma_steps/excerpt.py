"""The lines of an experiment file that some of its nodes stand in, as they were written."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import yaml

#: Keys of the file, besides ``nodes``, that enter what nodes are.
_SHARED = ("seed",)


def excerpt(text: str, nodes: Collection[str]) -> str:
    """The part of an experiment file that defines ``nodes``, comments included.

    It is an experiment file itself, in which these nodes are what they are in the whole. Where lines cannot
    be taken out of the file (nodes in one pair of braces, a node that repeats parts of another by an alias),
    it is the whole file.

    Args:
        text: a file that ``read_experiment`` accepts.
        nodes: names of nodes, with all that they rest on.
    """
    kept = [lines for name, lines in _entries(text) if name in (*_SHARED, "nodes") or name[6:] in nodes]
    found = "\n".join(_without_gaps("\n".join(lines) for lines in kept)) + "\n"
    return found if _defines(found, nodes) else text


def _entries(text: str) -> Iterator[tuple[str, list[str]]]:
    """(key, lines) of the keys of the file, of those below ``nodes`` as ``nodes.<name>``, by their order.

    The lines begin with the comments right above the key, and end with its value or a comment inside.
    """
    lines = text.splitlines()
    for key, value in _compose(text).value:
        if key.value != "nodes":
            yield key.value, _lines(lines, key, value)
            continue
        first = value.value[0][0].start_mark.line if value.value else value.end_mark.line
        begin = key.start_mark.line
        yield "nodes", lines[_above(lines, begin, 0) : _above(lines, first, begin + 1)]
        for name, body in value.value:
            yield f"nodes.{name.value}", _lines(lines, name, body)


def _lines(lines: list[str], key: yaml.Node, value: yaml.Node) -> list[str]:
    first, column = key.start_mark.line, key.start_mark.column
    last = max(first + 1, value.end_mark.line + (value.end_mark.column > 0))  # an alias ends where it points
    while last - 1 > first and _is_outside(lines[last - 1], column):
        last -= 1
    return lines[_above(lines, first, 0) : last]


def _is_outside(line: str, column: int) -> bool:
    """Whether a line at the end of a value is no part of it: blank, or of the next key or its comment."""
    indent = len(line) - len(line.lstrip())
    return not line.strip() or indent <= column


def _above(lines: list[str], first: int, stop: int) -> int:
    """The line where the comments right above line ``first`` begin."""
    while first > stop and lines[first - 1].lstrip().startswith("#"):
        first -= 1
    return first


def _without_gaps(entries: Iterator[str]) -> Iterator[str]:
    return (entry.strip("\n") for entry in entries if entry.strip())


def _compose(text: str) -> yaml.MappingNode:
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode), "not the text of an experiment"
    return root


def _defines(text: str, nodes: Collection[str]) -> bool:
    """Whether ``text`` holds just these nodes."""
    try:
        found = {key.value: value for key, value in _compose(text).value}
    except yaml.YAMLError:
        return False
    body = found.get("nodes")
    return isinstance(body, yaml.MappingNode) and {name.value for name, _ in body.value} == set(nodes)
