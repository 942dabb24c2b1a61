"""Sprites of dSprites that move: the class is the direction, which no single frame tells.

The positions of dSprites are a torus of 32 × 32 places: a sprite that leaves it on one side comes in on the
other. Every clip of every direction starts at every place, so that each frame by itself, whichever it is, has
exactly the same distribution in every class. So has the unordered set of frames in the two classes of one
axis: right and left, down and up are told apart by the order of the frames alone.

With the quarter in which they begin as their class the same clips are a control: their first frame tells it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Integer, UInt8

from prisma_steps.data import dsprites
from prisma_steps.data.source import ImageSource

#: The step of each direction along (x, y); y grows downwards.
DIRECTIONS = {"right": (1, 0), "left": (-1, 0), "down": (0, 1), "up": (0, -1)}

#: Places along x and along y.
PLACES = 32

#: Quarters of these places, row by row.
QUARTERS = ("top left", "top right", "bottom left", "bottom right")

#: What the class may be, and its names.
CLASSES = {"direction": tuple(DIRECTIONS), "start": QUARTERS}

#: Clips of one speed.
COUNT = len(DIRECTIONS) * dsprites.COUNT


def source(
    n_frames: int, speeds: Sequence[int], moving: bool = True, classes: str = "direction"
) -> ImageSource:
    """Every direction × start (an image of dSprites) × speed, numbered in this order, the speed fastest.

    Args:
        n_frames: frames of a clip.
        speeds: places moved from one frame to the next.
        moving: False for the control: every frame of a clip is its first. Ids and labels stay, so that
            labels say what is not there.
        classes: the class of a clip, of ``CLASSES``.

    An id names direction, speed and start, so that it is the same whatever the other speeds are.
    """
    clips = Clips(n_frames, tuple(speeds), moving, classes)
    return ImageSource(
        count=COUNT * len(speeds),
        shape=(n_frames, 1, dsprites.SIZE, dsprites.SIZE),
        class_names=CLASSES[classes],
        coords=clips.coords,
        pixels=clips.render,
    )


@dataclass(frozen=True)
class Clips:
    """What each clip shows."""

    n_frames: int
    speeds: tuple[int, ...]
    moving: bool
    classes: str = "direction"

    def coords(self, index: Integer[np.ndarray, " image"]) -> dict[str, np.ndarray]:
        """What is known of each clip; the velocity is that of the pixels, and 0 in the control."""
        direction, start, speed = self._factors(index)
        names = np.array(list(DIRECTIONS))[direction]
        factors = dsprites.factors(start)
        velocity = self._velocity(direction, speed) * self.moving
        return {
            "image": np.array(
                [
                    f"moving_sprites-{name}-{pace}-{number:06d}"
                    for name, pace, number in zip(names, speed, start, strict=True)
                ]
            ),
            "label": direction if self.classes == "direction" else _quarter(start),
            **factors,
            "velocity_x": velocity[:, 0],
            "velocity_y": velocity[:, 1],
        }

    def render(
        self, index: Integer[np.ndarray, " image"]
    ) -> UInt8[np.ndarray, "image frame channel row column"]:
        """Draw the clips of these numbers, 0 or 255."""
        frames = dsprites.render(self.frames(index).reshape(-1))
        return frames.reshape(len(index), self.n_frames, 1, dsprites.SIZE, dsprites.SIZE)

    def frames(self, index: Integer[np.ndarray, " image"]) -> Integer[np.ndarray, "image frame"]:
        """The number in dSprites of every frame."""
        direction, start, speed = self._factors(index)
        latents = np.repeat(dsprites.latents(start)[:, None], self.n_frames, axis=1)
        if self.moving:
            moved = np.arange(self.n_frames)[None, :, None] * self._velocity(direction, speed)[:, None]
            latents[..., -2:] = (latents[..., -2:] + moved) % PLACES
        return dsprites.index(latents.reshape(-1, latents.shape[-1])).reshape(len(index), self.n_frames)

    def _factors(self, index: Integer[np.ndarray, " image"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Direction, number of the first frame in dSprites, and speed of each clip."""
        sizes = (len(DIRECTIONS), dsprites.COUNT, len(self.speeds))
        direction, start, speed = np.unravel_index(np.asarray(index), sizes)
        return direction, start, np.array(self.speeds)[speed]

    def _velocity(
        self, direction: Integer[np.ndarray, " image"], speed: Integer[np.ndarray, " image"]
    ) -> Integer[np.ndarray, "image axis"]:
        """Places per frame along (x, y)."""
        return np.array(list(DIRECTIONS.values()))[direction] * speed[:, None]


def _quarter(start: Integer[np.ndarray, " image"]) -> Integer[np.ndarray, " image"]:
    """In which of ``QUARTERS`` images of dSprites show their sprite."""
    right, down = dsprites.latents(start)[:, -2:].T >= PLACES // 2
    return 2 * down.astype(int) + right
