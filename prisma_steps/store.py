"""The store: where artifacts lie, how they come to be there whole, and how they are found and removed.

Layout below the root::

    <step>/<key>/manifest.json, data.zarr/, files    an artifact; the manifest makes it one
    .partial/<key>/                                  an unfinished artifact and its checkpoint
    .locks/<key>                                     who works on it
    .computations/<xx>/<id>                          which artifact holds the outcome of a computation
    .code/<digest>.json                              the definitions behind a code digest
    .fingerprints/                                   remembered digests of outside data, and its places
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from prisma_steps.fingerprint import ENGINE, digest, file_digest
from prisma_steps.lock import Lock, Owner

MANIFEST = "manifest.json"
DATA = "data.zarr"

_NO_HARD_LINKS = (errno.EPERM, errno.EXDEV, errno.EMLINK, errno.ENOTSUP)


def default_root() -> Path:
    """``PRISMA_STEPS_STORE``, or ``artifacts`` in the current folder."""
    return Path(os.environ.get("PRISMA_STEPS_STORE", "artifacts"))


@dataclass(frozen=True)
class Stored:
    """An artifact in the store."""

    step: str
    key: str
    folder: Path

    def __str__(self) -> str:
        """Its name in messages: step/key."""
        return f"{self.step}/{self.key}"

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What the artifact is, holds and comes from."""
        return json.loads((self.folder / MANIFEST).read_text(encoding="utf-8"))

    @property
    def data(self) -> Path:
        """Its labelled data."""
        return self.folder / DATA

    def damaged(self) -> list[str]:
        """The files whose bytes are not those that were written, or that are gone or new."""
        if not self._is_sealed():
            return [MANIFEST]
        expected = {name: entry["sha256"] for name, entry in self.manifest["files"].items()}
        found = {name for name, _ in walk(self.folder)} - {MANIFEST}
        changed = [
            name for name in expected if name in found and file_digest(self.folder / name) != expected[name]
        ]
        return sorted({*changed, *(expected.keys() ^ found)})

    def _is_sealed(self) -> bool:
        """Whether the manifest is as it was written."""
        try:
            manifest = json.loads((self.folder / MANIFEST).read_text(encoding="utf-8"))
        except ValueError:
            return False
        return manifest.pop("seal", None) == digest(manifest)


