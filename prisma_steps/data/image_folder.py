"""A folder of image files; the first folder below it, where there is one, is an image's class."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import ClassVar

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from prisma_steps.data.files import BrokenFile, Files, files_source, names_below
from prisma_steps.data.source import ImageSource
from prisma_steps.step import StepError

#: What Pillow raises for a file that is no image, one cut short, and one too large to be meant.
_BROKEN = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)

#: Pixel formats that lose their range when they are made 8 bits a channel.
_WIDE = ("I", "F")


def source(folder: str, size: int, threads: int = 1) -> ImageSource:
    """The images of a folder, in the order of their paths, as RGB of ``size`` × ``size``.

    An image is turned upright as its EXIF data say, resized (bicubic) so that its shorter side is ``size``,
    and cut to the square in the middle. Ids are paths below the folder with ``/`` between their parts. Names
    that begin with a dot are passed over.

    Raises:
        StepError: when the folder is missing or holds no file, when a link leads out of it, when some images
            lie in class folders and others do not, and, as pixels are read, for files that are no images.
    """
    root = Path(folder)
    names = names_below(root, ImageFile.dataset)
    if not names:
        raise StepError(f"image_folder: no image in {folder!r}: it must hold image files or folders of them.")
    foreign = frozenset(name for name in names if not is_image_name(name))
    return files_source(Files(root, names, ImageFile(size), threads, foreign), "images")


def is_image_name(name: str) -> bool:
    """Whether the ending of a file's name is that of an image format."""
    return PurePosixPath(name).suffix.lower() in Image.registered_extensions()


@dataclass(frozen=True)
class ImageFile:
    """How an image file is read."""

    size: int
    dataset: ClassVar[str] = "image_folder"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channel, row, column)."""
        return (3, self.size, self.size)

    def read(self, path: Path) -> UInt8[np.ndarray, "channel row column"]:
        """The image upright, resized and cut to the square in its middle."""
        try:
            with Image.open(path) as image:
                if image.mode.startswith(_WIDE):
                    raise BrokenFile(
                        f"{image.mode} pixels do not fit 8 bits a channel; convert the file first"
                    )
                upright = ImageOps.exif_transpose(image).convert("RGB")
        except _BROKEN as error:
            raise BrokenFile(_reason(error)) from error
        return middle_square(upright, self.size)


def middle_square(image: Image.Image, size: int) -> UInt8[np.ndarray, "channel row column"]:
    """The square in the middle of an image, resized (bicubic) to ``size`` × ``size``."""
    square = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    return np.asarray(square).transpose(2, 0, 1)


def _reason(error: Exception) -> str:
    """Why a file cannot be read, in words that hold no path of this computer."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image file"
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
