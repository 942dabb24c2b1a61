"""Verdicts as a table: the same texts on the screen, on the page and in JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from prisma_steps.claims.verdict import Verdict


class Row(NamedTuple):
    """What a verdict says, as texts.

    Attributes:
        says: the statement.
        value: the expression.
        published: the published number, or nothing.
        source: where it was published, or nothing.
        expected: what the value is held against.
        reproduced: the value, or nothing.
        spread: how seeds differ, or nothing.
        state: holds, fails, not yet run or error.
        reason: why there is no value, or nothing.
    """

    says: str
    value: str
    published: str
    source: str
    expected: str
    reproduced: str
    spread: str
    state: str
    reason: str

    @property
    def cited(self) -> str:
        """The published number with its source, or what there is of the two."""
        both = self.published and self.source
        return f"{self.published} ({self.source})" if both else self.published or self.source


def row(verdict: Verdict) -> Row:
    """A verdict as texts."""
    claim = verdict.claim
    published = "" if claim.published is None else f"{claim.published:.10g}"
    expected = "true" if claim.criterion is None else str(claim.criterion)
    reproduced = _shown(verdict.reproduced)
    state, reason = verdict.state, verdict.reason
    return Row(
        claim.says, claim.text, published, claim.source, expected, reproduced, _spread(verdict), state, reason
    )


def _shown(value: float | bool | None) -> str:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else f"{value:.6g}"


def _spread(verdict: Verdict) -> str:
    """``± 0.004, n = 3`` (standard deviation over seeds), or ``true of 2 of 3`` of what is true or false."""
    values = list(verdict.by_seed.values())
    if not values:
        return ""
    if isinstance(verdict.reproduced, bool):
        return f"true of {sum(map(bool, values))} of {len(values)}"
    return f"n = {len(values)}" if verdict.spread is None else f"± {verdict.spread:.2g}, n = {len(values)}"


def as_json(verdict: Verdict) -> dict[str, Any]:
    """A verdict as plain data, numbers in full."""
    claim = verdict.claim
    criterion = claim.criterion
    return {
        "says": claim.says,
        "value": claim.text,
        "published": claim.published,
        "source": claim.source or None,
        "expected": None if criterion is None else {criterion.word: list(criterion.bounds)},
        "reproduced": verdict.reproduced,
        "by_seed": {str(seed): value for seed, value in verdict.by_seed.items()},
        "spread": verdict.spread,
        "verdict": verdict.state,
        "reason": verdict.reason or None,
    }
