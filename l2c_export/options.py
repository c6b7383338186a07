"""What a user asks the compiler for, and what that means: a model, a schedule and weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from . import models, routers, schedule, weights
from .backends import AUTO, BACKENDS, PRECISIONS
from .errors import ModelError, ScheduleError, UsageError
from .models.base import Family
from .pipeline import LINKS
from .program import DTYPES
from .samplers import updates
from .schedule import Schedule, from_rule, is_rule
from .weights import Types

GUIDANCE = ("first3", "all", "none")


@dataclass(frozen=True)
class Options:
    """The options of `l2c-export`; the command's help describes each."""

    schedule: str
    out: Path = Path("engines")
    model: str | None = None
    weights: str | None = None
    steps: int | None = None
    threshold: float | None = None
    sampler: str | None = None
    guidance: str | None = None
    batch: int = 1
    precision: str = "fp32"
    fp32: tuple[str, ...] = ()
    backend: str = AUTO
    link: str = "shared"
    cache: bool = True
    hoist: bool = True
    fold: bool = True
    max_graphs: int | None = None
    dump: Path | None = None

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise UsageError(f"--batch {self.batch}: must be at least 1")
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise UsageError(f"--threshold {self.threshold}: must be between 0 and 1")
        if self.max_graphs is not None and self.max_graphs < 1:
            raise UsageError(f"--max-graphs {self.max_graphs}: must be at least 1")
        if self.sampler is not None:
            updates(self.sampler, 2)
        if self.backend not in (AUTO, *BACKENDS):
            raise UsageError(f"--backend {self.backend}: use one of {', '.join((AUTO, *BACKENDS))}")
        precisions = tuple(dict.fromkeys(p for able in PRECISIONS.values() for p in able))
        chosen = (("guidance", GUIDANCE), ("precision", precisions), ("link", LINKS))
        for name, known in chosen:
            if getattr(self, name) not in (None, *known):
                raise UsageError(f"--{name} {getattr(self, name)}: use one of {', '.join(known)}")
        if self.fp32 and self.precision == "fp32":
            raise UsageError(f"--fp32 {self.fp32[0]}: all of the model is float32: use it with --precision fp16 or bf16")
        if self.precision not in PRECISIONS.get(self.backend, precisions):
            able = " or ".join(name for name, known in PRECISIONS.items() if self.precision in known)
            raise UsageError(f"--precision {self.precision}: --backend {self.backend} has none: use --backend {able}")

    @property
    def weight_types(self) -> Types:
        return Types(DTYPES[self.precision], self.fp32)


@dataclass(frozen=True)
class Source:
    """A model, its schedule, and where its weights come from (a file, a seed, or nothing yet)."""

    family: Family
    name: str | None
    schedule: Schedule
    guidance: str
    checkpoint: weights.Checkpoint | None
    seed: int | None

    def describe(self) -> str:
        """One line: what was understood."""
        computed = sum(len(call.computed) for call in self.schedule.calls)
        total = self.schedule.columns * len(self.schedule.calls)
        bound = f"random weights, seed {self.seed}" if self.seed is not None else "no weights"
        return (
            f"{self.name or self.family.name}, {self.schedule.columns} sublayers, {self.schedule.sampler} with "
            f"{self.schedule.steps} steps: {computed} of {total} sublayers computed, "
            f"{self.checkpoint.path if self.checkpoint else bound}"
        )


def resolve(options: Options) -> Source:
    """Read the schedule and the weights' names, and find the model that fits both."""
    seed = weights.random_seed(options.weights) if options.weights else None
    checkpoint = weights.open_checkpoint(Path(options.weights)) if options.weights and seed is None else None
    learned = None if is_rule(options.schedule) else _read(Path(options.schedule))
    kind, columns = (learned.family, learned.columns) if learned else (None, None)
    family, name = models.resolve(options.model, kind, columns, checkpoint.shapes if checkpoint else None)
    if kind not in (None, family.name):
        raise ModelError(f"{options.schedule} is for a {kind} model, but the model is a {family.name}: check --model")
    for name in options.fp32:
        if name not in family.sublayers:
            raise UsageError(
                f"--fp32 {name}: no sublayer of the model: they are {family.sublayers[0]} .. {family.sublayers[-1]}"
            )
    schedule = _schedule(options, family, learned)
    if options.sampler not in (None, schedule.sampler):
        raise UsageError(f"--sampler {options.sampler}: {options.schedule} was made for {schedule.sampler}")
    guidance = options.guidance or (family.default_guidance[0] if family.null_label is not None else "none")
    if guidance != "none" and family.null_label is None:
        raise UsageError(f"--guidance {guidance}: the model was trained without a null class: use --guidance none")
    schedule = schedule if options.cache else schedule.uncached()
    return Source(family, name, schedule, guidance, checkpoint, seed)


def _read(path: Path) -> routers.Router | Schedule:
    if not path.is_file():
        raise ScheduleError(f"--schedule {path}: no such file (rules are every:K and full:0,A,B,..)")
    return schedule.read(path) if path.suffix == ".json" else routers.read(path)


def _schedule(options: Options, family: Family, learned: routers.Router | Schedule | None) -> Schedule:
    columns = len(family.sublayers)
    if isinstance(learned, routers.Router):
        threshold = options.threshold
        if threshold is None:
            threshold = routers.default_threshold(family.name, family.latent[1])
        return learned.schedule(threshold, options.steps, columns)
    if options.threshold is not None:
        raise UsageError(f"--threshold {options.threshold}: only a router has scores to compare with a threshold")
    if learned is None:
        if options.steps is None:
            raise UsageError(f"--schedule {options.schedule} needs --steps")
        return from_rule(options.schedule, family.name, options.sampler or family.default_sampler, options.steps, columns)
    if learned.columns != columns:
        raise ScheduleError(
            f"{options.schedule}: {learned.columns} columns, but the model has {columns} sublayers: check --model"
        )
    if options.steps not in (None, learned.steps):
        raise ScheduleError(
            f"{options.schedule}: made for {learned.steps} steps, but --steps is {options.steps}: use no --steps"
        )
    return learned
