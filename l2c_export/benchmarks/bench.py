"""How fast is it, and why: an artefact beside PyTorch, other backends, and itself without its schedule.

Every contender has a process of its own.  In every round each makes images for a second, in a new random order, after a pause
in which the threads of the last one stop spinning; and it starts three times, because the memory that a process gets makes it
some percent faster or slower.  A ratio is that of the fastest images of the rounds, without the luckiest of these: what else a
machine does can only slow an image down, and does so for seconds at a time.  On two cores with a noisy neighbour, ratios of
medians differed by 45 % between two runs, these by 5 %.  They are given only between contenders that did the same work, and
only where enough rounds were left alone (see `measured.disturbances`).
"""

from __future__ import annotations

import contextlib
import os
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from ..artefact import shipped, store
from ..backends.descriptors import packages
from ..errors import L2CError, UsageError
from ..support import machine, neighbours
from ..support.files import Report
from ..support.log import logged
from ..support.progress import Progress, Step, unsaid, unseen
from ..support.words import counted, duration
from .contenders import OURS, BenchRequest, Contender, chosen, twins_of
from .measured import LeftOut, Measured, Result, Spread, summed_up
from .process import Process, Ready, Timed
from .twins import contender

PAUSE = 0.2  # seconds before every visit
VISIT = 1.0  # seconds at least that a contender makes images for, before the next has its turn
STARTS, QUICK = 3, 10.0  # processes that a contender has, one after the other, if its first image takes no more seconds
ROUNDS, BUDGET = (3, 15), 30.0  # fewest and most rounds, and the seconds that the slowest contender may take, if nobody says


def bench(
    path: str | os.PathLike[str],
    *,
    against: str | Sequence[str] | None = None,
    passes: bool = False,
    rounds: int | None = None,
    images: int = 1,
    guidance_scale: float | None = None,
    seed: int = 0,
    threads: int | None = None,
    device: str | None = None,
    report: Report = logged,
    progress: Progress = unseen,
) -> Result:
    """Measure the artefact in `path` beside PyTorch, other backends, and itself without its schedule.  Times are seconds.

    `against` names contenders (`contenders.KNOWN`), in a list or with commas between; by default all that are installed.
    `passes` adds twins that lack a pass of the compiler.  In each of `rounds` every contender makes images for a second;
    without, there are 3 to 15.  `images` are made at a time, on `threads` (all cores) of `device` ("cpu" or "cuda"),
    with `guidance_scale` (the artefact's); `seed` is that of the noise and of the order of the rounds.
    Raises UsageError, and L2CError where the artefact itself cannot run; others are then left out, with the reason.
    """
    request = BenchRequest(images=images, seed=seed, guidance_scale=guidance_scale,
                           threads=machine.cores() if threads is None else threads, device=device)  # fmt: skip
    return contest(Path(shipped.place(path)), chosen(against), request, rounds, against is None, passes, report, progress)


def contest(
    folder: Path, names: Sequence[str], request: BenchRequest, rounds: int | None = None, distinct: bool = False,
    passes: bool = False, report: Report = id, progress: Progress = unseen,
) -> Result:  # fmt: skip
    """Measure an artefact beside the contenders in `names`; who cannot take part is left out, with the reason.

    Without `rounds` there are as many as keep the slowest contender busy for half a minute.  `distinct` leaves out the backend
    that the artefact runs on anyway; `passes` adds the twins that isolate a compiler pass.
    Raises L2CError where the artefact itself cannot run.
    """
    manifest = store.read(folder, verify=False)
    store.check_linked(folder, manifest)
    if request.guidance_scale is None:  # one for all: a twin that is compiled again has its family's
        request = msgspec.structs.replace(request, guidance_scale=manifest.guidance.scale)
    if not 1 <= request.images <= manifest.batch:
        raise UsageError(f"images={request.images}: this artefact was compiled for 1 to {manifest.batch} (batch=..)")
    if rounds is not None and rounds < 1:
        raise UsageError(f"rounds={rounds}: must be at least 1")
    here = machine.examine(packages())
    wanted = list(dict.fromkeys((OURS, *names, *(["uncached", *twins_of(manifest)] if passes else []))))
    left_out: list[LeftOut] = []
    with tempfile.TemporaryDirectory() as root, contextlib.ExitStack() as running:
        contenders: list[tuple[Contender, float | None]] = []
        for name in wanted:
            try:
                contenders.append(contender(name, folder, manifest, Path(root), report))
            except L2CError as error:
                left_out.append(LeftOut(name, str(error)))
        started: list[Started] = []
        for entrant, compiling in contenders:
            if distinct and started and entrant.backend and started[0].ready.settings.runtime.startswith(entrant.backend):
                continue
            try:
                started.append(start(entrant, request, compiling, running, report))
            except L2CError as error:
                if entrant.name == OURS:
                    raise
                left_out.append(LeftOut(entrant.name, str(error)))
        rounds = rounds or enough(max(runner.seconds for runner in started))
        report(announced(started, rounds))
        measurements = measure(started, rounds, random.Random(request.seed), progress("measuring", rounds))
        measured = [finish(runner, measurements.visits[runner.contender.name]) for runner in started]
    return summed_up(str(folder), request, here, measurements.orders, measurements.others, measured, left_out)


