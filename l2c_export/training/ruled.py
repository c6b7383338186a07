"""What is learned under a rule, written: a schedule of version 2, and where its form can hold that, a router."""

from __future__ import annotations

import csv
import io
from argparse import Namespace
from pathlib import Path
from typing import Any

import msgspec
import torch

from ..models import families
from ..schedules import routers
from ..schedules.forecast import Terms, is_reuse
from ..schedules.forms import ScheduleSource
from ..schedules.resolve import resolve
from ..schedules.rules import SUBLAYER
from ..schedules.schedule import Schedule
from ..support.files import Report, make_folder
from ..support.progress import Progress, unsaid
from . import plot
from .learn import Learning
from .lessons import EVALUATE
from .loop import Following, RuledLoop
from .options import check_target
from .ruled_options import RuledOptions
from .scores import candidates
from .state import LOG, replace
from .subject import subject_of
from .tradeoff import Point, Tradeoff

ROUNDING = 1e-5  # of coefficients in float32


class RuledSummary(msgspec.Struct, frozen=True, kw_only=True, rename={"lambda_": "lambda"}):
    """What `l2c train --rule --json` prints.  Errors are those of the final latents, relative, for noise not trained on."""

    out: str
    family: str
    sampler: str
    steps: int
    rule: str
    level: str
    full: tuple[int, ...]  # calls that compute everything
    iterations: int
    lambda_: float
    threshold: float | None  # None where no scores were learned
    removed: float  # of the values of the other calls: the share that follows
    error: float
    error_of_rule: float  # where everything follows, by the rule's own coefficients
    router: str | None  # None where its form cannot hold it
    batch: int
    precision: str
    device: str
    seconds: float
    random_weights: bool

    @property
    def schedule(self) -> Path:
        """The schedule that was learned, for `compile`."""
        return Path(self.out) / "schedule.json"

    def describe(self) -> list[str]:
        """Lines: what it found, and how to compile that."""
        own = f"threshold {self.threshold:.9g}: " if self.threshold is not None else ""
        router = "" if self.router else "; no router.pt, which could only reuse, in the calls where released routers do"
        return [
            f"{self.seconds:.0f} s on {self.device}; {len(self.full)} full calls",
            f"{self.out}: {own}{self.removed:.1%} of the other calls' values follow; error of the latents {self.error:.2%}, "
            f"by {self.rule} alone {self.error_of_rule:.2%}",
            f"compile it with l2c-export --schedule {self.schedule}{router}",
        ]


def learn_under_rule(options: RuledOptions, report: Report, progress: Progress) -> RuledSummary:
    """Learn, and write everything.  Raises L2CError, with nothing written, if the options cannot be met."""
    check_target(options.out)
    subject = subject_of(options, options.sampler)
    schedule = subject.source.schedule
    loop = RuledLoop(subject, options.full(len(schedule.calls)), options.rule, options.level)
    leads = subject.workers.leads
    report = report if leads else id
    for line in subject.source.describe():
        report(line)
    report(f"{len(loop.full)} full calls; in the other {len(loop.light)} every {options.level} follows by {options.rule}")
    make_folder(options.out, "out")
    learning = Learning(subject, loop, options, report)
    count = options.iterations * (options.learns_scores + options.learn_coefficients)
    choice = learning.run(progress("training", count) if leads else unsaid)
    learned_schedule = schedule_of(loop, choice, options.rule)
    if learning.threshold is not None:
        learned_schedule = msgspec.structs.replace(learned_schedule, threshold=learning.threshold)
    points, rule = measured(learning, choice, learned_schedule)
    router = router_of(learning, learned_schedule)
    summary = RuledSummary(
        out=str(options.out), family=learned_schedule.family, sampler=learned_schedule.sampler, steps=learned_schedule.steps,
        rule=options.rule, level=options.level, full=tuple(sorted(loop.full)), iterations=options.iterations,
        lambda_=learning.lambda_, threshold=learning.threshold, removed=removed_by(choice), error=points[0].error,
        error_of_rule=rule, router=str(options.out / "router.pt") if router else None, batch=options.batch,
        precision=options.precision, device=subject.workers.describe(), seconds=learning.seconds,
        random_weights=subject.source.checkpoint is None,
    )  # fmt: skip
    if leads:
        write(options.out, learned_schedule, learning, points, router)
    subject.workers.part()
    for line in summary.describe():
        report(line)
    return summary


