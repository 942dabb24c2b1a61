from __future__ import annotations

import itertools
import os
import random
import shutil
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prisma_steps import fingerprint
from prisma_steps.fingerprint import (
    canonical,
    folder_digest,
    idle,
    key_of,
    module_definitions,
    parameters_in_key,
    places,
    reached_modules,
)
from prisma_steps.step import Field, OutsideFolder, StepParams, all_steps


class Params(StepParams):
    """A step's parameters with every mark there is."""

    rate: float = Field(0.001, description="a number")
    count: int | None = Field(None, description="a whole number")
    kind: Literal["a", "b"] = Field("a", description="a choice")
    only_a: int = Field(1, description="x", json_schema_extra={"only_for": {"kind": ["a"]}})
    newer: bool = Field(False, description="x", json_schema_extra={"as_before": True})
    batch: int = Field(8, description="x", json_schema_extra={"not_in_key": True})
    folder: OutsideFolder | None = Field(None, description="x")


def key(**values: object) -> str:
    return key_of({"parameters": parameters_in_key(Params.model_validate(values))})


# --- parameters


@settings(deadline=None)
@given(
    st.permutations(
        [("rate", 0.5), ("count", 3), ("kind", "b"), ("only_a", 1), ("newer", True), ("batch", 2)]
    )
)
def test_order_is_nothing(values: list[tuple[str, object]]) -> None:
    assert key(**dict(values)) == key(rate=0.5, count=3, kind="b", newer=True)


def test_a_default_written_out_is_the_default() -> None:
    assert key(rate=1e-3, count=None, kind="a", only_a=1, newer=False, batch=8) == key()


@pytest.mark.parametrize(("one", "other"), [(1, 1.0), (1e-3, 0.0010), (100, 1e2)])
def test_the_spelling_of_a_number_is_nothing(one: float, other: float) -> None:
    assert key(rate=one) == key(rate=other)


def test_marks() -> None:
    assert parameters_in_key(Params()) == {"rate": 0.001, "count": None, "kind": "a", "only_a": 1}
    assert key(newer=True) != key(newer=False)
    assert key(batch=1) == key(batch=2)
    assert key(kind="b", only_a=1) == key(kind="b", only_a=2)
    assert key(kind="a", only_a=1) != key(kind="a", only_a=2)
    assert idle(Params(kind="b")) == {"only_a"}
    assert key(folder="/here") == key(folder="/there"), "the content enters the key, not the path"


def test_a_parameter_added_later_as_before_keeps_old_keys() -> None:
    class Before(StepParams):
        rate: float = 0.5

    class After(Before):
        extra: str = Field("as it was", json_schema_extra={"as_before": True})

    assert parameters_in_key(Before()) == parameters_in_key(After())


def test_different_parameters_have_different_keys() -> None:
    rates, counts = [0.1 + 2**-50, 0.1, 1, 10, 1e100], [None, 0, 1, 10, 11, 101]
    points = itertools.product(rates, counts, "ab", [True, False])
    keys = [key(rate=r, count=c, kind=k, newer=n) for r, c, k, n in points]
    assert len(set(keys)) == len(keys) == 120


@settings(deadline=None)
@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.text()
        | st.floats(allow_nan=False, allow_infinity=False),
        lambda x: st.lists(x) | st.dictionaries(st.text(), x),
        max_leaves=6,
    ),
    st.randoms(),
)
def test_canonical_json_has_one_spelling(value: object, chance: random.Random) -> None:
    def shuffled(inner: object) -> object:
        if isinstance(inner, dict):
            items = list(inner.items())
            chance.shuffle(items)
            return {name: shuffled(each) for name, each in items}
        return [shuffled(each) for each in inner] if isinstance(inner, list) else inner

    assert canonical(shuffled(value)) == canonical(value)


def test_not_a_number_has_no_key() -> None:
    with pytest.raises(ValueError, match="JSON"):
        canonical(float("nan"))


@pytest.mark.parametrize("step", all_steps().values(), ids=lambda step: step.name)
def test_marks_of_every_step_name_parameters_and_choices(step) -> None:
    fields = step.params.model_fields
    for name, info in fields.items():
        marks = info.json_schema_extra or {}
        assert marks.keys() <= {"as_before", "not_in_key", "only_for", "no_grid", "may_differ"}, name
        for other in marks.get("only_for", {}):
            assert other in fields, f"{name} is only for {other}, which is no parameter"


# --- code