class Started(msgspec.Struct, frozen=True):
    """A contender that is ready and warm."""

    contender: Contender
    process: Process
    ready: Ready
    compiling: float | None
    first_image_seconds: float
    seconds: float  # of an image when it is warm
    gpu_bytes: int | None


def enough(seconds: float) -> int:
    """How many rounds, for images that take so long."""
    return int(np.clip(BUDGET / max(seconds, VISIT), *ROUNDS))


def expected(started: Sequence[Started], rounds: int) -> float:
    """The seconds that all rounds take, by the images that the contenders have made until now."""
    visits = sum(PAUSE + max(VISIT + runner.seconds / 2, runner.seconds) for runner in started)
    again = sum(runner.first_image_seconds + runner.seconds for runner in started if runner.first_image_seconds <= QUICK)
    return rounds * visits + (min(STARTS, rounds) - 1) * again


def announced(started: Sequence[Started], rounds: int) -> str:
    what = f"{counted(rounds, 'round')} of {counted(len(started), 'contender')}"
    return f"measuring {what}: about {duration(expected(started, rounds))}; rounds=N for more or fewer"


def start(
    entrant: Contender, request: BenchRequest, compiling: float | None, running: contextlib.ExitStack, report: Report
) -> Started:
    """Start a contender alone and warm it up, so that its time to the first image is its own."""
    before = machine.gpu_bytes_used()
    process = Process(entrant, request)
    running.callback(process.stop)
    ready, first = process.wait()
    warm = process.image().seconds
    after = machine.gpu_bytes_used()
    report(f"{entrant.name}: first image after {first:.1f} s, {ready.settings.runtime}")
    return Started(entrant, process, ready, compiling, first, warm, None if before is None or after is None else after - before)


class Rounds(msgspec.Struct, frozen=True):
    """By round: the order of the contenders, what others wanted, and by contender the times of its images."""

    orders: tuple[tuple[str, ...], ...]
    others: tuple[float | None, ...]  # the share of the processors; None if unknown
    visits: dict[str, list[list[Timed]]]

    def __add__(self, later: Rounds) -> Rounds:
        visits = {name: own + later.visits[name] for name, own in self.visits.items()}
        return Rounds(self.orders + later.orders, self.others + later.others, visits)


def measure(started: Sequence[Started], rounds: int, rng: random.Random, step: Step) -> Rounds:
    """All rounds, in parts between which every contender that starts quickly does so again."""
    processes = [runner.process for runner in started]
    total = interleave(processes, 0, rng)
    for part, some in enumerate(np.array_split(np.arange(rounds), min(STARTS, rounds))):
        for runner in started if part else ():
            if runner.first_image_seconds <= QUICK:
                runner.process.renew()
        total += interleave(processes, len(some), rng, step)
    return total


def interleave(processes: Sequence[Process], rounds: int, rng: random.Random, step: Step = unsaid) -> Rounds:
    """Some rounds, in each of which every process makes images for a while."""
    orders, others, visits = [], [], {process.name: list[list[Timed]]() for process in processes}
    for _ in range(rounds):
        order, shares = rng.sample(processes, len(processes)), []
        for process in order:
            shares.append(neighbours.pause(PAUSE))
            visits[process.name].append(visit(process))
        orders.append(tuple(process.name for process in order))
        others.append(neighbours.mean(shares))
        step()
    return Rounds(tuple(orders), tuple(others), visits)


def visit(process: Process) -> list[Timed]:
    began, images = time.perf_counter(), list[Timed]()
    while not images or time.perf_counter() - began < VISIT:
        images.append(process.image())
    return images


def finish(runner: Started, visits: Sequence[Sequence[Timed]]) -> Measured:
    """Ask for what is known at the end, and sum up."""
    images = runner.ready.settings.images
    loops = tuple(tuple(timed.seconds for timed in visit) for visit in visits)
    quiet = Measured.quietest(loops) / images
    per_image = Spread.of(loop / images for visit in loops for loop in visit)
    seconds = [timed.calls for visit in visits for timed in visit]
    compiling = runner.compiling
    if runner.contender.runtime == "torch-compile":
        compiling = max(0.0, runner.first_image_seconds - runner.ready.load_seconds - images * per_image.median)
    time.sleep(PAUSE)
    return Measured(
        name=runner.contender.name,
        settings=runner.ready.settings,
        quiet=quiet,
        per_image=per_image,
        per_call=Spread.of(s for calls in seconds for s in calls),
        timeline=tuple(float(s) for s in np.median(np.array(seconds), axis=0)),
        images_per_second=1 / quiet,
        first_image_seconds=runner.first_image_seconds,
        load_seconds=runner.ready.load_seconds,
        compile_seconds=compiling,
        artefact_bytes=runner.ready.artefact_bytes,
        host_bytes=runner.process.ask("memory", int | None),
        gpu_bytes=runner.gpu_bytes,
        loop_overhead=runner.process.ask("overhead", float | None),
        loops=loops,
        seconds=tuple(seconds),
    )
