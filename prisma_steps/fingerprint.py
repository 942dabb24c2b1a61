"""What a job *is*: canonical parameters, code without its layout, content of outside data, and their hash."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import os
import time
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from prisma_steps.data.listing import walk
from prisma_steps.step import Step, StepParams, outside_fields, revision_fields

#: Raised by hand when the engine itself comes to compute or lay out artifacts differently.
ENGINE = 2

#: A file left alone for so long has an mtime that tells its next change from this one.
_SETTLED_NS = 2 * 10**9

#: Modules and packages that steps import and that compute nothing: they declare, name and show examples. A
#: change in them reruns nothing.
VOCABULARY = frozenset(
    {"prisma_steps", *(f"prisma_steps.{name}" for name in ("step", "job", "schema", "examples"))}
)

Definitions = dict[str, dict[str, str]]


def canonical(value: Any) -> str:
    """``value`` as JSON with one spelling only."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """Hex sha256 of the canonical JSON of ``value``."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def key_of(identity: Mapping[str, Any]) -> str:
    """The 16-digit key of what a job is (step, parameters, code, inputs, outside data)."""
    return digest({"engine": ENGINE, **identity})[:16]


def parameters_in_key(params: StepParams) -> dict[str, Any]:
    """Parameters as they enter the key: all filled in, those without effect left out."""
    values = params.model_dump(mode="json")
    left_out = {*outside_fields(type(params)), *revision_fields(type(params)), *idle(params)}
    for name, (default, marks) in _marks(type(params)).items():
        if marks.get("not_in_key") or (marks.get("as_before") and values[name] == default):
            left_out.add(name)
    return {name: value for name, value in values.items() if name not in left_out}


def idle(params: StepParams) -> set[str]:
    """Parameters that have no effect beside the values that others have (``only_for``)."""
    return {
        name
        for name, (_, marks) in _marks(type(params)).items()
        if any(getattr(params, other) not in allowed for other, allowed in marks.get("only_for", {}).items())
    }


@cache
def _marks(params: type[StepParams]) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Default and marks of the parameters that have marks."""
    return {
        name: (info.default, info.json_schema_extra)
        for name, info in params.model_fields.items()
        if isinstance(info.json_schema_extra, dict)
    }


# --- code -------------------------------------------------------------------------------------------------


def code_digest(step: Step) -> str:
    """Digest of the step's module and of every module of the package that it reaches by imports."""
    return _code_digest(step.module)


@cache
def _code_digest(module: str) -> str:
    return digest({name: _module_digest(name) for name in reached_modules(module)})


def code_definitions(step: Step) -> Definitions:
    """Digest of every definition in every module that the step reaches: what ``why`` compares."""
    return {name: module_definitions(_source(name)) for name in reached_modules(step.module)}


@cache
def reached_modules(module: str) -> tuple[str, ...]:
    """``module`` and what it imports, directly or not, within the package."""
    found = _import_graph().find_upstream_modules(module) | {module}
    return tuple(sorted(name for name in found if not _is_vocabulary(name)))


def _is_vocabulary(module: str) -> bool:
    return ".".join(module.split(".")[:2]) in VOCABULARY


@cache
def _import_graph() -> Any:
    import grimp

    return grimp.build_graph("prisma_steps", cache_dir=None, exclude_type_checking_imports=True)


@cache
def _module_digest(name: str) -> str:
    return digest(module_definitions(_source(name)))


def _source(module: str) -> str:
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None, module
    return Path(spec.origin).read_text(encoding="utf-8")


def module_definitions(source: str) -> dict[str, str]:
    """Digest of each definition of a module, blind to comments, docstrings, layout and the order of imports.

    Fields of a class named ``Params`` are left out: they enter the key by their values.
    """
    definitions: dict[str, list[str]] = {}
    for name, node in _named(ast.parse(source)):
        definitions.setdefault(name, []).append(_dump(node))
    definitions["imports"] = sorted(definitions.get("imports", []))
    return {name: digest(dumps) for name, dumps in sorted(definitions.items())}


