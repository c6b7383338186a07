"""What a user asks `l2c train --rule` and `l2c train --search` for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from ..errors import UsageError
from ..inspection.predict import DEVICES
from ..schedules.importers.imported import full_of
from ..schedules.rules import SUBLAYER, Caching
from .options import TrainingOptions

OptionValues = Mapping[str, Any]  # of an option, what a user says; None or False where nothing
Kind = TypeVar("Kind", bound=TrainingOptions)


@dataclass(frozen=True)
class RuledOptions(TrainingOptions):
    """Scores, or coefficients, or first the one and then the other, of the calls between full ones."""

    iterations: int = 100
    lr: float = 0.02
    rule: str = ""
    every: int | None = None
    full_calls: str | None = None
    level: str = SUBLAYER
    full_first: int | None = None
    full_last: int = 0
    sampler: str | None = None
    learn_coefficients: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.every is None) == (self.full_calls is None):
            wrong = (
                "every=.. is missing" if self.every is None else f"every={self.every}: full_calls={self.full_calls!r} says it"
            )
            raise UsageError(f"{wrong}: give one of the two, for the calls from which the others follow by rule={self.rule!r}")
        if self.every is not None and self.every < 2:
            raise UsageError(f"every={self.every}: one call of so many is full: use 2 or more")
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
        named, rule = f"every={self.every}", f"every:{self.every}"
        if self.full_calls is not None:
            named, rule = f"full_calls={self.full_calls!r}", self.full_calls
            full_of(rule, count)  # names this option
        calls = frozenset(self.caching.full(rule, count))
        if len(calls) == count:
            raise UsageError(f"{named}: all {count} calls are full: use fewer, or more steps")
        return calls


@dataclass(frozen=True)
class SearchOptions(TrainingOptions):
    """Whole calls, by trial: `iterations` schedules are tried."""

    sampler: str | None = None
    iterations: int = 200
    times_on: str = "cpu"  # a device that times are predicted for

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.times_on not in DEVICES:
            raise UsageError(f"times_on={self.times_on!r}: use one of {', '.join(DEVICES)}")


NOT_RESUMED = ("error", "checkpoint_every")
UNUSED: Mapping[type[TrainingOptions], tuple[str, ...]] = {
    RuledOptions: NOT_RESUMED,
    SearchOptions: (*NOT_RESUMED, "lambda_", "threshold", "target_reduction", "lr"),
}


def only(options: type[Kind], what: str, values: OptionValues) -> Kind:
    """The options of one kind of training.  Raises UsageError for a value that has no effect there."""
    chosen = {name: value for name, value in values.items() if value is not None and value is not False}
    known = {field.name for field in dataclasses.fields(options)} - set(UNUSED.get(options, ()))
    for name, value in chosen.items():
        if name not in known:
            raise UsageError(f"{name}={value!r}: {what} has no use for it: leave it out")
    return options(**chosen)
