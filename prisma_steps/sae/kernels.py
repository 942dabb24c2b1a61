"""Compiled loops over all latents of a batch, for training on a CPU.

Each computes items ``first`` to ``last`` of its output, see ``prisma_steps.threads``. Arrays are float32,
or bfloat16 as uint16; sums are in float32.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba import types
from numba.extending import overload

#: Sums may be taken in vectors; NaN and infinity stay what they are.
kernel = numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz"})

#: Latents whose sums stay in the first-level cache.
_TILE = 1024
#: Rows of a transposed matrix that are made at a time, and their columns.
_HEIGHT, _WIDTH = 256, 64


def widened(stored: Any) -> float:
    """A stored number as float32."""
    raise NotImplementedError("compiled only")


def narrowed(value: Any, array: Any) -> Any:
    """``value`` as ``array`` stores it: in bfloat16 the nearest, of two the even one."""
    raise NotImplementedError("compiled only")


@overload(widened, inline="always")
def _widened(stored):
    if stored == types.uint16:
        return lambda stored: np.uint32(np.uint32(stored) << 16).view(np.float32)
    return lambda stored: stored


@overload(narrowed, inline="always")
def _narrowed(value, array):  # noqa: ARG001
    if array.dtype != types.uint16:
        return lambda value, array: value  # noqa: ARG005

    def to_bfloat16(value, array):  # noqa: ARG001
        bits = np.float32(value).view(np.uint32)
        up = np.uint32(0x7FFF + ((bits >> 16) & 1))
        return np.uint16(np.uint32(bits + up) >> 16) if value == value else np.uint16(0x7FC0)

    return to_bfloat16


@kernel
def residuals(first, last, y, y_hat, b_dec, scale, gradient, errors):
    """Of tokens: ``gradient`` = scale · (ŷ + b_dec − y) and ``errors`` = ‖y − ŷ − b_dec‖²."""
    for token in range(first, last):
        total = np.float32(0)
        wanted, found, slopes = y[token], y_hat[token], gradient[token]
        for i in range(len(wanted)):
            error = widened(found[i]) + b_dec[i] - wanted[i]
            total += error * error
            slopes[i] = narrowed(scale * error, slopes)
        errors[token] = total


@kernel
def _mask_row(latents, gradient, penalty, fired, sums, gradient_sums):
    for i in range(len(latents)):
        latent = widened(latents[i])
        slope = widened(gradient[i]) + penalty
        fires = latent > np.float32(0)
        slope = slope if fires else np.float32(0)
        fired[i] += np.int32(fires)
        sums[i] += latent
        gradient_sums[i] += slope
        gradient[i] = narrowed(slope, gradient)


@kernel
def mask(first, last, latents, gradient, penalty, firings, sums, gradient_sums):
    """Of latents: ``gradient`` + penalty where they fire and 0 elsewhere, and three sums over tokens.

    Writes over ``gradient``; ``firings`` counts, ``sums`` adds latents, ``gradient_sums`` the gradient.
    """
    for start in range(first, last, _TILE):
        tile = slice(start, min(start + _TILE, last))
        firings[tile] = 0
        sums[tile] = 0
        gradient_sums[tile] = 0
        for token in range(latents.shape[0]):
            _mask_row(
                latents[token, tile],
                gradient[token, tile],
                penalty,
                firings[tile],
                sums[tile],
                gradient_sums[tile],
            )


@kernel
def add_row(weight, row, sums):
    """``sums`` + ``weight`` · ``row``."""
    for i in range(len(row)):
        sums[i] += weight * widened(row[i])


@kernel
def column_sums(first, last, weights, values, sums):
    """Of columns: Σ_row ``weights[row]`` · ``values[row, column]``."""
    sums[first:last] = 0
    for row in range(values.shape[0]):
        add_row(weights[row], values[row, first:last], sums[first:last])


@kernel
def transpose(first, last, source, target):
    """Of rows of ``target``: columns of ``source``, by way of tiles in the first-level cache."""
    # One more than needed: of columns a power of 2 apart the cache holds few.
    tile = np.empty((_WIDTH, _HEIGHT + 1), source.dtype)
    for row in range(first, last, _HEIGHT):
        height = min(_HEIGHT, last - row)
        for column in range(0, source.shape[0], _WIDTH):
            width = min(_WIDTH, source.shape[0] - column)
            for j in range(width):
                tile[j, :height] = source[column + j, row : row + height]
            for i in range(height):
                line = target[row + i, column : column + width]
                for j in range(len(line)):
                    line[j] = tile[j, i]
