"""Tokens of stored activations, read section by section of the images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from jaxtyping import Int, Shaped
from torch import Tensor

from prisma_steps.sae.tokens import chosen_tokens
from prisma_steps.step import StepError

Tables = tuple[Shaped[Tensor, "token *layer_d_model"], ...]

#: So much of what is stored is read at once: long enough to be read fast, short enough that the many sections
#: of a group are from all over the data.
_SECTION_BYTES = 2**23


class StoredTokens:
    """The chosen tokens of one or several variables: the input of a dictionary and, if another, its target.

    Attributes:
        n_images: images stored.
        tokens_per_image: chosen tokens of each.
        section_images: images that are read at once. A power of two, as batches and with them the shards of
            activations mostly are; it depends on the shape of the data alone, not on how they lie on disk.
    """

    def __init__(self, variables: Sequence[xr.DataArray], tokens: str) -> None:
        """Tokens to be read from ``variables``.

        Args:
            variables: opened lazily, along image, token, one more dim, and layer where several are read.
            tokens: "all", or a token kind.

        Raises:
            StepError: when the variables are not of the same images and tokens, or hold no such token.
        """
        first = variables[0]
        for other in variables[1:]:
            _check_same_tokens(first, other)
        self._variables = variables
        chosen = np.flatnonzero(chosen_tokens(first["token_kind"].values, tokens))
        self._chosen = _as_slice(chosen)
        self.n_images = first.sizes["image"]
        self.tokens_per_image = len(chosen)
        per_image = sum(values.nbytes for values in variables) // self.n_images
        self.section_images = 2 ** max(0, int(math.log2(_SECTION_BYTES / per_image)))

    def __len__(self) -> int:
        """Tokens in all."""
        return self.n_images * self.tokens_per_image

    def room(self, n_tokens: int, *, pinned: bool = False) -> Tables:
        """A table of so many tokens for each variable, not filled; pinned if a GPU is to fetch it itself."""
        tables = []
        for values in self._variables:
            dtype = torch.from_numpy(np.empty(0, values.dtype)).dtype
            shape = [values.sizes[dim] for dim in _in_order(values)[2:]]
            tables.append(torch.empty((n_tokens, *shape), dtype=dtype, pin_memory=pinned))
        return tuple(tables)

    def read(self, images: slice, into: Tables) -> None:
        """Read the chosen tokens of ``images`` into tables of just as many rows.

        Raises:
            StepError: when they cannot be read.
        """
        for values, table in zip(self._variables, into, strict=True):
            # Chosen after reading: Zarr reads scattered tokens an order of magnitude slower than all of them.
            rows = _read(values, images)[:, self._chosen]
            table.numpy().reshape(rows.shape)[...] = rows


def _as_slice(index: Int[np.ndarray, " index"]) -> slice | Int[np.ndarray, " index"]:
    """A slice if that says the same: it takes no copy."""
    first, last = int(index[0]), int(index[-1])
    return slice(first, last + 1) if last - first + 1 == len(index) else index


def _read(values: xr.DataArray, images: slice) -> Shaped[np.ndarray, "image token ..."]:
    try:
        part = values.variable.isel(image=images).values
    except Exception as error:
        raise StepError(
            f"{values.name}: images {images.start} to {images.stop - 1} cannot be read: {error}. "
            "`prisma-steps verify` finds artifacts that are damaged"
        ) from error
    # Transposed after reading: xarray reads lazy data that were transposed element by element.
    return part.transpose([values.dims.index(dim) for dim in _in_order(values)])


def _in_order(values: xr.DataArray) -> list[str]:
    """The dims of ``values``, image and token first."""
    return ["image", "token", *(str(dim) for dim in values.dims if dim not in ("image", "token"))]


def _check_same_tokens(first: xr.DataArray, other: xr.DataArray) -> None:
    for name in ("image", "token_kind"):
        if not np.array_equal(first[name].values, other[name].values):
            raise StepError(
                f"{first.name} and {other.name} do not have the same {name}s: a dictionary of both needs "
                "them of the same images and tokens"
            )
