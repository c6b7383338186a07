"""Where does the time go: every engine run of the loop, by itself.

The loop hands out every engine in its turn, which is run and timed.  With the shared link that is a run per segment; a static
engine runs a whole call, and shows nothing of what is inside.

`Profile` is what `l2c profile --json` prints; times are seconds.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Literal

import msgspec
import numpy as np

from ..artefact.compiled import Compiled
from ..errors import UsageError
from ..ir.inputs import Inputs, usual
from ..runtime.loaded import Bound
from ..runtime.pipeline import Pipeline, load
from ..support.files import Report
from ..support.log import logged
from ..support.progress import Progress, unseen


class Event(msgspec.Struct, frozen=True):
    """One engine run; `start` counts from the beginning of the loop."""

    call: int  # a run of the prologue belongs to the call that needed it
    name: str  # the sublayer, or what else the engine computes
    engine: str
    start: float
    seconds: float
    kind: str  # of the engine's segment; a static engine is a "whole call", or a graph that runs before the loop


class Recording(msgspec.Struct, frozen=True):
    """One image's engine runs, and how long each call and all of it took."""

    events: tuple[Event, ...]
    calls: tuple[float, ...]

    @property
    def seconds(self) -> float:
        return sum(self.calls)

    @property
    def overhead(self) -> float:
        """What the loop adds to its engine runs, as a share of them."""
        return self.seconds / sum(event.seconds for event in self.events) - 1


class KindProfile(msgspec.Struct, frozen=True):
    """All runs of one kind of segment."""

    kind: str
    engines: int
    runs: int
    seconds: float
    share: float  # of the whole loop


class CallProfile(msgspec.Struct, frozen=True):
    """One network evaluation; `seconds` include what lies between its engine runs."""

    index: int
    timestep: float
    computed: int  # sublayers
    runs: int
    seconds: float


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """The image of median length among `rounds`, so that all its times add up."""

    format: Literal["l2c-profile"] = "l2c-profile"
    version: Literal[1] = 1
    artefact: str
    backend: str
    link: str
    precision: str
    images: int
    rounds: int
    seconds: float
    outside: float  # between the engine runs: the loop itself
    kinds: tuple[KindProfile, ...]  # the longest first
    calls: tuple[CallProfile, ...]
    events: tuple[Event, ...]


def profile(
    path: str | os.PathLike[str],
    *,
    rounds: int = 5,
    images: int = 1,
    guidance_scale: float | None = None,
    seed: int = 0,
    link: str | None = None,
    backend: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    report: Report = logged,
    progress: Progress = unseen,
) -> Profile:
    """Where the time of the artefact in `path` goes: it makes `images` at a time, `rounds` times.  Times are seconds.

    `link`, `backend`, `device` and `threads` are those of `load`, `guidance_scale` and `seed` those of a pipeline's call.
    `report` is told the backend, by default the log; `progress` of the rounds.  Raises UsageError, and what `load` raises.
    """
    pipe = load(path, backend, device, threads, link=link)
    report(f"backend: {pipe.backend}")
    inputs = pipe.inputs(**usual(pipe.manifest.inputs, images))
    return profile_pipeline(pipe, inputs, guidance_scale, images, seed, rounds, progress)


