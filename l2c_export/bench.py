"""How fast is it, and why: an artefact beside PyTorch, other backends, and itself without its schedule.

Every contender has a process of its own.  In every round each makes one image, in a new random order, after a pause in which
the threads of the last one stop spinning; a ratio is the median over the rounds of the ratios within a round, so that
what else the machine does meets both.  It is given only between contenders that did the same work.

`Result` is what `--json` writes, and its fields are the schema; all times are seconds, all sizes bytes.
"""

from __future__ import annotations

import contextlib
import random
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from . import artefact, machine
from .contenders import COMPARED, OURS, Contender, Request, Settings, contender, twins_of
from .errors import ArtefactError, L2CError, UsageError
from .machine import Machine
from .worker import Process, Ready, Timed

PAUSE = 0.2  # seconds before every image
Report = Callable[[str], object]


class Spread(msgspec.Struct, frozen=True):
    """Percentiles, interpolated between neighbours as numpy does; of a few rounds p99 is close to the slowest."""

    median: float
    p90: float
    p99: float
    fastest: float

    @staticmethod
    def of(seconds: Iterable[float]) -> Spread:
        values = np.fromiter(seconds, float)
        median, p90, p99 = np.percentile(values, [50, 90, 99]).tolist()
        return Spread(median, p90, p99, float(values.min()))


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """One contender.  An image's time is that of a loop over the number of images that it makes at a time.

    On a CPU a loop's time is the sum of its calls'; on a GPU the calls are those of another loop (see `worker.Timed`).
    """

    name: str
    settings: Settings
    per_image: Spread
    per_call: Spread  # one network evaluation of the whole batch
    timeline: tuple[float, ...]  # the median of every call, in sampling order
    images_per_second: float  # from the median
    first_image_seconds: float  # from the start of the process: imports, loading, building, and one image
    load_seconds: float
    compile_seconds: float | None  # l2c-export's for our twins; torch.compile's, from its first image
    artefact_bytes: int  # the whole artefact; for PyTorch the weights alone
    host_bytes: int | None  # the peak of the process's resident memory, mapped weights included
    gpu_bytes: int | None  # by how much the GPU's used memory grew
    loop_overhead: float | None  # what the loop adds to its engine runs, as a share
    loops: tuple[float, ...]  # seconds of the loop of every round
    seconds: tuple[tuple[float, ...], ...]  # of every call in every round


class LeftOut(msgspec.Struct, frozen=True):
    contender: str
    reason: str


class Ratio(msgspec.Struct, frozen=True):
    """How many times as fast `fast` is as `slow`: the median over the rounds, and the rounds' extremes.

    Without a `value`, `refused` says why the two are not comparable.
    """

    slow: str
    fast: str
    value: float | None = None
    lowest: float | None = None
    highest: float | None = None
    differ: tuple[str, ...] = ()  # the settings that the ratio is about
    refused: str | None = None


class Factor(msgspec.Struct, frozen=True):
    """A share of a speed-up; `part_of` names the factor that it is a factor of."""

    name: str
    part_of: str | None
    ratio: Ratio


class Attribution(msgspec.Struct, frozen=True):
    """The speed-up over uncached PyTorch as a product: total = runtime x schedule x (1 + residual).

    The residual is not zero because a product of medians is not the median of the products.
    """

    total: Ratio
    factors: tuple[Factor, ...]
    residual: float


class Result(msgspec.Struct, frozen=True, kw_only=True):
    format: Literal["l2c-bench"] = "l2c-bench"
    version: Literal[1] = 1
    artefact: str
    request: Request
    rounds: int
    orders: tuple[tuple[str, ...], ...]  # of the contenders, in every round
    machine: Machine
    contenders: tuple[Measured, ...]  # ours first
    left_out: tuple[LeftOut, ...]
    ratios: tuple[Ratio, ...]  # of ours over every other contender
    attribution: Attribution | None

    def of(self, name: str) -> Measured | None:
        return next((each for each in self.contenders if each.name == name), None)


def bench(folder: Path, names: Sequence[str], request: Request, rounds: int, distinct: bool = False, passes: bool = False,
          report: Report = id, progress: Callable[[], object] = lambda: None) -> Result:  # fmt: skip
    """Measure an artefact beside the contenders in `names`; who cannot take part is left out, with the reason.

    `distinct` leaves out the backend that the artefact runs on anyway; `passes` adds the twins that isolate a compiler pass.
    Raises L2CError where the artefact itself cannot run.
    """
    manifest = artefact.read(folder, verify=False)
    if manifest.weights is None:
        raise ArtefactError(f"{folder} has no weights yet: bind them with l2c link {folder} --weights PATH")
    if request.guidance_scale is None:  # one for all: a twin that is compiled again has its family's
        request = msgspec.structs.replace(request, guidance_scale=manifest.guidance.scale)
    if not 1 <= request.images <= manifest.batch:
        raise UsageError(f"--images {request.images}: this artefact was compiled for 1 to {manifest.batch} (--batch)")
    if rounds < 1:
        raise UsageError(f"--rounds {rounds}: must be at least 1")
    here = machine.examine()
    wanted = list(dict.fromkeys((OURS, *names, *(["uncached", *twins_of(manifest)] if passes else []))))
    left_out: list[LeftOut] = []
    with tempfile.TemporaryDirectory() as root, contextlib.ExitStack() as running:
        made: list[tuple[Contender, float | None]] = []
        for name in wanted:
            try:
                made.append(contender(name, folder, manifest, Path(root), report))
            except L2CError as error:
                left_out.append(LeftOut(name, str(error)))
        started: list[Started] = []
        for each, compiling in made:
            if distinct and started and each.backend and started[0].ready.settings.runtime.startswith(each.backend):
                continue
            try:
                started.append(start(each, request, compiling, running, report))
            except L2CError as error:
                if each.name == OURS:
                    raise
                left_out.append(LeftOut(each.name, str(error)))
        orders, made_in = interleave([s.process for s in started], rounds, random.Random(request.seed), progress)
        measured = [finish(each, made_in[each.contender.name]) for each in started]
    return Result(
        artefact=str(folder),
        request=request,
        rounds=rounds,
        orders=orders,
        machine=here,
        contenders=tuple(measured),
        left_out=tuple(left_out),
        ratios=tuple(ratio(other, measured[0]) for other in measured[1:]),
        attribution=attribute({each.name: each for each in measured}),
    )


