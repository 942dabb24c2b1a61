"""What a model takes: images or clips, as they are stored or as its weights want them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
import xarray as xr
from jaxtyping import UInt8
from torch import Tensor

from prisma_steps.data.pixels import raw_batch
from prisma_steps.models.families import find, sides
from prisma_steps.models.structure import Structure
from prisma_steps.step import StepError

#: Images, or clips: as the model takes them, or with labels, as they are stored (``pixels``, 0 to 255).
Pixels: TypeAlias = Tensor | xr.Dataset | xr.DataArray


class InputError(StepError):
    """Pixels that the model does not take."""


class Inputs(Structure):
    """A model, and how images become the arguments of its forward pass."""

    def preprocess(self, raw: UInt8[Tensor, "image *frame channel row column"]) -> Tensor:
        """Pixels as they are stored, 0 to 255, as the model takes them: where and of what its weights are.

        Raises:
            InputError: for images or clips that the model is not made for.
        """
        self.check_images(raw.shape[1:])
        raw = raw.to(self.device)
        pixels = raw.float() / 255 if self.preprocessing is None else self.preprocessing(raw)
        return pixels.to(self.dtype)

    def check_images(self, shape: Sequence[int]) -> None:
        """Refuse images or clips [(frame,) channel, row, column] that ``preprocess`` makes no input of.

        Raises:
            InputError: naming what they are and what is expected.
        """
        found, (*before, channels, rows, columns) = tuple(shape), self.input_shape
        accepted = {channels} if self.preprocessing is None else {channels, 1}
        fits = list(found[:-3]) == before and found[-3] in accepted
        if fits and (self.preprocessing is not None or found[-2:] == (rows, columns)):
            return
        size = f"{rows} × {columns} pixels" if self.preprocessing is None else "any size"
        colours = " or ".join(str(number) for number in sorted(accepted))
        kind = f"clips of {before[0]} frames" if before else "still images"
        given = f"clips of {found[0]} frames" if len(found) == 4 else "still images"
        raise InputError(
            f"these are {given} of {found[-3]} channels and {found[-2]} × {found[-1]} pixels; the model "
            f"takes {kind} of {colours} channels and {size}"
        )

    def _as_pixels(self, pixels: Pixels) -> Tensor:
        """A tensor as it is; labelled images as ``preprocess`` makes them.

        Raises:
            InputError: for images that the model is not made for, or that are not as they are stored.
        """
        if isinstance(pixels, Tensor):
            return pixels
        images = pixels.to_dataset(name="pixels") if isinstance(pixels, xr.DataArray) else pixels
        if "pixels" not in images or images["pixels"].dtype != np.uint8:
            found = str(images["pixels"].dtype) if "pixels" in images else f"{list(images.data_vars)} alone"
            raise InputError(
                f"labelled images must have `pixels` of uint8, 0 to 255, these have {found}. What the model "
                "takes as it is, give as a tensor"
            )
        return self.preprocess(raw_batch(images, slice(None)))

    def _blank(self, shape: Sequence[int] | None) -> Tensor:
        """One image for all: positions are made of the input's shape alone."""
        return torch.zeros((1, *(shape or self.input_shape)), dtype=self.dtype, device=self.device)

    def _inputs(self, pixels: Tensor) -> dict[str, Any]:
        """The arguments of the model's forward pass.

        Raises:
            InputError: for pixels of a shape that the model does not take.
        """
        self._check_input(pixels)
        inputs = {self.input_name: pixels, **self.family.inputs}
        accepted = {name: value for name, value in inputs.items() if name in self.parameters}
        if (
            tuple(pixels.shape[-2:]) != self.configured_shape[-2:]
            and "interpolate_pos_encoding" in self.parameters
        ):
            accepted["interpolate_pos_encoding"] = True
        return accepted

    def _check_input(self, pixels: Tensor) -> None:
        """Refuse pixels of another shape, unless the model can make positions for theirs.

        Raises:
            InputError: naming both shapes.
        """
        expected, found = self.configured_shape, tuple(pixels.shape[1:])
        if found == expected:
            return
        dims = "(frame, channel, row, column)" if self.is_video else "(channel, row, column)"
        stretches = self.family.any_size(self.config) or "interpolate_pos_encoding" in self.parameters
        if len(found) != len(expected) or found[:-2] != expected[:-2] or not stretches:
            kind = "clips" if self.is_video else "images"
            raise InputError(
                f"pixels have shape {tuple(pixels.shape)}; the model takes {kind}, (image, *{dims}) with "
                f"{dims} = {expected}"
            )
        patch = sides(find(self.config, self.family.patch_size))
        if any(side % size for side, size in zip(found[-2:], patch, strict=True)):
            raise InputError(f"images of {found[-2]} × {found[-1]} pixels are no whole patches of {patch}")
