"""Compiled loops over the few latents of a batch that fire, as ``prisma_steps.sae.kernels`` over all of them.

Each token has a run of slots. A slot holds a latent's index and how large it is.
"""

from __future__ import annotations

import numpy as np

from prisma_steps.sae.kernels import add_row, kernel, narrowed, widened

#: Latents whose largest is looked at before they are.
_BLOCK = 32


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
    for latent in range(first, last):
        sums[latent] = 0
        for place in range(offsets[latent], offsets[latent + 1]):
            add_row(weights[slots[place]], rows[tokens[place]], sums[latent])


@kernel
def sums_by_latent(first, last, offsets, slots, weights, sums):
    """Of latents: Σ_token weight."""
    for latent in range(first, last):
        total = np.float32(0)
        for place in range(offsets[latent], offsets[latent + 1]):
            total += weights[slots[place]]
        sums[latent] = total