def measured(learning: Learning, choice: Following, schedule: Schedule) -> tuple[list[Point], float]:
    """What was found, then every threshold of the curve by the rule's own coefficients; and the error of the rule alone."""
    subject, loop, rule = learning.subject, learning.loop, learning.options.rule
    request = subject.request(EVALUATE, 0)
    uncached = subject.latents(subject.source.schedule, request)

    def point(threshold: float, choice: Following, schedule: Schedule) -> Point:
        error = subject.error(schedule, request, uncached)
        return Point(threshold=threshold, removed=removed_by(choice), mse=None, error=error)

    own = point(learning.threshold or 0.0, choice, schedule)
    nothing = loop.by_the_rule()
    alone = point(1.0, nothing, schedule_of(loop, nothing, rule)).error
    if learning.scores is None or learning.threshold is None:
        return [own], alone
    others = [t for t in candidates(learning.scores, learning.threshold) if t != learning.threshold]
    choices = [nothing._replace(kept=learning.kept(threshold)) for threshold in others]
    rest = [point(t, one, schedule_of(loop, one, rule)) for t, one in zip(others, choices, strict=True)]
    return [own, *rest], alone


def removed_by(choice: Following) -> float:
    return float(1 - choice.kept.float().mean())


def write(folder: Path, schedule: Schedule, learning: Learning, points: list[Point], router: bytes | None) -> None:
    replace(folder / "schedule.json", schedule.to_json())
    text = io.StringIO()
    csv.writer(text).writerows([("learned", "iteration", "mse", "computed"), *learning.log])
    replace(folder / LOG, text.getvalue().encode())
    if router:
        replace(folder / "router.pt", router)
    if learning.scores is None:
        return
    ascending = tuple(sorted(points, key=lambda point: point.removed))
    curve = Tradeoff(family=schedule.family, steps=schedule.steps, iterations=learning.options.iterations,
                     lambda_=learning.lambda_, chosen=points[0], points=ascending)  # fmt: skip
    replace(folder / "tradeoff.json", msgspec.json.format(msgspec.json.encode(curve), indent=1) + b"\n")
    plot.tradeoff_picture(curve, folder / "tradeoff.png")


def schedule_of(loop: RuledLoop, choice: Following, rule: str) -> Schedule:
    """The schedule that does what the loop does by `kept`: by the rule's name where that means the same, else as terms."""
    uncached, wanted, kept = loop.subject.source.schedule, loop.terms(choice), choice.kept.tolist()
    columns = range(uncached.columns)
    computed: list[Any] = [columns for _ in loop.calls]
    rules: dict[int, dict[str, Any]] = {}
    whole = loop.level != SUBLAYER
    for n, row in zip(loop.light, kept, strict=True):
        computed[n] = (columns if row[0] else ()) if whole else [j for j, keeps in enumerate(row) if keeps]
        if not all(row):
            rules[n] = {loop.level if whole else "*": rule}
    named = uncached.computing(computed).following(rules)
    read = resolve(named.cacheable, named.calls)
    for n, terms in zip(loop.light, wanted, strict=True):
        if n in rules:
            rules[n] |= {name: terms[name] for name in named.derived(n) if not same(read[n][name], terms[name])}
    return msgspec.structs.replace(named.following(rules), source=ScheduleSource())


def same(a: Terms, b: Terms) -> bool:
    """Whether terms are the same, but for rounding."""
    ages = [age for age, _ in a] == [age for age, _ in b]
    return ages and all(abs(x - y) <= ROUNDING * max(1.0, abs(x)) for (_, x), (_, y) in zip(a, b, strict=True))


def router_of(learning: Learning, schedule: Schedule) -> bytes | None:
    """The router of scores, where its form can hold what was learned."""
    options, source = learning.options, learning.subject.source
    reuse = is_reuse(options.rule) and options.level == SUBLAYER and not options.learn_coefficients
    descriptor = families.of(schedule.family)
    if learning.scores is None or not reuse or schedule.sampler != descriptor.sampler or descriptor.captured:
        return None
    rows = {n: row for n, row in enumerate(routers.router_rows(schedule.sampler, schedule.steps)) if row is not None}
    if set(rows) != set(learning.loop.light):
        return None
    logits = torch.zeros(schedule.steps, routers.width(source.family))
    for scores, n in zip(learning.scores, learning.loop.light, strict=True):
        logits[rows[n], : len(scores)] = torch.logit(torch.from_numpy(scores))
    args = Namespace(**{name: str(value) for name, value in vars(options).items()})
    return routers.encode(schedule.family, logits, {}, args)
