"""The claims of an experiment held against what the store has of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING

from prisma_steps.claims.declaration import Claim
from prisma_steps.claims.tree import nodes_of
from prisma_steps.claims.verdict import Verdict, judge
from prisma_steps.plan import Plan
from prisma_steps.python_api import NotThere, load_node

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["verdicts"]


def verdicts(plan: Plan) -> list[Verdict]:
    """The verdict on every claim of a planned experiment, in the order of its file."""
    load = cache(partial(load_node, plan))
    return [_verdict(load, claim) for claim in plan.experiment.claims]


def _verdict(load: Callable[[str], xr.Dataset], claim: Claim) -> Verdict:
    try:
        data = {node: load(node) for node in nodes_of(claim.value)}
    except NotThere as error:
        return Verdict(claim, "not yet run", reason=str(error))
    except (OSError, ValueError) as error:
        return Verdict(claim, "error", reason=f"artifacts cannot be read: {error}")
    return judge(claim, data)
