"""Compiled loops over the few latents of a batch that fire, as ``prisma_steps.sae.kernels`` over all of them.

Each token has a run of slots. A slot holds a latent's index and how large it is.
"""

from __future__ import annotations

import numpy as np

from prisma_steps.sae.kernels import add_row, kernel, narrowed, widened

#: Latents that are looked at one by one only if any of them fires.
_BLOCK = 32
#: Pieces of a row that are laid one over the other.
_PIECES = 32


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
def _raise_to(maxima, values):
    for i in range(len(values)):
        maxima[i] = values[i] if values[i] > maxima[i] else maxima[i]


@kernel
def select(first, last, bits, latents, k, counts, indices, values):
    """Of tokens: the ``k`` largest of ``latents`` that are positive; of equals those with the lower index.

    A row is cut into pieces that are laid one over the other. Of the columns' largest, the k-th largest is a
    bound from below: few columns hold anything above it.

    Args:
        first: first token.
        last: the token after the last one.
        bits: ``latents`` as signed integers, which order positive numbers as floats do.
        latents: non-negative.
        k: how many a token.
        counts: becomes how many they are.
        indices: becomes which they are, in rising order; ``k`` places a token.
        values: becomes how large they are.
    """
    n_latents = bits.shape[1]
    width = (n_latents + _PIECES - 1) // _PIECES
    maxima, chosen = np.empty(width, bits.dtype), np.empty(width, np.int32)
    heap = np.empty(k, bits.dtype)
    # One more than can be kept: a candidate is written before it is known to be one.
    candidates, places = np.empty(n_latents + 1, bits.dtype), np.empty(n_latents + 1, np.int32)
    for token in range(first, last):
        row = bits[token]
        maxima[:] = 0
        for start in range(0, n_latents, width):
            piece = row[start : start + width]
            _raise_to(maxima[: len(piece)], piece)
        # 1 is the smallest positive number, as integer and as float.
        bound = max(_kth_largest(maxima, k, heap), 1)
        n_chosen = 0
        for column in range(width):
            if maxima[column] >= bound:
                chosen[n_chosen] = column
                n_chosen += 1
        n = 0
        for start in range(0, n_latents, width):
            piece = row[start : start + width]
            for column in chosen[:n_chosen]:
                if column < len(piece):
                    candidates[n], places[n] = piece[column], start + column
                    n += piece[column] >= bound
        smallest = max(_kth_largest(candidates[:n], k, heap), 1)
        equals = 0
        for value in heap:
            equals += value == smallest
        slot = 0
        for candidate in range(n):
            value, place = candidates[candidate], places[candidate]
            if value > smallest or (value == smallest and equals > 0):
                equals -= value == smallest
                indices[token, slot], values[token, slot] = place, widened(latents[token, place])
                slot += 1
        counts[token] = slot


@kernel
def count(first, last, latents, counts):
    """Of tokens: how many latents fire."""
    for token in range(first, last):
        row, total = latents[token], np.int32(0)
        for i in range(len(row)):
            total += np.int32(widened(row[i]) > np.float32(0))
        counts[token] = total


@kernel
def compress(first, last, latents, starts, indices, values):
    """Of tokens: which latents fire and how large they are, from the slot where each token starts."""
    for token in range(first, last):
        slot = starts[token]
        for block in range(0, latents.shape[1], _BLOCK):
            row = latents[token, block : block + _BLOCK]
            largest = np.float32(0)
            for i in range(len(row)):
                largest = max(largest, widened(row[i]))
            if largest > np.float32(0):
                for i in range(len(row)):
                    value = widened(row[i])
                    if value > np.float32(0):
                        indices[slot], values[slot] = block + i, value
                        slot += 1


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
            add_row(values[slot], decoder[indices[slot]], error)
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
    total = np.empty(sums.shape[1], np.float32)
    for latent in range(first, last):
        total[:] = 0
        for place in range(offsets[latent], offsets[latent + 1]):
            add_row(weights[slots[place]], rows[tokens[place]], total)
        row = sums[latent]
        for i in range(len(row)):
            row[i] = narrowed(total[i], row)


@kernel
def sums_by_latent(first, last, offsets, slots, weights, sums):
    """Of latents: Σ_token weight."""
    for latent in range(first, last):
        total = np.float32(0)
        for place in range(offsets[latent], offsets[latent + 1]):
            total += weights[slots[place]]
        sums[latent] = total