class Store:
    """Artifacts below one root. Nothing in it is ever overwritten."""

    def __init__(self, root: Path | None = None) -> None:
        """Open the store at ``root`` (the default one if None); it may not exist yet."""
        self.root = Path(root) if root is not None else default_root()

    @property
    def memory(self) -> Path:
        """What is remembered of data outside the store."""
        return self.root / ".fingerprints"

    # --- finding

    def artifact(self, step: str, key: str) -> Stored:
        """The place of an artifact, whether it is there or not."""
        return Stored(step, key, self.root / step / key)

    def has(self, step: str, key: str) -> bool:
        """Whether the artifact is there, whole."""
        return (self.root / step / key / MANIFEST).exists()

    def keys(self, step: str) -> set[str]:
        """Keys of the step's artifacts, by one listing of its folder."""
        folder = self.root / step
        if not folder.is_dir():
            return set()
        return {entry.name for entry in os.scandir(folder) if (folder / entry.name / MANIFEST).exists()}

    def __iter__(self) -> Iterator[Stored]:
        """All artifacts, by step and key."""
        if not self.root.is_dir():
            return
        for folder in sorted(path for path in self.root.iterdir() if path.is_dir() and path.name[0] != "."):
            yield from (self.artifact(folder.name, key) for key in sorted(self.keys(folder.name)))

    def find(self, prefix: str) -> list[Stored]:
        """Artifacts whose key, or step/key, starts with ``prefix``."""
        step, _, key = prefix.rpartition("/")
        return [found for found in self if found.key.startswith(key) and step in ("", found.step)]

    # --- making

    def lock(self, key: str, on_wait: Callable[[Owner], None]) -> Lock:
        """The lock of an artifact."""
        return Lock(self.root / ".locks" / key, on_wait)

    def partial(self, key: str) -> Path:
        """The folder where an artifact is being made."""
        folder = self.root / ".partial" / key
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def commit(self, step: str, key: str, made: Path, manifest: Mapping[str, Any]) -> Stored:
        """Move a finished artifact from ``made`` to its place, in one rename, and drop its partial folder."""
        for left in made.glob(f"*{MANIFEST}*"):  # of a commit that was cut short
            left.unlink()
        files = dict(_hashed(made))
        held = {"digest": _digest_of(files), "files": files}
        full = {**manifest, "step": step, "key": key, **held, "engine": ENGINE}
        write_json(made / MANIFEST, {**full, "seal": digest(full)})
        target = self.root / step / key
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and not self.has(step, key):  # left by a copying of stores that was broken off
            self._drop(target)
        made.rename(target)
        sync(target.parent)
        if "computation" in full and "linked_from" not in full:
            self._remember(full["computation"], step, key)
        shutil.rmtree(self.root / ".partial" / key, ignore_errors=True)
        return self.artifact(step, key)

    def _remember(self, computation: str, step: str, key: str) -> None:
        entry = self._computation(computation)
        entry.parent.mkdir(parents=True, exist_ok=True)
        write_json(entry, {"step": step, "key": key})

    def _computation(self, computation: str) -> Path:
        return self.root / ".computations" / computation[:2] / computation[2:]

    def outcome(self, computation: str) -> Stored | None:
        """The artifact that holds the outcome of a computation done before, if it is there and undamaged."""
        entry = self._computation(computation)
        if not entry.exists():
            return None
        place = json.loads(entry.read_text(encoding="utf-8"))
        if not self.has(place["step"], place["key"]):
            return None
        found = self.artifact(place["step"], place["key"])
        return None if found.damaged() else found

    def save_code(self, code: str, definitions: Callable[[], Mapping[str, Any]]) -> None:
        """Keep the definitions behind a code digest, for ``why``."""
        file = self.root / ".code" / f"{code}.json"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, definitions())

    def code(self, code: str) -> dict[str, dict[str, str]]:
        """The definitions behind a code digest."""
        return json.loads((self.root / ".code" / f"{code}.json").read_text(encoding="utf-8"))

    # --- removing

    def remove(self, artifact: Stored) -> None:
        """Remove an artifact."""
        self._drop(artifact.folder)

    def _drop(self, folder: Path) -> None:
        """Remove a folder: out of readers' sight in one rename, then for good."""
        aside = self.root / ".partial" / f"removed-{uuid.uuid4().hex}"
        aside.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(aside)
        shutil.rmtree(aside)

    def forget_gone(self) -> None:
        """Forget computations whose artifact is gone."""
        for entry in (self.root / ".computations").glob("??/*"):
            place = json.loads(entry.read_text(encoding="utf-8"))
            if not self.has(place["step"], place["key"]):
                entry.unlink()


def walk(folder: Path) -> Iterator[tuple[str, Path]]:
    """Every file below ``folder`` with its relative POSIX path, sorted."""
    found = (
        (str(PurePosixPath(path.relative_to(folder))), path) for path in folder.rglob("*") if path.is_file()
    )
    return iter(sorted(found))


def content_digest(folder: Path) -> str:
    """The digest that an artifact with the files of ``folder`` has."""
    return _digest_of(dict(_hashed(folder)))


def _digest_of(files: Mapping[str, Mapping[str, Any]]) -> str:
    return digest({name: entry["sha256"] for name, entry in files.items()})


def _hashed(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, path in walk(folder):
        sync(path)
        yield name, {"sha256": file_digest(path), "size": path.stat().st_size}


def sync(path: Path) -> None:
    """Have the filesystem write ``path`` to disk, so that a rename never outlives what it names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(file: Path, value: Any) -> None:
    """Write JSON for people to read, in one move."""
    unfinished = file.with_name(f".{file.name}.{os.getpid()}")
    unfinished.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    sync(unfinished)
    unfinished.replace(file)


def no_space(error: BaseException | None) -> bool:
    """Whether an error comes of a full disk, however deep below the error of a library."""
    if error is None:
        return False
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    told = os.strerror(errno.ENOSPC) in str(error)  # by a library that is not written in Python
    return full or told or no_space(error.__cause__ or error.__context__)


def link_tree(source: Path, target: Path) -> None:
    """The files of ``source`` once more below ``target``, as hard links where the filesystem has them."""

    def link(old: str, new: str) -> None:
        try:
            os.link(old, new)
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            shutil.copy2(old, new)

    shutil.copytree(source, target, copy_function=link, ignore=shutil.ignore_patterns(MANIFEST))
