"""Compiled loops of the optimiser: a row of a weight at a time, while it is in the cache."""

from __future__ import annotations

import numpy as np

from prisma_steps.sae.kernels import kernel, narrowed, widened


@kernel
def gradient_norms(first, last, gradient, weight, constrained, along, squares):
    """Of rows: ``along`` = gradient · weight, and ``squares`` = ‖gradient − along · weight‖².

    Where rows are not ``constrained``, nothing is taken off: ``along`` = 0.
    """
    for row in range(first, last):
        slopes, values = gradient[row], weight[row]
        component, total = np.float32(0), np.float32(0)
        if constrained:
            for i in range(len(values)):
                component += widened(slopes[i]) * values[i]
        for i in range(len(values)):
            slope = widened(slopes[i]) - component * values[i]
            total += slope * slope
        along[row], squares[row] = component, total


@kernel
def _step(values, slopes, component, mean, square, scale, rates, step, root, epsilon):
    total = np.float32(0)
    for i in range(len(values)):
        slope = scale * (widened(slopes[i]) - component * values[i])
        mean[i] += rates[0] * (slope - mean[i])
        square[i] += rates[1] * (slope * slope - square[i])
        values[i] -= step * mean[i] / (np.sqrt(square[i]) / root + epsilon)
        total += values[i] * values[i]
    return np.sqrt(total)


@kernel
def adam(
    first, last, weight, gradient, along, constrained, mean, square, copy, scale, rates, step, root, epsilon
):
    """Of rows: a step of Adam along ``scale`` · (gradient − along · weight), and a rounded ``copy`` of them.

    Args:
        first: first row.
        last: the row after the last one.
        weight: updated; rows end at unit norm where they are ``constrained``.
        gradient: of ``weight``.
        along: see ``gradient_norms``.
        constrained: whether rows have unit norm.
        mean: running mean of the gradient, updated.
        square: running mean of its square, updated.
        copy: becomes ``weight``, unless it has no rows.
        scale: what the gradient is multiplied by.
        rates: 1 − β of the two means.
        step: learning rate, over the bias of ``mean``.
        root: square root of the bias of ``square``.
        epsilon: added to the root of ``square``.
    """
    for row in range(first, last):
        values = weight[row]
        length = _step(
            values, gradient[row], along[row], mean[row], square[row], scale, rates, step, root, epsilon
        )
        if constrained:
            values /= length
        if len(copy):
            narrow = copy[row]
            for i in range(len(values)):
                narrow[i] = narrowed(values[i], narrow)
