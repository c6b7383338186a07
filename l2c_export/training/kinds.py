"""The three kinds of training: a router, a schedule under a rule, and a search; each takes what it has a use for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from ..errors import UsageError
from ..support.files import Report
from ..support.progress import Progress, unsaid
from .options import TrainingOptions
from .result import Summary, finish
from .ruled import RuledSummary, learn_under_rule
from .ruled_options import RuledOptions, SearchOptions
from .search import Frontier, search
from .training import Training

Given = Mapping[str, Any]  # of an option, what a user says; None or False where nothing
Kind = TypeVar("Kind", bound=TrainingOptions)
NOT_RESUMED = ("error", "checkpoint_every")
UNUSED: Mapping[type[TrainingOptions], tuple[str, ...]] = {
    RuledOptions: NOT_RESUMED,
    SearchOptions: (*NOT_RESUMED, "lambda_", "threshold", "target_reduction", "lr"),
}


def trained(given: Given, report: Report, progress: Progress) -> Summary | RuledSummary:
    """By a rule, if there is one; else a router."""
    if given["rule"] is not None:
        return learn_under_rule(only(RuledOptions, "a training under a rule", given), report, progress)
    training = Training(only(TrainingOptions, "a training without rule=..", given), report)
    training.run(progress("training", training.left) if training.workers.leads else unsaid)
    summary = finish(training)
    for line in summary.describe():
        training.report(line)
    return summary


def searched(given: Given, report: Report, progress: Progress) -> Frontier:
    return search(only(SearchOptions, "a search", given), report, progress)


def only(options: type[Kind], what: str, given: Given) -> Kind:
    """The options of one kind.  Raises UsageError for a value that has no effect there."""
    chosen = {name: value for name, value in given.items() if value is not None and value is not False}
    known = {field.name for field in dataclasses.fields(options)} - set(UNUSED.get(options, ()))
    for name, value in chosen.items():
        if name not in known:
            raise UsageError(f"{name}={value!r}: {what} has no use for it: leave it out")
    return options(**chosen)
