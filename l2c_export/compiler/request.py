"""What a user asks the compiler for."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

from .. import demo
from ..artefact.manifest import LINKS
from ..backends import descriptors
from ..backends.descriptors import AUTO
from ..errors import UsageError
from ..ir.dtypes import Types
from ..ir.precisions import DTYPES, FP8
from ..samplers.reference import SAMPLERS
from ..samplers.scheduler_config import FLOWS, KINDS
from ..schedules.rules import Caching
from ..schedules.schedule import Schedule
from . import storing
from .storing import Stored

LATER = "none"  # as weights: they are bound by `link`, also where a folder has some
TEXT_PRECISIONS = ("fp32", "bf16")  # of the weights of text encoders, as they are stored
GUIDANCE = ("first3", "all", "none")  # a captured model may have another way
PathOrSchedule = str | os.PathLike[str] | Schedule
Loras = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]  # "FILE" or "FILE:SCALE", or several
CACHING = ("rule", "level", "full_first", "full_last")
FULL = "every:1"  # the rule that caches nothing


class Wanted(NamedTuple):
    """A program: its schedule and its steps, each by default the model's or the schedule's own."""

    schedule: str | Schedule | None
    steps: int | None


@dataclass(frozen=True)
class Options:
    """The options of `l2c-export`; the command's help describes each.

    `schedule` and `steps` are those of the first program, `further` of the others.
    """

    schedule: str | Schedule | None = None  # the demo model's own, or every call in full where nothing is cached
    out: Path = Path("engines")
    model: str | None = None
    weights: str | None = None
    lora: tuple[str, ...] = ()  # what is merged into them
    steps: int | None = None
    further: tuple[Wanted, ...] = ()
    threshold: float | None = None
    sampler: str | None = None
    guidance: str | None = None
    batch: int = 1
    precision: str = "fp32"
    fp32: tuple[str, ...] = ()
    bf16: tuple[str, ...] = ()  # sublayers without products in e4m3
    backend: str = AUTO
    link: str = "shared"
    cache: bool = True
    hoist: bool = True
    fold: bool = True
    max_graphs: int | None = None
    rule: str | None = None  # how the calls of every:K and its kin follow that are not full,
    level: str | None = None  # what of them does,
    full_first: int | None = None  # and which are full besides
    full_last: int | None = None
    dump: Path | None = None
    with_vae: bool = False
    vae: Path | None = None
    with_text: bool = False
    text_precision: str = "fp32"
    store: tuple[str, ...] = ()  # "TYPE" or "COMPONENT=TYPE": how matrices are stored, where not as they are computed
    size: tuple[int, int] | None = None  # height and width of the pictures, in pixels
    more_sizes: tuple[tuple[int, int], ...] = ()  # of the other programs
    tokens: int | None = None  # of a prompt
    cut: str | None = None  # a pattern of modules that are sublayers, too

    def __post_init__(self) -> None:
        brings_its_own = self.model == demo.NAME or not self.cache
        if self.schedule == "" or (self.schedule is None and not brings_its_own):
            wrong = "schedule=.. is missing" if self.schedule is None else "schedule='' is empty"
            raise UsageError(f"{wrong}: give a router, a schedule or a rule (only model='demo' brings its own)")
        for size in self.sizes:
            if not all(side > 0 and side % 8 == 0 for side in size):
                raise UsageError(f"size={size}: height and width are pixels, and multiples of 8")
            if self.sizes.count(size) > 1:
                raise UsageError(f"size={size}: give each size once")
        if self.cut is not None and not _is_pattern(self.cut):
            raise UsageError(f"cut={self.cut!r}: no regular expression, as single_transformer_blocks\\..*\\.attn is one")
        if self.tokens is not None and self.tokens < 1:
            raise UsageError(f"tokens={self.tokens}: must be at least 1")
        if self.batch < 1:
            raise UsageError(f"batch={self.batch}: must be at least 1")
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise UsageError(f"threshold={self.threshold}: must be between 0 and 1")
        if self.max_graphs is not None and self.max_graphs < 1:
            raise UsageError(f"max_graphs={self.max_graphs}: must be at least 1")
        self.caching  # noqa: B018  (raises UsageError)
        if self.sampler not in (None, *SAMPLERS, *KINDS, *FLOWS) and not is_config(str(self.sampler)):
            names = ", ".join(dict.fromkeys((*SAMPLERS, *KINDS, *FLOWS)))
            raise UsageError(f"sampler={self.sampler!r}: use one of {names}, or a scheduler_config.json")
        if self.backend not in (AUTO, *descriptors.names()):
            raise UsageError(f"backend={self.backend!r}: use one of {', '.join((AUTO, *descriptors.names()))}")
        precisions = descriptors.precisions()
        chosen = (("guidance", GUIDANCE), ("precision", precisions), ("link", LINKS), ("text_precision", TEXT_PRECISIONS))
        for name, known in chosen:
            if getattr(self, name) not in (None, *known):
                raise UsageError(f"{name}={getattr(self, name)!r}: use one of {', '.join(known)}")
        if self.text_precision != "fp32" and not self.with_text:
            raise UsageError(f"text_precision={self.text_precision!r}: there are no text encoders without with_text=True")
        self.stored  # noqa: B018  (raises UsageError)
        if self.fp32 and self.precision == "fp32":
            raise UsageError(f"fp32={self.fp32[0]!r}: all of the model is float32: use it with precision='fp16' or bf16")
        if self.bf16 and self.precision != FP8:
            raise UsageError(f"bf16={self.bf16[0]!r}: none of the model is e4m3: use it with precision='fp8'")
        if self.backend != AUTO and self.precision not in descriptors.named(self.backend).precisions:
            able = " or ".join(d.name for d in descriptors.BACKENDS if self.precision in d.precisions)
            raise UsageError(f"precision={self.precision!r}: backend={self.backend!r} has none: use backend={able!r}")

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Those that are asked for; without any there is the model's own."""
        return (() if self.size is None else (self.size,)) + self.more_sizes

    @property
    def programs(self) -> tuple[Options, ...]:
        """The options of each program by itself."""
        others = (replace(self, schedule=program.schedule, steps=program.steps, further=()) for program in self.further)
        return (replace(self, further=()), *others)

    @property
    def caching(self) -> Caching:
        """How calls follow that are not full, where the schedule is a rule.  Raises UsageError."""
        asked = {name: value for name in CACHING if (value := getattr(self, name)) is not None}
        return Caching(**asked)

    @property
    def stored(self) -> Stored:
        """The type in which each component's matrices are stored, where that is another one.  Raises UsageError."""
        stored = storing.parsed(self.store)
        has_decoder = self.with_vae or self.vae is not None
        for component, there, remedy in (("text", self.with_text, "with_text"), ("decoder", has_decoder, "with_vae")):
            if component in stored.named and not there:
                raise UsageError(f"store='{component}=..': there is none without {remedy}=True: use it, too, or leave this out")
        if stored.denoiser and self.link == "static":
            raise UsageError(f"store={self.store[0]!r}: link='static' keeps weights in whole graphs, as they are: use 'shared'")
        for component, precision in (("denoiser", self.precision), ("text", self.text_precision)):
            if component in stored.named or (component == "denoiser" and not self.with_text and not has_decoder):
                storing.check_narrower(stored, component, precision)
        return stored

    @property
    def weight_types(self) -> Types:
        return Types(DTYPES[self.precision], self.fp32)


