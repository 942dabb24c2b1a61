"""Sparse codes: which latents fire on which tokens of an image, and how strongly.

The codes of an image are a list of entries (token, latent, activation) in the order of tokens and then of
latents, padded to the length of the longest list with the token and the latent −1 and the activation 0. Lists
are by image and not by token, because tokens differ far more in L0 than images do (CLS against patches, one
token with a thousand times the norm of others): padding by token would be most of the data.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xarray as xr
from jaxtyping import Float, Int

from prisma_steps.schema import label
from prisma_steps.step import StepError

#: Token and latent of an entry that is none.
PADDING = -1

_ENTRY = np.dtype([("token", "<i4"), ("latent", "<i4"), ("activation", "<f4")])

#: Variables of codes, by the field of an entry that they hold.
VARIABLES = {"token": "entry_token", "latent": "entry_latent", "activation": "activation"}

#: Bytes of one entry.
ENTRY_BYTES = _ENTRY.itemsize


class Entries(NamedTuple):
    """What fires, image by image, tokens and latents rising within each."""

    image: Int[np.ndarray, " entry"]
    token: Int[np.ndarray, " entry"]
    latent: Int[np.ndarray, " entry"]
    activation: Float[np.ndarray, " entry"]


class Spool:
    """Entries of one image after another in a file of their own, until it is known how many there are.

    A spool that is opened again goes on after the last block of images that was added whole. In memory it
    takes 8 bytes an image.

    Attributes:
        block: images that are added at once; the last block may be shorter.
        done: images added so far.
        per_image: entries of each image, 0 of those that are still to come.
    """

    def __init__(self, folder: Path, n_images: int, n_tokens: int, block: int) -> None:
        """Open the spool in ``folder``, which may hold what an interrupted job left."""
        folder.mkdir(parents=True, exist_ok=True)
        self._entries, self._counts, self._done = (folder / name for name in ("entries", "counts", "done"))
        for file in (self._entries, self._counts):
            file.touch()
        self._n_tokens = n_tokens
        self.block = block
        self.done = int(self._done.read_text()) if self._done.exists() else 0
        self.per_image: Int[np.ndarray, " image"] = np.zeros(n_images, np.int64)
        for where in blocks_of_images(self.done, block):
            self.per_image[where] = self._counts_of(where).sum(1)
        os.truncate(self._counts, self.done * 4 * n_tokens)
        os.truncate(self._entries, int(self.per_image.sum()) * ENTRY_BYTES)

    def add(self, entries: Entries) -> None:
        """Add the next block, the first image of which is image 0 of ``entries``."""
        n_images = min(self.block, len(self.per_image) - self.done)
        rows = np.empty(len(entries.token), _ENTRY)
        for name in VARIABLES:
            rows[name] = getattr(entries, name)
        counts = np.zeros((n_images, self._n_tokens), "<i4")
        np.add.at(counts, (entries.image, entries.token), 1)
        # First all of it to the disk, then the note of it: the rest is cut off when the spool is opened.
        for file, values in ((self._entries, rows), (self._counts, counts)):
            with file.open("ab") as opened:
                opened.write(values.tobytes())
                opened.flush()
                os.fsync(opened.fileno())
        self.per_image[self.done : self.done + n_images] = counts.sum(1)
        self.done += n_images
        unfinished = self._done.with_suffix(".unfinished")
        unfinished.write_text(str(self.done))
        unfinished.replace(self._done)

    def _counts_of(self, where: slice) -> Int[np.ndarray, "image token"]:
        size, row = where.stop - where.start, self._n_tokens
        return np.fromfile(self._counts, "<i4", size * row, offset=where.start * row * 4).reshape(size, row)

    def read(self, where: slice, width: int) -> xr.Dataset:
        """The codes of some images, padded to ``width`` entries, at least those of each of them."""
        where = slice(where.start, min(where.stop, len(self.per_image)))
        before, here = int(self.per_image[: where.start].sum()), self.per_image[where]
        rows = np.fromfile(self._entries, _ENTRY, int(here.sum()), offset=before * ENTRY_BYTES)
        there = np.arange(width) < here[:, None]
        data = {"n_active": (("image", "token"), self._counts_of(where))}
        for field, name in VARIABLES.items():
            padded = np.full(there.shape, 0 if field == "activation" else PADDING, _ENTRY[field])
            padded[there] = rows[field]
            data[name] = (("image", "entry"), padded)
        return xr.Dataset(data)


def entries_of(
    entry_token: Int[np.ndarray, "image slot"],
    entry_latent: Int[np.ndarray, "image slot"],
    activation: Float[np.ndarray, "image slot"],
    wanted: Sequence[int] | Int[np.ndarray, " wanted"] | None = None,
) -> Entries:
    """Padded codes as one list without padding, of the latents ``wanted`` (None = all)."""
    # Not "other than padding": where a grid of dictionaries is one Dataset, what is missing is NaN.
    there = entry_latent >= 0
    if wanted is not None:
        there &= np.isin(entry_latent, wanted)
    image, slot = np.nonzero(there)
    token, latent = (values[image, slot].astype(np.int64) for values in (entry_token, entry_latent))
    return Entries(image, token, latent, activation[image, slot].astype(np.float32))


def dense_latents(codes: xr.Dataset, latents: Sequence[int]) -> xr.DataArray:
    """Activations of some latents of a dictionary: ``codes`` made dense, lazily where they are dask arrays.

    Args:
        codes: a ``Codes`` Dataset, or some of its images.
        latents: numbers of latents.

    Returns:
        [image, token, latent], 0 where a latent does not fire. In memory it takes 4 bytes for each image,
        token and latent that is asked for.

    Raises:
        StepError: for a latent that the dictionary does not have.
    """
    n_latents, numbers = int(codes["n_latents"]), np.asarray(latents, dtype=np.int64)
    strange = numbers[(numbers < 0) | (numbers >= n_latents)]
    if len(strange):
        raise StepError(f"no latent {strange[0]}: the dictionary has latents 0 to {n_latents - 1}")
    given = [codes[name] for name in VARIABLES.values()]
    made = xr.apply_ufunc(
        _dense,
        *(part if part.chunks is None else part.chunk(entry=-1) for part in given),
        kwargs={"n_tokens": codes.sizes["token"], "latents": numbers},
        input_core_dims=[["entry"]] * 3,
        output_core_dims=[["token", "latent"]],
        output_dtypes=[np.float32],
        dask="parallelized",
        dask_gufunc_kwargs={"output_sizes": {"token": codes.sizes["token"], "latent": len(numbers)}},
    )
    along_token = {name: coord for name, coord in codes.coords.items() if coord.dims == ("token",)}
    return label(made.assign_coords({**along_token, "latent": numbers}).to_dataset(name="activation"))[
        "activation"
    ]


def _dense(
    entry_token: Int[np.ndarray, "image slot"],
    entry_latent: Int[np.ndarray, "image slot"],
    activation: Float[np.ndarray, "image slot"],
    n_tokens: int,
    latents: Int[np.ndarray, " latent"],
) -> Float[np.ndarray, "image token latent"]:
    entries = entries_of(entry_token, entry_latent, activation, latents)
    once, places = np.unique(latents, return_inverse=True)
    dense = np.zeros((len(entry_token), n_tokens, len(once)), np.float32)
    dense[entries.image, entries.token, np.searchsorted(once, entries.latent)] = entries.activation
    return dense[:, :, places]


def blocks_of_images(n_images: int, size: int, start: int = 0) -> Iterator[slice]:
    """Slices of ``size`` images from ``start`` on, the last of which may be shorter."""
    return (slice(first, min(first + size, n_images)) for first in range(start, n_images, size))
