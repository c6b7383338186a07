"""Searching without gradients: full calls, orders and levels, by the error of the final latents over the predicted time."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from ..compiler.compile import lower
from ..errors import ScheduleError
from ..inspection.predict import predict
from ..schedules.rules import LEVELS
from ..schedules.schedule import Schedule
from ..schedules.values import STACK
from ..support.files import Report, make_folder
from ..support.progress import Progress, unsaid
from . import plot
from .candidates import Candidate, by_stride, kinds, neighbour
from .lessons import EVALUATE, TRAIN
from .options import check_target
from .ruled_options import SearchOptions
from .state import replace
from .subject import Subject, subject_of


class Tried(msgspec.Struct, frozen=True, kw_only=True):
    """A schedule: `error` is that of the final latents, relative, `seconds` are predicted for one image."""

    full: tuple[int, ...]
    rules: tuple[tuple[str, str], ...]
    seconds: float
    error: float

    @property
    def candidate(self) -> Candidate:
        return Candidate(self.full, self.rules)


class Frontier(msgspec.Struct, frozen=True, kw_only=True):
    """What `l2c train --search --json` prints, and tradeoff.json holds: schedules that no other beats in both time and error.

    They were found on one batch of noise, and `error` was measured on another.  `points[n]` is schedule-N.json, N = n + 1.
    """

    format: Literal["l2c-frontier"] = "l2c-frontier"
    version: Literal[1] = 1
    out: str
    family: str
    sampler: str
    steps: int
    device: str  # that times are predicted for
    uncached_seconds: float
    points: tuple[Tried, ...]
    tried: tuple[Tried, ...]  # all, as they were found

    @property
    def schedules(self) -> tuple[Path, ...]:
        """The files of the points, fastest first."""
        return tuple(file_of(Path(self.out), n) for n in range(len(self.points)))

    def table(self) -> list[tuple[str, ...]]:
        """Rows: the file, full calls, how the others follow, predicted time and error."""
        count = str(self.steps)
        rows = [
            (path.name, f"{len(p.full)}: {','.join(map(str, p.full))}", p.candidate.describe(), f"{1e3 * p.seconds:.1f}",
             f"{self.uncached_seconds / p.seconds:.2f}x", f"{p.error:.2%}")
            for path, p in zip(self.schedules, self.points, strict=True)
        ]  # fmt: skip
        head = ("schedule", "full calls", "the others", f"ms on {self.device}", "uncached is", "error of the latents")
        return [head, *rows, ("uncached", count, "", f"{1e3 * self.uncached_seconds:.1f}", "1.00x", "0.00%")]


def file_of(folder: Path, n: int) -> Path:
    return folder / f"schedule-{n + 1}.json"


def undominated(tried: Iterable[Tried]) -> list[Tried]:
    """Those than which no other is both as fast and as good, fastest first."""
    frontier: list[Tried] = []
    for one in sorted(tried, key=lambda trial: (trial.seconds, trial.error)):
        if not frontier or one.error < frontier[-1].error:
            frontier.append(one)
    return frontier


def seconds(subject: Subject, schedule: Schedule, device: str) -> float:
    """Predicted for one image with its guidance."""
    program = lower(subject.options, dataclasses.replace(subject.source, schedules=(schedule,))).manifest.program()
    return predict(program, device).total.seconds


def search(options: SearchOptions, report: Report, progress: Progress) -> Frontier:
    """Try strides first, then what is near the best.  Raises L2CError, with nothing written, if the options cannot be met."""
    check_target(options.out)
    subject = subject_of(options, options.sampler)
    report = report if subject.workers.leads else id
    for line in subject.source.describe():
        report(line)
    make_folder(options.out, "out")
    step = progress("searching", options.iterations) if subject.workers.leads else unsaid
    tried: dict[Candidate, Tried] = {}
    uncached, count = subject.source.schedule, len(subject.source.schedule.calls)
    request = subject.request(TRAIN, 0)
    wanted = subject.latents(uncached, request)

    def attempt(candidate: Candidate) -> None:
        if candidate not in tried and len(tried) < options.iterations:
            schedule = candidate.schedule(uncached)
            error = subject.error(schedule, request, wanted)
            tried[candidate] = Tried(
                full=candidate.full, rules=candidate.rules, seconds=seconds(subject, schedule, options.times_on), error=error
            )
            step()

    levels, patterns = levels_of(subject), kinds(subject.family.sublayers)
    chance = np.random.default_rng([options.seed, TRAIN])
    for candidate in spread(list(by_stride(count, patterns, levels)), options.iterations // 2):
        attempt(candidate)
    for _ in range(20 * options.iterations):  # a small model has few neighbours
        best = undominated(tried.values())
        attempt(neighbour(best[chance.integers(len(best))].candidate, count, patterns, levels, chance))
        if len(tried) == options.iterations:
            break
    frontier = confirmed(subject, tuple(tried.values()), options)
    if subject.workers.leads:
        write(options.out, frontier, uncached)
    subject.workers.part()
    return frontier


def spread(candidates: list[Candidate], most: int) -> list[Candidate]:
    """At most so many, evenly."""
    return candidates if len(candidates) <= most else [candidates[n * len(candidates) // most] for n in range(most)]


def levels_of(subject: Subject) -> tuple[str, ...]:
    """The levels that the model has."""
    try:
        subject.spans((STACK,))
    except ScheduleError:
        return tuple(level for level in LEVELS if level != STACK)
    return LEVELS


def confirmed(subject: Subject, tried: tuple[Tried, ...], options: SearchOptions) -> Frontier:
    """The frontier with errors of noise that the search has not seen."""
    uncached, request = subject.source.schedule, subject.request(EVALUATE, 0)
    wanted = subject.latents(uncached, request)
    seen = [
        msgspec.structs.replace(one, error=subject.error(one.candidate.schedule(uncached), request, wanted))
        for one in undominated(tried)
    ]
    return Frontier(
        out=str(options.out), family=uncached.family, sampler=uncached.sampler, steps=uncached.steps, device=options.times_on,
        uncached_seconds=seconds(subject, uncached, options.times_on), points=tuple(undominated(seen)), tried=tried,
    )  # fmt: skip


def write(folder: Path, frontier: Frontier, uncached: Schedule) -> None:
    for path, point in zip(frontier.schedules, frontier.points, strict=True):
        replace(path, point.candidate.schedule(uncached).to_json())
    for old in folder.glob("schedule-*.json"):
        if old not in frontier.schedules:
            old.unlink()
    replace(folder / "tradeoff.json", msgspec.json.format(msgspec.json.encode(frontier), indent=1) + b"\n")
    plot.frontier_picture(frontier, folder / "tradeoff.png")
