"""Files that each hold one image or one clip: found in a folder, read on several threads, checked."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
from jaxtyping import Bool, Integer, UInt8, UInt64

from prisma_steps.data.listing import walk
from prisma_steps.data.source import ImageSource
from prisma_steps.job import Job
from prisma_steps.step import StepError

#: Files checked between two reports of progress.
_BATCH = 256


class BrokenFile(ValueError):
    """A file that cannot be read. The message says why, and holds no path of this computer."""


class Reader(Protocol):
    """How one image or clip is read. The fields of a reader are its settings.

    Attributes:
        dataset: the data set's name.
        shape: ([frame,] channel, row, column) of what is read.
    """

    dataset: ClassVar[str]

    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102

    def read(self, path: Path) -> UInt8[np.ndarray, "..."]:
        """The pixels of a file, 0 to 255; raises ``BrokenFile``."""
        ...


@dataclass(frozen=True)
class Files:
    """Files below a folder, each of them one image or clip.

    Attributes:
        names: paths below ``root``, ``/`` between their parts.
        threads: how many files are decoded at once.
        foreign: those of the names whose ending is that of no image.
    """

    root: Path
    names: Sequence[str]
    reader: Reader
    threads: int = 1
    foreign: frozenset[str] = field(default_factory=frozenset)

    def read(
        self, index: Integer[np.ndarray, " image"], expected: UInt64[np.ndarray, " image"] | None = None
    ) -> UInt8[np.ndarray, "image ..."]:
        """The pixels of some files, which must hash to what is expected of each.

        Raises:
            BrokenFile: naming the first file that cannot be read, or is not as expected.
        """
        pixels = np.empty((len(index), *self.reader.shape), dtype=np.uint8)

        def place(at: int) -> None:
            pixels[at] = self._read(int(index[at]))
            if expected is not None and pixel_hash(pixels[at]) != expected[at]:
                raise BrokenFile(
                    f"{self.names[int(index[at])]}: its pixels are others than when it was loaded"
                )

        with ThreadPoolExecutor(self.threads) as pool:
            list(pool.map(place, range(len(index))))
        return pixels

    def hashes(self, index: Integer[np.ndarray, " image"]) -> list[int | BrokenFile]:
        """For each file the hash of its pixels, or why it cannot be read."""

        def attempt(number: int) -> int | BrokenFile:
            try:
                return pixel_hash(self._read(number))
            except BrokenFile as error:
                return error

        with ThreadPoolExecutor(self.threads) as pool:
            return list(pool.map(attempt, index.tolist()))

    def _read(self, number: int) -> UInt8[np.ndarray, "..."]:
        name = self.names[number]
        try:
            return self.reader.read(self.root / name)
        except BrokenFile as error:
            raise BrokenFile(f"{name}: {error}") from error

    def read_or_report(self, index: Integer[np.ndarray, " image"]) -> UInt8[np.ndarray, "image ..."]:
        """The pixels of some files.

        Raises:
            StepError: naming every file of the folder that cannot be read, not only the first one met.
        """
        try:
            return self.read(index)
        except BrokenFile as error:
            found = self.hashes(np.arange(len(self.names)))
            raise self.refusal(
                [str(each) for each in found if isinstance(each, BrokenFile)], len(found)
            ) from error

    def refusal(self, reasons: Sequence[str], count: int) -> StepError:
        """The error that names all of the broken files among ``count``."""
        head = f"{self.reader.dataset}: {len(reasons)} of {count:,} files cannot be read:"
        return StepError("\n".join([head, *(f"  {reason}" for reason in reasons)]))


def pixel_hash(pixels: UInt8[np.ndarray, "..."]) -> int:
    """The first 64 bits of the SHA-256 of an image's pixels."""
    return int.from_bytes(hashlib.sha256(np.ascontiguousarray(pixels).data).digest()[:8], "little")


@dataclass(frozen=True)
class Checked:
    """What a check of files found.

    Attributes:
        whole: which of them can be read.
        hashes: ``pixel_hash`` of each of those.
        broken: what is wrong with each of the others, its name first.
    """

    whole: Bool[np.ndarray, " image"]
    hashes: UInt64[np.ndarray, " whole"]
    broken: dict[str, str]


def check(files: Files, index: Integer[np.ndarray, " image"], job: Job) -> Checked:
    """Decode each of these files once, going on where an interrupted job was."""
    state = job.checkpoint.load() or {"hashes": [], "broken": {}}
    hashes, broken = state["hashes"], state["broken"]
    for start in range(len(hashes), len(index), _BATCH):
        job.progress(start, len(index), "files checked")
        batch = index[start : start + _BATCH]
        for number, found in zip(batch.tolist(), files.hashes(batch), strict=True):
            if isinstance(found, BrokenFile):
                broken[files.names[number]] = str(found)
            hashes.append(None if isinstance(found, BrokenFile) else found)
        if job.checkpoint.due():
            job.checkpoint.save(state)
    whole = np.array([found is not None for found in hashes], dtype=bool)
    kept = np.array([found for found in hashes if found is not None], dtype=np.uint64)
    return Checked(whole, kept, dict(sorted(broken.items())))


def names_below(root: Path, dataset: str) -> list[str]:
    """Paths of the files below ``root``, sorted.

    Raises:
        StepError: when there is no such folder, or links lead out of it.
    """
    if not root.is_dir():
        raise StepError(f"{dataset}: {str(root)!r} is not a folder. Set `path` to the folder that is meant.")
    found = sorted(walk(root), key=lambda each: each[0])
    inside = root.resolve()
    leaving = [
        name
        for name, entry in found
        if entry.is_symlink() and not Path(entry.path).resolve().is_relative_to(inside)
    ]
    if leaving:
        raise StepError(
            f"{dataset}: links that lead out of the folder: {', '.join(leaving)}. Content outside "
            "the folder is not part of its fingerprint: replace the links with the files."
        )
    return [name for name, entry in found if not (entry.is_symlink() and entry.is_dir())]


def files_source(files: Files, what: str) -> ImageSource:
    """Files as images, whose ids are their names and whose classes are the first folders of their paths.

    Raises:
        StepError: when some lie in class folders and others do not.
    """
    names = np.array(files.names)
    class_names = _classes(files, what)
    labels = {} if class_names is None else {"label": _labels(files.names, class_names)}
    return ImageSource(
        count=len(names),
        shape=files.reader.shape,
        class_names=class_names,
        coords=lambda index: {"image": names[index], **{name: of[index] for name, of in labels.items()}},
        pixels=files.read_or_report,
        files=files,
    )


def _classes(files: Files, what: str) -> tuple[str, ...] | None:
    """Names of the classes in alphabetical order, or None when everything lies in the folder itself."""
    beside = [name for name in files.names if "/" not in name]
    if len(beside) == len(files.names):
        return None
    if beside:
        raise StepError(
            f"{files.reader.dataset}: {len(beside)} of {len(files.names)} {what} lie beside the class "
            f"folders ({beside[0]!r}). Put all {what} into class folders, or all into the folder itself."
        )
    return tuple(sorted({_class(name) for name in files.names}))


def _labels(names: Sequence[str], classes: Sequence[str]) -> Integer[np.ndarray, " image"]:
    number = {name: place for place, name in enumerate(classes)}
    return np.array([number[_class(name)] for name in names])


def _class(name: str) -> str:
    return name.partition("/")[0]
