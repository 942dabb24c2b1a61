"""The value of an expression at every seed, whatever it makes of them together."""

from __future__ import annotations

from collections.abc import Mapping

import xarray as xr

from prisma_steps.claims.check import SEED
from prisma_steps.claims.evaluate import evaluate
from prisma_steps.claims.tree import (
    Binary,
    Correlation,
    Expression,
    Reduce,
    Select,
    Unary,
    Variable,
    nodes_of,
    parts,
)

#: Reductions whose value of one seed alone is that seed's value.
_OF_ONE = ("mean", "median", "max", "min", "any", "all")


def at_every_seed(expression: Expression, data: Mapping[str, xr.Dataset]) -> dict[int, xr.DataArray]:
    """The expression evaluated on the data of one seed at a time, as if that were the only one.

    Args:
        expression: what to compute.
        data: the data of every node that it names; of others it may be there too.

    Returns:
        By seed, values without the dim ``seed``. Empty where there is no such thing: no node has the axis
        ``seed``, nodes have different seeds, or the expression selects some of them or reduces them by what
        says nothing of one (``std``, ``count``, ``sum``, …).

    Raises:
        NoValue: as ``evaluate``.
    """
    data = {node: data[node] for node in nodes_of(expression)}
    seeds = {tuple(of[SEED].values.tolist()) for of in data.values() if SEED in of.dims}
    if len(seeds) != 1 or not _takes_one(expression):
        return {}
    found = {}
    for position, seed in enumerate(seeds.pop()):
        alone = {node: of.isel({SEED: [position]}) if SEED in of.dims else of for node, of in data.items()}
        value = evaluate(expression, alone)
        found[seed] = value.squeeze(SEED) if SEED in value.dims else value
    return found


def _takes_one(expression: Expression) -> bool:
    """Whether the expression means of one seed what it means of several."""
    return not any(_mixes(part) for part in parts(expression))


def _mixes(part: Expression) -> bool:
    match part:
        case Variable():
            return part.name == SEED
        case Select():
            return SEED in part.choices
        case Reduce():
            return part.how not in _OF_ONE and _has_seed(part.of) and (part.dims is None or SEED in part.dims)
        case Correlation():
            return (part.dims is None or SEED in part.dims) and (
                _has_seed(part.left) or _has_seed(part.right)
            )
    return False


def _has_seed(expression: Expression) -> bool:
    """Whether nothing in the expression has reduced the seeds yet."""
    match expression:
        case Variable():
            return True
        case Reduce():
            return expression.dims is not None and SEED not in expression.dims and _has_seed(expression.of)
        case Select() | Unary():
            return _has_seed(expression.of)
        case Binary():
            return _has_seed(expression.left) or _has_seed(expression.right)
        case Correlation():
            return expression.dims is not None and (_has_seed(expression.left) or _has_seed(expression.right))
    return False