SOURCE = '''"""Module."""

import os
from math import pi, tau

LIMIT = 3


def double(x: float, by: int = 2) -> float:
    """Double."""
    # twice
    return x * by + LIMIT


class Box:
    """A box."""

    size: int = 1

    @property
    def area(self):
        return self.size**2
'''


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"""Module."""', '"""Another text."""'),
        ('    """Double."""\n', ""),
        ("    # twice\n", "    # by two\n\n"),
        ("x * by + LIMIT", "(x*by)+LIMIT  # sum"),
        ("import os\nfrom math import pi, tau\n", "from math import pi, tau\nimport os\n"),
        ('    """A box."""\n', '    "A box, anew."\n'),
        (
            "def double(x: float, by: int = 2) -> float:",
            "def double(\n    x: float,\n    by: int = 2,\n) -> float:",
        ),
        ("'", '"'),
    ],
)
def test_layout_comments_and_docstrings_are_nothing(before: str, after: str) -> None:
    assert module_definitions(SOURCE.replace(before, after)) == module_definitions(SOURCE)


@pytest.mark.parametrize(
    ("before", "after", "changed"),
    [
        ("x * by", "x / by", {"double"}),
        ("by: int = 2", "by: int = 2.0", {"double"}),
        ("+ LIMIT", "+ 3", {"double"}),
        ("LIMIT = 3", "LIMIT = 4", {"LIMIT"}),
        ("LIMIT = 3", "LIMIT = '3'", {"LIMIT"}),
        ("LIMIT = 3", "LIMIT = True", {"LIMIT"}),
        ("**2", "**3", {"Box.area"}),
        ("    @property\n", "", {"Box.area"}),
        ("size: int = 1", "size: int = 2", {"Box"}),
        ("class Box:", "class Box(dict):", {"Box"}),
        ("pi, tau", "pi", {"imports"}),
        ("def double", "def twice", {"double", "twice"}),
        ("return x", "yield x", {"double"}),
    ],
)
def test_every_change_of_meaning_is_seen_where_it_is(before: str, after: str, changed: set[str]) -> None:
    old, new = module_definitions(SOURCE), module_definitions(SOURCE.replace(before, after, 1))
    assert {name for name in old.keys() | new.keys() if old.get(name) != new.get(name)} == changed


def test_a_string_that_is_no_docstring_is_seen() -> None:
    assert module_definitions('def f():\n    return "a"') != module_definitions('def f():\n    return "b"')


def test_order_of_statements_at_module_level_is_seen() -> None:
    assert module_definitions("x = 1\nx = 2\n") != module_definitions("x = 2\nx = 1\n")


def test_fields_of_params_enter_by_value_its_validators_by_code() -> None:
    source = "class Params(Base):\n    k: int = 1\n\n    def check(self):\n        return 1\n"
    old = module_definitions(source)
    assert module_definitions(source.replace("k: int = 1", "k: int = 2\n    j: int = 0")) == old
    assert module_definitions(source.replace("return 1", "return 2")) != old


@st.composite
def programs(draw: st.DrawFn) -> list[tuple[str, list[tuple[str, str]]]]:
    """Functions as (name, [(variable, value)])."""
    values = st.sampled_from(
        ["0", "1", "1.0", "'1'", "True", "None", "-1", "[1]", "(1,)", "{1: 2}", "x", "f(x)"]
    )
    bodies = st.lists(st.tuples(st.sampled_from("abc"), values), min_size=1, max_size=3)
    return draw(
        st.lists(st.tuples(st.sampled_from("fgh"), bodies), min_size=1, max_size=3, unique_by=lambda f: f[0])
    )


def written(program: list[tuple[str, list[tuple[str, str]]]], chance: random.Random | None = None) -> str:
    """Source text of a program; with ``chance``, in a layout of its own."""
    lines = []
    for name, body in program:
        lines.append(f"def {name}(x):" + ("  # why" if chance and chance.random() < 0.5 else ""))
        if chance and chance.random() < 0.5:
            lines.append(f"    'docstring {chance.random()}'")
        for variable, value in body:
            blank = "\n" * chance.randrange(3) if chance else ""
            lines.append(f"{blank}    {variable} = {'(' * bool(blank)}{value}{')' * bool(blank)}")
        lines.append(f"    return {body[-1][0]}\n")
    return "\n".join(lines)


@settings(deadline=None)
@given(programs(), programs(), st.randoms())
def test_programs_have_one_digest_when_and_only_when_they_are_the_same(
    one: list[tuple[str, list[tuple[str, str]]]],
    other: list[tuple[str, list[tuple[str, str]]]],
    chance: random.Random,
) -> None:
    assert module_definitions(written(one, chance)) == module_definitions(written(one))
    same = dict(one) == dict(other)
    assert (module_definitions(written(one)) == module_definitions(written(other))) == same


def test_a_step_reaches_its_kernels_and_no_other_step_nor_figure() -> None:
    reached = reached_modules("prisma_steps.steps.train_sae")
    assert "prisma_steps.sae.training" in reached
    assert "prisma_steps.seeding" in reached
    assert not [
        name
        for name in reached
        if ".figures" in name or name.startswith("prisma_steps.steps.") and not name.endswith(".train_sae")
    ]
    assert not {
        "prisma_steps.schema",
        "prisma_steps.step",
        "prisma_steps.job",
        "prisma_steps.runner",
        "prisma_steps.store",
    } & set(reached)
    assert not [
        name for name in reached if name.startswith(("prisma_steps.schema.", "prisma_steps.examples"))
    ]


