"""A folder of image files; the first folder below it, where there is one, is an image's class."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image, ImageOps

from prisma_steps.data.source import ImageSource
from prisma_steps.step import StepError

#: What Pillow raises for a file that is no image, one cut short, and one too large to be meant.
_BROKEN = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)

#: Pixel formats that lose their range when they are made 8 bits a channel.
_WIDE = ("I", "F")


def source(folder: str, size: int) -> ImageSource:
    """The images of a folder, in the order of their paths, as RGB of ``size`` × ``size``.

    An image is turned upright as its EXIF data say, resized (bicubic) so that its shorter side is ``size``,
    and cut to the square in the middle. Ids are paths below the folder with ``/`` between their parts. Names
    that begin with a dot are passed over.

    Raises:
        StepError: when the folder is missing or holds no file, when a link leads out of it, when some images
            lie in class folders and others do not, and, as pixels are read, for files that are no images.
    """
    root = Path(folder)
    ids = sorted(_files(root))
    if not ids:
        raise StepError(f"image_folder: no image in {folder!r}: it must hold image files or folders of them.")
    classes = _classes(ids)
    names = np.array(ids)
    labels = {} if classes is None else {"label": _labels(ids, classes)}
    return ImageSource(
        count=len(ids),
        shape=(3, size, size),
        class_names=classes,
        coords=lambda index: {"image": names[index], **{name: of[index] for name, of in labels.items()}},
        pixels=lambda index: _read_all(root, ids, index, size),
    )


def _files(root: Path) -> Iterator[str]:
    """Paths of the files below ``root``; links to folders inside it are not followed twice."""
    if not root.is_dir():
        raise StepError(f"image_folder: {str(root)!r} is not a folder. Set `path` to a folder of images.")
    leaving = []
    for folder, below, files in os.walk(root):
        below[:] = [name for name in below if not name.startswith(".")]
        for name in [*below, *files]:
            path = Path(folder, name)
            if path.is_symlink() and not path.resolve().is_relative_to(root.resolve()):
                leaving.append(path.relative_to(root).as_posix())
        yield from (
            Path(folder, name).relative_to(root).as_posix() for name in files if not name.startswith(".")
        )
    if leaving:
        raise StepError(
            f"image_folder: links that lead out of the folder: {', '.join(sorted(leaving))}. Content outside "
            "the folder is not part of its fingerprint: replace the links with the files."
        )


def _classes(ids: Sequence[str]) -> tuple[str, ...] | None:
    """Names of the classes in alphabetical order, or None when every image lies in the folder itself."""
    beside = [name for name in ids if "/" not in name]
    if len(beside) == len(ids):
        return None
    if beside:
        raise StepError(
            f"image_folder: {len(beside)} of {len(ids)} images lie beside the class folders ({beside[0]!r}). "
            "Put every image into a class folder, or all of them into the folder itself."
        )
    return tuple(sorted({PurePosixPath(name).parts[0] for name in ids}))


def _labels(ids: Sequence[str], classes: Sequence[str]) -> Integer[np.ndarray, " image"]:
    number = {name: place for place, name in enumerate(classes)}
    return np.array([number[PurePosixPath(name).parts[0]] for name in ids])


def _read_all(
    root: Path, ids: Sequence[str], index: Integer[np.ndarray, " image"], size: int
) -> UInt8[np.ndarray, "image channel row column"]:
    try:
        chosen = [ids[int(number)] for number in index]
        return np.stack([_read(root / name, size) for name in chosen])
    except _BROKEN as error:
        raise StepError(_report(root, ids, size)) from error


def _report(root: Path, ids: Sequence[str], size: int) -> str:
    """A message on every file of the folder that cannot be read, not only on the first one met."""
    problems = []
    for name in ids:
        try:
            _read(root / name, size)
        except _BROKEN as error:
            problems.append(f"  {name}: {_reason(error)}")
    return "\n".join(
        [f"image_folder: {len(problems)} of {len(ids)} files are no images that can be read:", *problems]
    )


def _reason(error: Exception) -> str:
    """Why a file cannot be read, in words that hold no path of this computer."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image file"
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def _read(file: Path, size: int) -> UInt8[np.ndarray, "channel row column"]:
    with Image.open(file) as image:
        if image.mode.startswith(_WIDE):
            raise ValueError(f"{image.mode} pixels do not fit 8 bits a channel; convert the file first")
        upright = ImageOps.exif_transpose(image).convert("RGB")
    square = ImageOps.fit(upright, (size, size), Image.Resampling.BICUBIC)
    return np.asarray(square).transpose(2, 0, 1)
