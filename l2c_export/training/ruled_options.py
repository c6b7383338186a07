"""What a user asks `l2c train --rule` and `l2c train --search` for."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import UsageError
from ..schedules.rules import SUBLAYER, Caching
from .options import TrainingOptions

MIDDLE = 0.5  # the threshold of scores, where none is given


@dataclass(frozen=True)
class RuledOptions(TrainingOptions):
    """Scores, or coefficients, or first the one and then the other, of the calls between full ones."""

    iterations: int = 100
    lr: float = 0.02
    rule: str = ""
    every: int | None = None
    level: str = SUBLAYER
    full_first: int | None = None
    full_last: int = 0
    sampler: str | None = None
    learn_coefficients: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.every is None or self.every < 2:
            given = "every=.. is missing" if self.every is None else f"every={self.every}"
            raise UsageError(f"{given}: one call of so many is full, and the others follow by rule={self.rule!r}: use 2 or more")
        self.caching  # noqa: B018  (raises UsageError)

    @property
    def caching(self) -> Caching:
        return Caching(self.rule, self.level, self.full_first, self.full_last)

    @property
    def learns_scores(self) -> bool:
        """Whether light calls may compute something: coefficients alone can be learned, too."""
        priced = any(value is not None for value in (self.lambda_, self.threshold, self.target_reduction))
        return priced or not self.learn_coefficients

    def full(self, count: int) -> frozenset[int]:
        """Which of so many calls are full.  Raises UsageError where all are."""
        found = frozenset(self.caching.full(f"every:{self.every}", count))
        if len(found) == count:
            raise UsageError(f"every={self.every}: all {count} calls are full: use a larger one, or more steps")
        return found


@dataclass(frozen=True)
class SearchOptions(TrainingOptions):
    """Whole calls, by trial: `iterations` schedules are tried."""

    sampler: str | None = None
    iterations: int = 200
