"""Compiled loops over latents of a batch, for training on a CPU.

Each computes items ``first`` to ``last`` of its output, see ``prisma_steps.sae.threads``. Arrays are float32,
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
#: Rows and columns that are transposed at a time.
_SIDE = 32
#: Latents whose largest is looked at before they are.
_BLOCK = 32


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


# --- dense


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
def _add_row(weight, row, sums):
    for i in range(len(row)):
        sums[i] += weight * widened(row[i])


@kernel
def column_sums(first, last, weights, values, sums):
    """Of columns: Σ_row ``weights[row]`` · ``values[row, column]``."""
    sums[first:last] = 0
    for row in range(values.shape[0]):
        _add_row(weights[row], values[row, first:last], sums[first:last])


@kernel
def transpose(first, last, source, target):
    """Of rows of ``target``: columns of ``source``, by way of squares in the first-level cache."""
    square = np.empty((_SIDE, _SIDE), source.dtype)
    for row in range(first, last, _SIDE):
        height = min(_SIDE, last - row)
        for column in range(0, source.shape[0], _SIDE):
            width = min(_SIDE, source.shape[0] - column)
            for j in range(width):
                square[j, :height] = source[column + j, row : row + height]
            for i in range(height):
                line = target[row + i, column : column + width]
                for j in range(width):
                    line[j] = square[j, i]


# --- sparse


@kernel
def _kth_largest(values, k, heap):
    """The ``k``-th largest of non-negative ``values``, or 0 if they are fewer; ``heap`` holds ``k``."""
    heap[:k] = 0
    for value in values:
        if value <= heap[0]:
            continue
        hole = 0
        while True:
            child = 2 * hole + 1
            if child >= k:
                break
            if child + 1 < k and heap[child + 1] < heap[child]:
                child += 1
            if heap[child] >= value:
                break
            heap[hole] = heap[child]
            hole = child
        heap[hole] = value
    return heap[0]


@kernel
def _block_maxima(row, maxima):
    whole = len(row) // _BLOCK
    for block in range(whole):
        values = row[block * _BLOCK : (block + 1) * _BLOCK]
        largest = values[0]
        for i in range(1, _BLOCK):
            largest = values[i] if values[i] > largest else largest
        maxima[block] = largest
    for block in range(whole, len(maxima)):
        maxima[block] = row[whole * _BLOCK :].max()


@kernel
def select(first, last, bits, latents, k, stops, indices, values):
    """Of tokens: the ``k`` largest of ``latents`` that are positive; of equals those with the lower index.

    Of blocks' largest, the k-th largest is a bound from below: few blocks hold anything above it.

    Args:
        first: first token.
        last: the token after the last one.
        bits: ``latents`` as signed integers, which order positive numbers as floats do.
        latents: non-negative.
        k: how many a token.
        stops: becomes where a token's latents end; they begin at token · ``k``.
        indices: becomes which they are, in rising order.
        values: becomes how large they are.
    """
    n_latents = bits.shape[1]
    maxima = np.empty((n_latents + _BLOCK - 1) // _BLOCK, bits.dtype)
    heap = np.empty(k, bits.dtype)
    candidates = np.empty(n_latents, bits.dtype)
    for token in range(first, last):
        row = bits[token]
        _block_maxima(row, maxima)
        bound = max(_kth_largest(maxima, k, heap), 1)
        n = 0
        for block in range(len(maxima)):
            if maxima[block] >= bound:
                for i in range(block * _BLOCK, min((block + 1) * _BLOCK, n_latents)):
                    if row[i] >= bound:
                        candidates[n] = row[i]
                        n += 1
        smallest = max(_kth_largest(candidates[:n], k, heap), 1)
        equals = 0
        for value in heap:
            equals += value == smallest
        slot = token * k
        for block in range(len(maxima)):
            if maxima[block] >= smallest:
                for i in range(block * _BLOCK, min((block + 1) * _BLOCK, n_latents)):
                    if row[i] > smallest or (row[i] == smallest and equals > 0):
                        equals -= row[i] == smallest
                        indices[slot] = i
                        values[slot] = widened(latents[token, i])
                        slot += 1
        stops[token] = slot


@kernel
def decode(
    first, last, starts, stops, indices, values, decoder, b_dec, y, scale, penalty, gradient, errors, slopes
):
    """Of tokens: what ``residuals`` gives of their sparse latents, and ``slopes`` = ∂loss/∂latent.

    A token's decoder rows are read twice while they are in the cache.
    """
    error = np.empty(y.shape[1], np.float32)
    for token in range(first, last):
        error[:] = b_dec - y[token]
        for slot in range(starts[token], stops[token]):
            _add_row(values[slot], decoder[indices[slot]], error)
        total, row = np.float32(0), gradient[token]
        for i in range(len(error)):
            total += error[i] * error[i]
            row[i] = narrowed(scale * error[i], row)
        errors[token] = total
        for slot in range(starts[token], stops[token]):
            slopes[slot] = scale * _dot(error, decoder[indices[slot]]) + penalty


@kernel
def _dot(left, right):
    total = np.float32(0)
    for i in range(len(left)):
        total += left[i] * widened(right[i])
    return total


@kernel
def group(starts, stops, indices, offsets, slots, tokens):
    """``slots`` and ``tokens`` in the order of latents, and of tokens within one.

    Those of latent j begin at ``offsets[j]`` and end at the next.
    """
    offsets[:] = 0
    for token in range(len(starts)):
        for slot in range(starts[token], stops[token]):
            offsets[indices[slot] + 1] += 1
    for latent in range(len(offsets) - 1):
        offsets[latent + 1] += offsets[latent]
    free = offsets.copy()
    for token in range(len(starts)):
        for slot in range(starts[token], stops[token]):
            place = free[indices[slot]]
            slots[place] = slot
            tokens[place] = token
            free[indices[slot]] = place + 1


@kernel
def outer_sums(first, last, offsets, slots, tokens, weights, rows, sums):
    """Of latents: Σ_token weight · row of the token, a latent's tokens as ``group`` has them."""
    for latent in range(first, last):
        sums[latent] = 0
        for place in range(offsets[latent], offsets[latent + 1]):
            _add_row(weights[slots[place]], rows[tokens[place]], sums[latent])


@kernel
def sums_by_latent(first, last, offsets, slots, weights, sums):
    """Of latents: Σ_token weight."""
    for latent in range(first, last):
        total = np.float32(0)
        for place in range(offsets[latent], offsets[latent + 1]):
            total += weights[slots[place]]
        sums[latent] = total
