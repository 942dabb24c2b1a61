from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from prisma_steps.yaml_source import read_yaml

words = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), max_size=8)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | words
data = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=9,
)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("yaml") / "x.yaml"


def read(file: Path, text: str) -> Any:
    file.write_text(text, encoding="utf-8")
    source = read_yaml(file, "x.yaml")
    assert source.problems == []
    return source.data


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E3", 1000.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("+7", 7),
        ("0x1F", 31),
        ("0o17", 15),
        ("017", 17),
        ("-.inf", -math.inf),
        ("true", True),
        ("on", "on"),
        ("no", "no"),
        ("y", "y"),
        ("~", None),
        ("", None),
        ("1_000", "1_000"),
        ("12:30:45", "12:30:45"),
        ("2020-01-01", "2020-01-01"),
        ("'1'", "1"),
        ("1e", "1e"),
    ],
)
def test_scalars_are_those_of_yaml_1_2(file: Path, text: str, value: Any) -> None:
    found = read(file, f"a: {text}\n")["a"]
    assert found == value
    assert type(found) is type(value)


@settings(deadline=None)
@given(data)
def test_what_a_dumper_writes_is_read_as_it_was(file: Path, value: Any) -> None:
    text = yaml.safe_dump({"a": value}, default_style='"' if isinstance(value, str) else None)
    expected = yaml.safe_load(text)
    # Words that YAML 1.1 takes for more than words are quoted by the dumper, and read the same by both.
    assert read(file, text) == expected == {"a": value}


def test_places_are_those_of_keys_and_entries(file: Path) -> None:
    file.write_text("a:\n  b: [x,\n      {c: 1}]\n")
    source = read_yaml(file, "x.yaml")
    assert source.at("a", "b") == (2, 3)
    assert source.at("a", "b", 0) == (2, 7)
    assert source.at("a", "b", 1, "c") == (3, 8)
    assert source.at("a", "b", 7) == (2, 3), "of the nearest thing around it"
    assert source.at("z") == (1, 1)


def test_an_alias_is_the_data_of_its_anchor(file: Path) -> None:
    assert read(file, "a: &x {b: [1, 2]}\nc: *x\nd: [*x, *x]\n")["d"] == [{"b": [1, 2]}] * 2


def test_a_byte_order_mark_and_line_ends_of_windows_are_fine(file: Path) -> None:
    assert read(file, "\ufeffa: 1\r\nb: 2\r\n") == {"a": 1, "b": 2}
