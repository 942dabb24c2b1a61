"""dSprites (Matthey et al. 2017), generated: every combination of five factors of one white sprite on black.

What is published, and kept: 64 × 64 binary images; the factors, their values and their nesting order (shape
slowest, position y fastest), hence the number of every image; steps so wide that images differ; orientation
runs over [0, 2π] with both ends, so that its first and its last value alone draw the same image. What is not
published is the outline of the shapes in pixels. The geometry below is therefore ours: a pixel is white
where its centre lies in the shape; the three shapes have equal areas at equal scale, so that no count of
white pixels tells them apart; positions are one pixel apart and leave every sprite, at every scale and
orientation, wholly inside the frame.

Source: https://github.com/google-deepmind/dsprites-dataset
"""

from __future__ import annotations

from functools import cache
from math import pi, prod, sqrt
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Integer, UInt8

from prisma_steps.data.source import ImageSource

if TYPE_CHECKING:
    from collections.abc import Mapping

SIZE = 64
SHAPES = ("square", "ellipse", "heart")

#: Values of each factor, slowest first.
FACTORS: Mapping[str, np.ndarray] = {
    "shape": np.array(SHAPES),
    "scale": np.linspace(0.5, 1.0, 6),
    "orientation": np.linspace(0.0, 2 * pi, 40),
    "position_x": np.linspace(0.0, 1.0, 32),
    "position_y": np.linspace(0.0, 1.0, 32),
}
_SIZES = tuple(len(values) for values in FACTORS.values())
COUNT = prod(_SIZES)

#: Side of the square box that holds any sprite, and the point of it that the sprite turns about: off the
#: lattice's symmetries, so that no two of the 39 orientations of any sprite fall on the same pixels.
_BOX = 32
_CENTRE = 15.7

#: Every area is 21² pixels at scale 1. The heart is the sextic (x² + y² − 1)³ = x² y³, whose area is 3.6617.
_HALF_SIDE = 10.5
_SEMI_MAJOR = 15.4
_SEMI_MINOR = (2 * _HALF_SIDE) ** 2 / (pi * _SEMI_MAJOR)
_HEART = 2 * _HALF_SIDE / sqrt(3.6617)

Plane: TypeAlias = Float[np.ndarray, "scale orientation row column"]
Inside: TypeAlias = Bool[np.ndarray, "scale orientation row column"]


def latents(index: Integer[np.ndarray, " image"]) -> Integer[np.ndarray, "image factor"]:
    """Which value each factor takes in each image, in the order of ``FACTORS``.

    Raises:
        IndexError: when an index is not in [0, COUNT).
    """
    index = np.asarray(index)
    if index.size and (index.min() < 0 or index.max() >= COUNT):
        raise IndexError(f"dSprites has images 0 to {COUNT - 1}, asked for {index.min()} to {index.max()}")
    return np.stack(np.unravel_index(index, _SIZES), axis=-1)


def index(latents: Integer[np.ndarray, "image factor"]) -> Integer[np.ndarray, " image"]:
    """The number of each image: the inverse of ``latents``."""
    return np.asarray(np.ravel_multi_index(tuple(np.moveaxis(np.asarray(latents), -1, 0)), _SIZES))


def numbered(factors: Mapping[str, np.ndarray]) -> Integer[np.ndarray, " image"]:
    """The numbers of the images with these values of every factor: the inverse of ``factors``.

    Raises:
        ValueError: for a value that a factor does not take.
    """
    found = []
    for name, known in FACTORS.items():
        at = np.stack([_is(known, value) for value in np.asarray(factors[name])])
        if not at.any(1).all():
            raise ValueError(f"dSprites has no {name} {np.asarray(factors[name])[~at.any(1)][0]}")
        found.append(at.argmax(1))
    return index(np.stack(found, axis=-1))


def _is(known: np.ndarray, value: str | float) -> Bool[np.ndarray, " value"]:
    return known == value if known.dtype.kind == "U" else np.isclose(known, value)


def source() -> ImageSource:
    """The images in their published order, with the value of every factor; the class is the shape."""
    return ImageSource(
        count=COUNT,
        shape=(1, SIZE, SIZE),
        class_names=SHAPES,
        coords=_coords,
        pixels=lambda index: render(index)[:, None],
    )


def _coords(index: Integer[np.ndarray, " image"]) -> dict[str, np.ndarray]:
    return {
        "image": np.array([f"dsprites-{number:06d}" for number in index]),
        "label": latents(index)[:, 0],
        **factors(index),
    }


def factors(index: Integer[np.ndarray, " image"]) -> dict[str, np.ndarray]:
    """The value of every factor in each image, by name."""
    return {name: values[at] for (name, values), at in zip(FACTORS.items(), latents(index).T, strict=True)}


def render(index: Integer[np.ndarray, " image"]) -> UInt8[np.ndarray, "image row column"]:
    """Draw the images of these numbers, 0 or 255. Row 0 is the top; position y grows downwards."""
    shape, scale, orientation, x, y = latents(index).T
    pixels = np.zeros((len(x), SIZE, SIZE), dtype=np.uint8)
    boxes = np.lib.stride_tricks.sliding_window_view(pixels, (_BOX, _BOX), axis=(1, 2), writeable=True)
    boxes[np.arange(len(x)), y, x] = _sprites()[shape, scale, orientation]
    return pixels


@cache
def _sprites() -> UInt8[np.ndarray, "shape scale orientation row column"]:
    """The sprite of every shape, scale and orientation in its box."""
    scale = FACTORS["scale"][:, None, None, None]
    angle = (np.arange(40) % 39 * (2 * pi / 39))[:, None, None]  # 2π is 0 to the last bit
    down, right = np.mgrid[:_BOX, :_BOX] - _CENTRE
    x = (right * np.cos(angle) - down * np.sin(angle)) / scale
    y = (-right * np.sin(angle) - down * np.cos(angle)) / scale
    return np.stack([inside(x, y) for inside in (_in_square, _in_ellipse, _in_heart)]).astype(np.uint8) * 255


def _in_square(x: Plane, y: Plane) -> Inside:
    return np.maximum(np.abs(x), np.abs(y)) <= _HALF_SIDE


def _in_ellipse(x: Plane, y: Plane) -> Inside:
    return (x / _SEMI_MAJOR) ** 2 + (y / _SEMI_MINOR) ** 2 <= 1


def _in_heart(x: Plane, y: Plane) -> Inside:
    x, y = x / _HEART, y / _HEART
    return (x**2 + y**2 - 1) ** 3 <= x**2 * y**3
