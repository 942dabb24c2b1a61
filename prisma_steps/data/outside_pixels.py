"""Pixels that stay in their files: read and decoded when they are indexed, and only those.

An artifact of such images holds in their place ``pixel_hash``, by which nothing else is ever served in their
stead, and as an attribute how they are read. Where the folder is, the store knows: see ``execution.py``.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Integer, UInt64
from xarray.backends.common import BackendArray
from xarray.core import indexing

from prisma_steps.data.files import BrokenFile, Files, Reader
from prisma_steps.data.source import image_dims
from prisma_steps.schema import label
from prisma_steps.step import StepError

#: The attribute that says how pixels are read: the data set and the settings of its reader.
READ_AS = "pixels_read_as"


def read_as(reader: Reader) -> dict[str, Any]:
    """A reader as plain data."""
    return {"dataset": reader.dataset, **asdict(reader)}  # pyright: ignore[reportArgumentType]


def _reader(settings: dict[str, Any]) -> Reader:
    from prisma_steps.data.image_folder import ImageFile
    from prisma_steps.data.video import ClipFile

    kinds: dict[str, Any] = {ImageFile.dataset: ImageFile, ClipFile.dataset: ClipFile}
    fields = {name: value for name, value in settings.items() if name != "dataset"}
    return kinds[settings["dataset"]](**fields)


def are_outside(data: xr.Dataset) -> bool:
    """Whether the pixels of an artifact are not in the store."""
    return READ_AS in data.attrs


def detach(data: xr.Dataset) -> xr.Dataset:
    """``data`` as it is stored."""
    return data.drop_vars("pixels") if are_outside(data) else data


def attach(data: xr.Dataset, folder: Path, threads: int = 1) -> xr.Dataset:
    """``data`` with ``pixels``, which are read from ``folder`` when they are indexed."""
    reader = _reader(data.attrs[READ_AS])
    files = Files(folder, data["image"].values.tolist(), reader, threads)
    pixels = indexing.LazilyIndexedArray(FilePixels(files, data["pixel_hash"].values))
    return label(data.assign(pixels=xr.Variable(("image", *image_dims(reader.shape)), pixels)))


class FilePixels(BackendArray):
    """The pixels of files, to be wrapped for lazy indexing."""

    def __init__(self, files: Files, expected: UInt64[np.ndarray, " image"]) -> None:
        """``expected`` is the ``pixel_hash`` of every file."""
        self.files = files
        self.expected = expected
        self.shape = (len(files.names), *files.reader.shape)
        self.dtype = np.dtype(np.uint8)

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        """Read and decode the images that ``key`` names, and cut its part out of them."""
        support = indexing.IndexingSupport.OUTER
        return indexing.explicit_indexing_adapter(key, self.shape, support, self._outer)

    def _outer(self, key: tuple[Any, ...]) -> np.ndarray:
        chosen = np.arange(self.shape[0])[key[0]]
        pixels = self._read(np.atleast_1d(chosen))
        for axis in reversed(range(1, len(key))):
            pixels = pixels[(*(slice(None),) * axis, key[axis])]
        return pixels if np.ndim(chosen) else pixels[0]

    def _read(self, index: Integer[np.ndarray, " image"]) -> np.ndarray:
        try:
            return self.files.read(index, self.expected[index])
        except BrokenFile as error:
            raise StepError(
                f"{self.files.reader.dataset}: {error}. A file that was changed or removed makes other "
                "images: put it back as it was, or run the experiment again, which loads them anew."
            ) from error
