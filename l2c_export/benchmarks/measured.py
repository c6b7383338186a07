"""What a benchmark has measured, and what follows: ratios, and where a speed-up comes from.

`Result` is what `l2c bench --json` prints, and its fields are the schema; all times are seconds, all sizes bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import msgspec
import numpy as np

from ..support.machine import Machine
from ..support.neighbours import BUSY, mean
from .contenders import COMPARED, OURS, BenchRequest, Settings

QUIET = 100 / 7  # the percentile of the rounds that counts: of 15 the third fastest
UNSTEADY = 0.05  # the most that may lie between a contender's fastest image and what counts as its time


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
    quiet: float  # seconds per image while nothing else runs: of the fastest images of all rounds, the `QUIET` percentile
    per_image: Spread  # of all images
    per_call: Spread  # one network evaluation of the whole batch
    timeline: tuple[float, ...]  # the median of every call, in sampling order
    images_per_second: float  # on the quiet machine
    first_image_seconds: float  # from the start of the process: imports, loading, building, and one image
    load_seconds: float
    compile_seconds: float | None  # l2c-export's for our twins; torch.compile's, from its first image
    artefact_bytes: int  # the whole artefact; for PyTorch the weights alone
    host_bytes: int | None  # the peak of the process's resident memory, mapped weights included
    gpu_bytes: int | None  # by how much the GPU's used memory grew
    loop_overhead: float | None  # what the loop adds to its engine runs, as a share
    loops: tuple[tuple[float, ...], ...]  # by round: the seconds of every loop
    seconds: tuple[tuple[float, ...], ...]  # by loop, of all rounds in their order: the seconds of every call

    @staticmethod
    def quietest(loops: Sequence[Sequence[float]]) -> float:
        """`quiet`, of loops by round."""
        return float(np.percentile([min(visit) for visit in loops], QUIET))


class LeftOut(msgspec.Struct, frozen=True):
    contender: str
    reason: str


class Ratio(msgspec.Struct, frozen=True):
    """How many times as fast `fast` is as `slow`, and the extremes of the rounds.

    Without a value it is `refused`, or the rounds were disturbed (see `Result.disturbed`) and their extremes are all there is.
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
    """The speed-up over uncached PyTorch as a product: total = runtime x schedule."""

    total: Ratio
    factors: tuple[Factor, ...]


class Result(msgspec.Struct, frozen=True, kw_only=True):
    format: Literal["l2c-bench"] = "l2c-bench"
    version: Literal[3] = 3
    artefact: str
    request: BenchRequest
    rounds: int
    orders: tuple[tuple[str, ...], ...]  # of the contenders, in every round
    others: tuple[float | None, ...]  # by round: the share of the processors that other programs wanted; None if unknown
    disturbed: tuple[str, ...]  # why no ratio is given; empty where the contenders were left alone
    machine: Machine
    contenders: tuple[Measured, ...]  # ours first
    left_out: tuple[LeftOut, ...]
    ratios: tuple[Ratio, ...]  # of ours over every other contender
    attribution: Attribution | None

    def of(self, name: str) -> Measured | None:
        return next((contender for contender in self.contenders if contender.name == name), None)


def ratio(slow: Measured, fast: Measured, allowed: frozenset[str] = COMPARED) -> Ratio:
    """How many times as fast `fast` is; refused if their settings differ in anything but `allowed`."""
    a, b = msgspec.structs.asdict(slow.settings), msgspec.structs.asdict(fast.settings)
    differ = tuple(name for name in a if a[name] != b[name])
    for name in differ:
        if name not in allowed:
            return Ratio(slow.name, fast.name, differ=differ, refused=f"{name}: {a[name]} and {b[name]}")
    within = [min(a) / min(b) for a, b in zip(slow.loops, fast.loops, strict=True)]
    return Ratio(slow.name, fast.name, slow.quiet / fast.quiet, min(within), max(within), differ)


def times(ratio: Ratio) -> str:
    if ratio.value is not None:
        return f"{ratio.value:.2f}x as fast"
    return "not comparable" if ratio.refused else "no ratio"


def disturbances(contenders: Sequence[Measured], others: Sequence[float | None]) -> tuple[str, ...]:
    """Why the times are not those of a quiet machine: nobody was left alone, or some contender was not often enough."""
    reasons, share = [], mean(others)
    if share is not None and share > BUSY:
        reasons.append(f"busy: other programs wanted {share:.0%} of the processors during the rounds")
    distances = {contender.name: contender.quiet / contender.per_image.fastest - 1 for contender in contenders}
    worst = max(distances, key=lambda name: distances[name])
    if distances[worst] > UNSTEADY:
        reasons.append(f"unsteady: even in its quiet rounds {worst} took {distances[worst]:.0%} longer than in its fastest")
    return tuple(reasons)


def summed_up(
    folder: str, request: BenchRequest, machine: Machine, orders: tuple[tuple[str, ...], ...], others: tuple[float | None, ...],
    contenders: Sequence[Measured], left_out: Sequence[LeftOut],
) -> Result:  # fmt: skip
    """What follows from the contenders' times, ours first.  Where the rounds were disturbed no ratio has a value."""
    disturbed = disturbances(contenders, others)
    ratios = [ratio(other, contenders[0]) for other in contenders[1:]]
    return Result(
        artefact=folder,
        request=request,
        rounds=len(orders),
        orders=orders,
        others=others,
        disturbed=disturbed,
        machine=machine,
        contenders=tuple(contenders),
        left_out=tuple(left_out),
        ratios=tuple(msgspec.structs.replace(r, value=None) if disturbed else r for r in ratios),
        attribution=None if disturbed else attribute({contender.name: contender for contender in contenders}),
    )


# Each link of the chain from PyTorch to our artefact changes one thing.  With its twin in the run a factor has parts.
CHAIN = (("runtime", None, "pytorch", "uncached"), ("schedule", None, "uncached", OURS))
PARTS = (
    ("engines", "runtime", "pytorch", "uncached-no-hoist"),
    ("hoisting", "runtime", "uncached-no-hoist", "uncached"),
    ("skipping", "schedule", "uncached", "no-fold"),
    ("folding", "schedule", "no-fold", OURS),
)


def attribute(contenders: Mapping[str, Measured]) -> Attribution | None:
    """Where the speed-up over PyTorch comes from; None without both ends and the twin between, comparable ones."""
    if not {"pytorch", "uncached", OURS} <= set(contenders):
        return None
    total = ratio(contenders["pytorch"], contenders[OURS])
    links = [(name, parent, a, b) for name, parent, a, b in (*CHAIN, *PARTS) if a in contenders and b in contenders]
    same = COMPARED - {"runtime"}  # a twin that runs on something else would give the schedule the runtime's gain
    factors = [
        Factor(n, parent, ratio(contenders[a], contenders[b], COMPARED if a == "pytorch" else same))
        for n, parent, a, b in links
    ]
    if None in (total.value, *(factor.ratio.value for factor in factors if factor.part_of is None)):
        return None
    return Attribution(total, tuple(factors))