def options_of(
    schedule: PathOrSchedule | Sequence[PathOrSchedule] | None, steps: int | Sequence[int] | None = None, **options: Any
) -> Options:
    """The options of a call in Python, where paths may be of any kind, and one of a thing stand for a list of one."""
    texts = {name: os.fspath(options[name]) for name in ("model", "weights", "sampler") if options.get(name) is not None}
    paths = {name: Path(options[name]) for name in ("out", "vae", "dump") if options.get(name) is not None}
    kept = {name: listed(options.get(name, ())) for name in ("fp32", "bf16")}
    store = storing.listed(options.get("store", ()))
    first, *further = wanted(schedule, steps)
    size = options.get("size")
    several = isinstance(size, Sequence) and all(isinstance(one, Sequence) for one in size)
    own, *others = tuple(map(tuple, size)) if several and size else (size,)
    loras = loras_of(options.get("lora", ()))
    fields = {**options, **texts, **paths, "lora": loras, "store": store, **kept, "size": own, "more_sizes": tuple(others)}
    return Options(**fields, schedule=first.schedule, steps=first.steps, further=tuple(further))


def listed(names: str | Sequence[str]) -> tuple[str, ...]:
    """One, or several."""
    return (names,) if isinstance(names, str) else tuple(names)


def loras_of(loras: Loras) -> tuple[str, ...]:
    """One, or several."""
    return tuple(os.fspath(one) for one in ((loras,) if isinstance(loras, (str, os.PathLike)) else loras))


def wanted(schedule: PathOrSchedule | Sequence[PathOrSchedule] | None, steps: int | Sequence[int] | None) -> list[Wanted]:
    """The programs that are asked for: several schedules, or one with several numbers of steps.  Raises UsageError."""
    is_one = schedule is None or isinstance(schedule, (str, os.PathLike, Schedule))
    schedules: list[Any] = [schedule] if is_one else list(cast("Sequence[Any]", schedule))
    counts = list(steps) if isinstance(steps, Sequence) else [steps]
    if not schedules or not counts:
        raise UsageError("schedule=.. and steps=.. need at least one each")
    if len(schedules) > 1 and len(counts) > 1:
        raise UsageError("several schedules and several numbers of steps: give one schedule with steps=.., or schedules alone")
    if len(set(counts)) < len(counts):
        raise UsageError(f"steps={','.join(map(str, counts))}: give each number once")
    read = [s if s is None or isinstance(s, Schedule) else os.fspath(s) for s in schedules]
    return [Wanted(s, n) for s in read for n in counts]


def is_config(sampler: str) -> bool:
    """Whether a sampler is a file rather than a name."""
    return sampler.endswith(".json") or Path(sampler).is_file()


def _is_pattern(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return bool(text)
