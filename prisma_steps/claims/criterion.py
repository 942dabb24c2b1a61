"""What a number is held against: near to a published one, above or below a bound, or between two."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

Word: TypeAlias = Literal["within", "above", "below", "between"]
WORDS: tuple[Word, ...] = ("within", "above", "below", "between")

#: Bounds are decimals and their differences are not exact in binary: 0.996 - 0.976 is greater than 0.02. What
#: is as near to a bound as rounding is counted as on it; 1e-9 of it is far below any digit that is published.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Criterion:
    """One condition on a number.

    Attributes:
        word: ``within`` (a distance from a number, bounds included), ``above``, ``below`` (not the bound
            itself) or ``between`` (bounds included).
        bounds: the distance and the number; the bound; the lower and the upper bound.
    """

    word: Word
    bounds: tuple[float, ...]

    def holds(self, value: float) -> bool:
        """Whether a finite number fulfils the condition."""
        match self.word:
            case "within":
                distance, centre = self.bounds
                away = abs(value - centre)
                return away <= distance or math.isclose(away, distance, rel_tol=_ROUNDING)
            case "above":
                return value > self.bounds[0]
            case "below":
                return value < self.bounds[0]
        return self.bounds[0] <= value <= self.bounds[1]

    def __str__(self) -> str:
        """The condition in words, as ``within 0.02 of 0.996``."""
        join = {"within": " of ", "between": " and "}.get(self.word, "")
        return f"{self.word} {join.join(f'{bound:.10g}' for bound in self.bounds)}"