def _named(module: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """Every statement of a module with the definition that it belongs to."""
    for node in _without_docstring(module.body):
        if isinstance(node, ast.ClassDef):
            yield from _named_in_class(node)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from (("imports", single) for single in _one_name_each(node))
        else:
            yield _assigned(node) or "module level", node


def _named_in_class(node: ast.ClassDef) -> Iterator[tuple[str, ast.AST]]:
    rest = []
    for inner in _without_docstring(node.body):
        if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{node.name}.{inner.name}", inner
        elif not (node.name == "Params" and isinstance(inner, ast.AnnAssign)):
            rest.append(inner)
    yield node.name, ast.ClassDef(node.name, node.bases, node.keywords, rest, node.decorator_list)


def _assigned(node: ast.stmt) -> str | None:
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    names = [target.id for target in targets if isinstance(target, ast.Name)]
    return names[0] if names else None


def _without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    return [
        node
        for node in body
        if not (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        )
    ]


def _one_name_each(node: ast.Import | ast.ImportFrom) -> Iterator[ast.stmt]:
    """An import as imports of one name: formatters join and split them."""
    for name in node.names:
        if isinstance(node, ast.Import):
            yield ast.Import([name])
        else:
            yield ast.ImportFrom(node.module, [name], node.level)


def _dump_block(body: list[ast.stmt]) -> Iterator[str]:
    """The statements of a block without docstrings, imports that stand together in one order."""
    imports: list[str] = []
    for node in _without_docstring(body):
        if isinstance(node, ast.Import | ast.ImportFrom):
            imports.extend(map(_dump, _one_name_each(node)))
            continue
        yield from sorted(imports)
        imports.clear()
        yield _dump(node)
    yield from sorted(imports)


def _dump(node: Any) -> str:
    """A syntax tree as text. Unlike ``ast.dump`` it is the same on every supported Python."""
    if isinstance(node, ast.Constant):
        return f"{type(node.value).__name__}:{node.value!r}"
    if isinstance(node, list):
        parts = _dump_block(node) if node and isinstance(node[0], ast.stmt) else map(_dump, node)
        return "[" + ",".join(parts) + "]"
    if isinstance(node, ast.AST):
        fields = ((name, value) for name, value in ast.iter_fields(node) if value is not None and value != [])
        return f"{type(node).__name__}({','.join(f'{name}={_dump(value)}' for name, value in fields)})"
    return repr(node)


# --- outside data -----------------------------------------------------------------------------------------


def folder_digest(folder: Path, memory: Path) -> str:
    """Digest of the names and contents of the files in ``folder``, whatever their mtimes.

    Contents are read once: ``memory`` keeps each file's digest with its size and mtime, and where a folder of
    this content was seen (``places``). Names that begin with a dot are passed over: file managers leave such
    files where they please.
    """
    file = memory / f"{digest(str(folder))[:32]}.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    fresh = {name: _remembered(entry, known.get(name)) for name, entry in walk(folder) if entry.is_file()}
    if fresh != known:
        _replace(file, fresh)
    content = digest({name: entry[2] for name, entry in fresh.items()})
    seen = places(content, memory)
    if str(folder) not in seen[:1]:
        _replace(
            _places_file(content, memory), [str(folder), *(place for place in seen if place != str(folder))]
        )
    return content


def places(content: str, memory: Path) -> list[str]:
    """The folders of a digest that were seen on this machine, the latest first."""
    file = _places_file(content, memory)
    return json.loads(file.read_text()) if file.exists() else []


def _places_file(content: str, memory: Path) -> Path:
    return memory / "places" / f"{content[:32]}.json"


def _replace(file: Path, value: Any) -> None:
    """Write JSON in one move."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(f".{digest(value)[:8]}")
    unfinished.write_text(json.dumps(value))
    unfinished.replace(file)


def _remembered(entry: os.DirEntry[str], known: list[Any] | None) -> list[Any]:
    """[size, mtime in ns, sha256] of a file, from memory when size and mtime are as they were.

    The mtime of a file changed a moment ago is not kept: another change may leave it with the same one.
    """
    status = entry.stat()
    if known is not None and known[:2] == [status.st_size, status.st_mtime_ns]:
        return known
    settled = time.time_ns() - status.st_mtime_ns > _SETTLED_NS
    return [status.st_size, status.st_mtime_ns if settled else None, file_digest(Path(entry.path))]


def file_digest(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