# --- outside data

LONG_AGO = 1_600_000_000 * 10**9


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("cats/1.png", "cats/2.png", "dogs/1.png"):
        file = tmp_path / "images" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
        os.utime(file, ns=(LONG_AGO, LONG_AGO))
    return tmp_path / "images"


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are hashed from now on."""
    names: list[str] = []
    real = fingerprint.file_digest
    monkeypatch.setattr(fingerprint, "file_digest", lambda path: names.append(path.name) or real(path))
    return names


def test_contents_are_hashed_once(folder: Path, tmp_path: Path, hashed: list[str]) -> None:
    first = folder_digest(folder, tmp_path / "memory")
    assert len(hashed) == 3
    assert folder_digest(folder, tmp_path / "memory") == first
    assert len(hashed) == 3
    (folder / "dogs/2.png").write_text("new")
    os.utime(folder / "dogs/2.png", ns=(LONG_AGO, LONG_AGO))
    assert folder_digest(folder, tmp_path / "memory") != first
    assert hashed[3:] == ["2.png"]
    (folder / "dogs/2.png").unlink()
    assert folder_digest(folder, tmp_path / "memory") == first
    assert len(hashed) == 4


def test_a_touch_changes_nothing(folder: Path, tmp_path: Path, hashed: list[str]) -> None:
    first = folder_digest(folder, tmp_path / "memory")
    os.utime(folder / "cats/1.png", ns=(1, 1))
    assert folder_digest(folder, tmp_path / "memory") == first
    assert hashed[3:] == ["1.png"]


def test_a_file_changed_a_moment_ago_is_read_again(folder: Path, tmp_path: Path, hashed: list[str]) -> None:
    os.utime(folder / "cats/1.png")
    first = folder_digest(folder, tmp_path / "memory")
    kept = (folder / "cats/1.png").stat()
    (folder / "cats/1.png").write_text("CATS/1.PNG")
    os.utime(folder / "cats/1.png", ns=(kept.st_atime_ns, kept.st_mtime_ns))
    assert folder_digest(folder, tmp_path / "memory") != first
    assert hashed[3:] == ["1.png"]


def test_hidden_files_are_passed_over(folder: Path, tmp_path: Path) -> None:
    first = folder_digest(folder, tmp_path / "memory")
    (folder / "cats/.DS_Store").write_text("where the icons are")
    assert folder_digest(folder, tmp_path / "memory") == first


def test_other_bytes_of_the_same_size_are_seen(folder: Path, tmp_path: Path) -> None:
    first = folder_digest(folder, tmp_path / "memory")
    (folder / "cats/1.png").write_text("CATS/1.PNG")
    os.utime(folder / "cats/1.png", ns=(2, 2))
    assert folder_digest(folder, tmp_path / "memory") != first


def test_the_place_of_the_folder_is_nothing_the_names_in_it_are(folder: Path, tmp_path: Path) -> None:
    first = folder_digest(folder, tmp_path / "memory")
    moved = folder.rename(tmp_path / "elsewhere")
    assert folder_digest(moved, tmp_path / "memory") == first
    (moved / "cats/1.png").rename(moved / "dogs/3.png")
    assert folder_digest(moved, tmp_path / "memory") != first


def test_places_of_a_content_are_remembered_the_latest_first(folder: Path, tmp_path: Path) -> None:
    memory, copy = tmp_path / "memory", tmp_path / "copy"
    content = folder_digest(folder, memory)
    assert places(content, memory) == [str(folder)]
    shutil.copytree(folder, copy)
    assert folder_digest(copy, memory) == content
    assert places(content, memory) == [str(copy), str(folder)]
    assert folder_digest(folder, memory) == content
    assert places(content, memory) == [str(folder), str(copy)]
    (copy / "cats/1.png").unlink()
    assert places(folder_digest(copy, memory), memory) == [str(copy)]
    assert places("0" * 64, memory) == []


def test_every_folder_is_listed_once_and_no_file_asked_twice(
    folder: Path, tmp_path: Path, monkeypatch
) -> None:
    folder_digest(folder, tmp_path / "memory")
    listed, real = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(Path(path).name) or real(path))
    monkeypatch.setattr(Path, "stat", lambda path, **_: pytest.fail(f"asked for {path}"))
    monkeypatch.setattr(Path, "exists", lambda _path: True)
    folder_digest(folder, tmp_path / "memory")
    assert sorted(listed) == ["cats", "dogs", "images"]


def test_a_file_that_goes_while_it_is_hashed_leaves_no_half_memory(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(path: Path) -> str:
        raise FileNotFoundError(path)

    monkeypatch.setattr(fingerprint, "file_digest", gone)
    with pytest.raises(FileNotFoundError):
        folder_digest(folder, tmp_path / "memory")
    assert not (tmp_path / "memory").exists()