class Started(msgspec.Struct, frozen=True):
    """A contender that is ready and warm."""

    contender: Contender
    process: Process
    ready: Ready
    compiling: float | None
    first_image_seconds: float
    gpu_bytes: int | None


def start(each: Contender, request: Request, compiling: float | None, running: contextlib.ExitStack, report: Report) -> Started:
    """Start a contender alone and warm it up, so that its time to the first image is its own."""
    before = machine.gpu_bytes_used()
    process = Process(each, request)
    running.callback(process.stop)
    ready, first = process.wait()
    process.image()
    after = machine.gpu_bytes_used()
    report(f"{each.name}: first image after {first:.1f} s, {ready.settings.runtime}")
    return Started(each, process, ready, compiling, first, None if before is None or after is None else after - before)


def interleave(
    processes: Sequence[Process], rounds: int, rng: random.Random, progress: Callable[[], object] = lambda: None
) -> tuple[tuple[tuple[str, ...], ...], dict[str, list[Timed]]]:
    """The order of every round, and by contender the times of every round."""
    orders, made = [], {process.name: list[Timed]() for process in processes}
    for _ in range(rounds):
        order = rng.sample(processes, len(processes))
        orders.append(tuple(process.name for process in order))
        for process in order:
            time.sleep(PAUSE)
            made[process.name].append(process.image())
        progress()
    return tuple(orders), made


def finish(each: Started, made: Sequence[Timed]) -> Measured:
    """Ask for what is known at the end, and sum up."""
    images = each.ready.settings.images
    per_image = Spread.of(timed.seconds / images for timed in made)
    seconds = [timed.calls for timed in made]
    compiling = each.compiling
    if each.contender.runtime == "torch-compile":
        compiling = max(0.0, each.first_image_seconds - each.ready.load_seconds - images * per_image.median)
    time.sleep(PAUSE)
    return Measured(
        name=each.contender.name,
        settings=each.ready.settings,
        per_image=per_image,
        per_call=Spread.of(s for calls in seconds for s in calls),
        timeline=tuple(float(s) for s in np.median(np.array(seconds), axis=0)),
        images_per_second=1 / per_image.median,
        first_image_seconds=each.first_image_seconds,
        load_seconds=each.ready.load_seconds,
        compile_seconds=compiling,
        artefact_bytes=each.ready.artefact_bytes,
        host_bytes=each.process.ask("memory", int | None),
        gpu_bytes=each.gpu_bytes,
        loop_overhead=each.process.ask("overhead", float | None),
        loops=tuple(timed.seconds for timed in made),
        seconds=tuple(seconds),
    )


def ratio(slow: Measured, fast: Measured, allowed: frozenset[str] = COMPARED) -> Ratio:
    """How many times as fast `fast` is; refused if their settings differ in anything but `allowed`."""
    a, b = msgspec.structs.asdict(slow.settings), msgspec.structs.asdict(fast.settings)
    differ = tuple(name for name in a if a[name] != b[name])
    for name in differ:
        if name not in allowed:
            return Ratio(slow.name, fast.name, differ=differ, refused=f"{name}: {a[name]} and {b[name]}")
    within = [a / b for a, b in zip(slow.loops, fast.loops, strict=True)]
    return Ratio(slow.name, fast.name, float(np.median(within)), min(within), max(within), differ)


def times(ratio: Ratio) -> str:
    return "not comparable" if ratio.value is None else f"{ratio.value:.2f}x as fast"


# Each link of the chain from PyTorch to our artefact changes one thing.  With its twin in the run a factor has parts.
CHAIN = (("runtime", None, "pytorch", "uncached"), ("schedule", None, "uncached", OURS))
PARTS = (
    ("engines", "runtime", "pytorch", "uncached-no-hoist"),
    ("hoisting", "runtime", "uncached-no-hoist", "uncached"),
    ("skipping", "schedule", "uncached", "no-fold"),
    ("folding", "schedule", "no-fold", OURS),
)


def attribute(found: Mapping[str, Measured]) -> Attribution | None:
    """Where the speed-up over PyTorch comes from; None without both ends and the twin between, comparable ones."""
    if not {"pytorch", "uncached", OURS} <= set(found):
        return None
    total = ratio(found["pytorch"], found[OURS])
    links = [(name, whole, a, b) for name, whole, a, b in (*CHAIN, *PARTS) if a in found and b in found]
    factors = [Factor(name, whole, ratio(found[a], found[b])) for name, whole, a, b in links]
    values = [factor.ratio.value for factor in factors if factor.part_of is None]
    if total.value is None or None in values:
        return None
    return Attribution(total, tuple(factors), total.value / float(np.prod(np.array(values, float))) - 1)