def profile_pipeline(
    pipe: Pipeline, inputs: Inputs, scale: float | None, images: int, seed: int, rounds: int, progress: Progress = unseen
) -> Profile:
    """Make a batch of `images` `rounds` times, and sum up the one of median length."""
    if rounds < 1:
        raise UsageError(f"rounds={rounds}: must be at least 1")
    step = progress("profiling", rounds)
    noise = pipe.noise(images, seed)
    recordings = []
    for _ in range(rounds):
        recordings.append(record(pipe, inputs, scale, noise))
        step()
    median = sorted(recordings, key=lambda recording: recording.seconds)[(rounds - 1) // 2]
    compiled = pipe.manifest.program()
    return Profile(
        artefact=str(pipe.path),
        backend=pipe.backend,
        link=pipe.link,
        precision=compiled.precision,
        images=images,
        rounds=rounds,
        seconds=median.seconds,
        outside=median.seconds - sum(event.seconds for event in median.events),
        kinds=tuple(kinds(median)),
        calls=tuple(calls(median, compiled)),
        events=median.events,
    )


def record(pipe: Pipeline, inputs: Inputs, scale: float | None, noise: np.ndarray) -> Recording:
    """Make one image, timing every engine run."""
    generation = pipe.generation(inputs, scale, len(noise))
    loop, compiled = generation.loop, pipe.manifest.program()
    for _ in loop.denoise(noise, generation.inputs, generation.guidance):
        pass  # binds and warms up
    events: list[Event] = []
    calls: list[float] = []

    def timed(index: int, bound: Bound) -> None:
        begin = time.perf_counter()
        bound.run()
        loop.memory.finish()
        kind = kind_of(bound.engine, compiled)
        events.append(Event(index, bound.name, bound.engine, begin - start, time.perf_counter() - begin, kind))

    start = last = time.perf_counter()
    for _ in loop.denoise(noise, generation.inputs, generation.guidance, timed):
        now = time.perf_counter()
        calls.append(now - last)
        last = now
    return Recording(tuple(events), tuple(calls))


def kind_of(engine: str, compiled: Compiled) -> str:
    """What an engine computes: the kind of its segment, or of a whole graph."""
    if engine in compiled.segments:
        return compiled.segments[engine].kind
    return engine if engine in compiled.before_loop else "whole call"


def kinds(recording: Recording) -> list[KindProfile]:
    """The runs of every kind of segment, the longest first."""
    events_of: dict[str, list[Event]] = defaultdict(list)
    for event in recording.events:
        events_of[event.kind].append(event)
    profiles = []
    for kind, events in events_of.items():
        seconds = sum(event.seconds for event in events)
        profiles.append(KindProfile(kind, len({e.engine for e in events}), len(events), seconds, seconds / recording.seconds))
    return sorted(profiles, key=lambda entry: -entry.seconds)


def calls(recording: Recording, compiled: Compiled) -> list[CallProfile]:
    runs = [sum(event.call == n for event in recording.events) for n in range(len(recording.calls))]
    return [
        CallProfile(n, call.timestep, len(call.computed), runs[n], seconds)
        for n, (call, seconds) in enumerate(zip(compiled.calls, recording.calls, strict=True))
    ]


def kinds_table(profile: Profile) -> list[tuple[object, ...]]:
    rows = [
        (k.kind, k.engines, k.runs, f"{1e3 * k.seconds:.2f}", f"{1e3 * k.seconds / k.runs:.3f}", f"{k.share:.1%}")
        for k in profile.kinds
    ]
    outside = ("the loop itself", "", "", f"{1e3 * profile.outside:.2f}", "", f"{profile.outside / profile.seconds:.1%}")
    return [("segment", "engines", "runs", "ms in all", "ms a run", "share"), *rows, outside]


def calls_table(profile: Profile) -> list[tuple[object, ...]]:
    rows = [(c.index, f"{c.timestep:.2f}", c.computed, c.runs, f"{1e3 * c.seconds:.2f}") for c in profile.calls]
    return [("call", "timestep", "sublayers computed", "engine runs", "ms"), *rows]


def trace(profile: Profile) -> dict[str, Any]:
    """The image in the Chrome trace format, for Perfetto: a row of calls, and a row of engine runs below it."""
    events = [named("process_name", 0, profile.artefact), named("thread_name", 1, "calls"), named("thread_name", 2, "engines")]
    starts = np.cumsum([0.0, *(call.seconds for call in profile.calls)]).tolist()
    for call, start in zip(profile.calls, starts, strict=False):
        events.append(span(1, f"call {call.index}", "call", start, call.seconds, msgspec.structs.asdict(call)))
    for event in profile.events:
        args = {"call": event.call, "sublayer": event.name, "engine": event.engine}
        events.append(span(2, event.name, event.kind, event.start, event.seconds, args))
    return {"displayTimeUnit": "ms", "traceEvents": events}


def named(what: str, row: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": 1, "tid": row, "args": {"name": name}}


def span(row: int, name: str, kind: str, start: float, seconds: float, args: Mapping[str, object]) -> dict[str, Any]:
    """The format counts in microseconds."""
    return {"ph": "X", "pid": 1, "tid": row, "name": name, "cat": kind, "ts": 1e6 * start, "dur": 1e6 * seconds, "args": args}
