"""What an artefact, a schedule or a router says about every call."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..artefact import shipped, store, text
from ..artefact.manifest import Manifest
from ..artefact.records import image_range
from ..errors import UsageError
from ..schedules import rules
from ..schedules.file import content
from ..schedules.forecast import Rule, shown
from ..schedules.picture import DrawnCall, Picture, picture_of
from ..schedules.schedule import Schedule
from ..schedules.values import values_of
from ..support import file_kind
from ..support.words import counted
from ..weights.layout import entries
from ..weights.recipe import stored_type
from ..weights.stored import said
from .predict import graph_weight_bytes


@dataclass(frozen=True)
class CallView:
    """One network evaluation.  Bytes are for the largest batch; None where only a schedule is known.

    `rules` has the rule of every forecast, by value: of sublayers that are neither computed nor reused, and of levels.
    """

    index: int
    timestep: float
    computed: list[int]
    reused: list[int]
    rules: dict[str, Rule] = field(default_factory=dict)
    graph: str | None = None
    weight_bytes: int | None = None
    cache_bytes_read: int | None = None
    cache_bytes_written: int | None = None
    milliseconds: float | None = None


@dataclass(frozen=True)
class View:
    """A whole schedule, and the artefact's summary if there is one."""

    title: str
    sublayers: list[str]
    calls: list[CallView]
    artefact: dict[str, Any] | None = None
    timing: str | None = None  # "predicted for h100", "measured here"
    levels: list[str] = field(default_factory=list)  # that some call derives

    @property
    def timesteps(self) -> list[float]:
        """Of every call, in 0..1000."""
        return [call.timestep for call in self.calls]

    @property
    def picture(self) -> Picture:
        """What every cell of it is, by value and call."""
        calls = [DrawnCall(call.timestep, call.computed, call.reused, call.rules) for call in self.calls]
        return picture_of(values_of((*self.sublayers, *self.levels)), calls)

    def table(self) -> list[tuple[Any, ...]]:
        head: tuple[Any, ...] = ("call", "timestep", "computed", "reused")
        rows: list[tuple[Any, ...]] = [(c.index, round(c.timestep, 2), len(c.computed), len(c.reused)) for c in self.calls]
        if any(call.rules for call in self.calls):
            head += ("forecast",)
            rows = [(*row, described(c.rules, self.levels)) for row, c in zip(rows, self.calls, strict=True)]
        if self.artefact is not None:
            head += ("graph", "weights MB", "cache read KB", "cache written KB")
            rows = [
                (*row, c.graph, round((c.weight_bytes or 0) / 1e6, 1), round((c.cache_bytes_read or 0) / 1e3),
                 round((c.cache_bytes_written or 0) / 1e3))
                for row, c in zip(rows, self.calls, strict=True)
            ]  # fmt: skip
        if all(c.milliseconds is not None for c in self.calls):
            head += (f"ms, {self.timing}",)
            rows = [(*row, f"{c.milliseconds:.2f}") for row, c in zip(rows, self.calls, strict=True)]
        return [head, *rows]

    def notes(self) -> list[str]:
        """What stands below the table: sums, and the engines for GPUs."""
        computed, total = sum(len(c.computed) for c in self.calls), len(self.calls) * len(self.sublayers)
        times = [c.milliseconds for c in self.calls if c.milliseconds is not None]
        lines = [f"{computed} of {total} sublayers computed" + (f", {sum(times):.4g} ms in all" if times else "")]
        if self.artefact and len(self.artefact["components"]) > 1:
            lines.append(", ".join(f"{name}: {size / 2**20:.1f} MB" for name, size in self.artefact["components"].items()))
        lines += [f"{name}: {how}" for name, how in (self.artefact["stored"] if self.artefact else {}).items()]
        for name, build in (self.artefact["builds"] if self.artefact else {}).items():
            size = f"{build['bytes'] / 2**20:.1f} MB"
            lines.append(f"{name}: {counted(build['engines'], 'engine')}, {size}, for {image_range(build['images'])}")
        return lines

    def timed(self, seconds: Sequence[float], timing: str) -> View:
        """The same with the time of every call, and where the times come from."""
        calls = [replace(c, milliseconds=1e3 * s) for c, s in zip(self.calls, seconds, strict=True)]
        return replace(self, calls=calls, timing=timing)


def inspect(path: str | os.PathLike[str] | Schedule, threshold: float | None = None, steps: int | None = None) -> View:
    """Every call of an artefact, of a schedule (or its JSON file) or of a router, whose `threshold` is in 0..1.

    `steps` chooses one of the artefact's programs, by default the first.
    Raises UsageError for what is none of them, ArtefactError or ScheduleError for one that cannot be read.
    """
    if isinstance(path, Schedule):
        return of_schedule(path, repr(path).strip("<>"))
    path = Path(shipped.place(path))
    if threshold is not None and (path.is_dir() or file_kind.is_json(path)):
        raise UsageError(f"threshold={threshold:g}: only a router has scores; the schedule of {path} was made with one")
    if path.is_dir():
        return of_artefact(store.read(path, verify=False), steps)
    if steps is not None:
        raise UsageError(f"steps={steps}: only an artefact has programs to choose from: leave it out")
    if not path.is_file():
        raise UsageError(f"{path}: no such file or folder: give an artefact, a schedule or a router")
    if file_kind.is_json(path):
        text = content(path)
        if rules.mask_rule(text):
            raise UsageError(
                f"{path}: is a steps mask, which has no model yet: compile it with l2c_export.compile(schedule={str(path)!r})"
            )
        return of_schedule(Schedule.from_json(text, str(path)), str(path))
    from ..support.extras import needs

    needs("torch", "export")
    from ..schedules import routers

    router = routers.read(path)
    small, large = (routers.default_threshold(router.family, size) for size in (32, 64))
    chosen = small if threshold is None else threshold
    note = f" (if its model makes 512 px: threshold={large})" if threshold is None and large != small else ""
    return of_schedule(router.schedule(chosen, None), f"{path}: {router.family} router, threshold {chosen}{note}")


def of_schedule(schedule: Schedule, title: str) -> View:
    levels = schedule.values.levels
    calls = [
        CallView(n, c.timestep, list(c.computed), list(c.reused), forecasts(schedule, n)) for n, c in enumerate(schedule.calls)
    ]
    used = [level for level in levels if any(level in call.rules for call in calls)]
    return View(title, list(schedule.sublayers), calls, levels=used)


def forecasts(schedule: Schedule, call: int) -> dict[str, Rule]:
    """What a call derives otherwise than by the reuse of a sublayer."""
    reused = {schedule.sublayers[j] for j in schedule.calls[call].reused}
    return {name: rule for name, rule in schedule.derived(call).items() if name not in reused}


def described(rules: Mapping[str, Rule], levels: Collection[str]) -> str:
    """In a few words: sublayers by their number, levels by their name."""
    counts = Counter(shown(rule) for name, rule in rules.items() if name not in levels)
    named = [f"{name} by {shown(rule)}" for name, rule in rules.items() if name in levels]
    return ", ".join([*(f"{count} by {rule}" for rule, count in counts.items()), *named])


def components(manifest: Manifest) -> dict[str, int]:
    """The bytes of each component's files, by its name."""
    sizes = {"denoiser": sum(entry.bytes for entry in entries(manifest.denoiser.tensors).values())}
    for name in manifest.text.encoders if manifest.text else ():
        sizes[name] = sum(manifest.files[file].bytes for file in text.files_of(name))
    return sizes | ({"decoder": manifest.files[manifest.decoder.file].bytes} if manifest.decoder else {})


def stored(manifest: Manifest) -> dict[str, str]:
    """How each component's matrices are stored, where that is narrower than they are computed, and what it has cost."""
    encoders = manifest.text.encoders.items() if manifest.text else ()
    parts = [("denoiser", manifest.denoiser.tensors, manifest.denoiser.narrowing)]
    parts += [(name, encoder.tensors, encoder.narrowing) for name, encoder in encoders]
    kinds = {name: (stored_type(tensors), said(tensors, cost or None)) for name, tensors, cost in parts}
    texts = {name: words or f"matrices stored in {kind}" for name, (kind, words) in kinds.items() if kind}
    return texts | ({"decoder": "stored in float16"} if manifest.decoder and manifest.decoder.stored else {})


def of_artefact(manifest: Manifest, steps: int | None = None) -> View:
    """A program's calls with the bytes that they move: weights, and cached values read and written."""
    compiled = manifest.program(steps)
    rows = compiled.rows(manifest.batch)
    weights = {name: graph_weight_bytes(compiled, name) for name in compiled.graphs}
    calls = [
        CallView(
            index=n,
            timestep=call.timestep,
            computed=list(call.computed),
            reused=list(call.reused),
            rules=dict(call.derived or {}),
            graph=call.graph,
            weight_bytes=weights[call.graph],
            cache_bytes_read=sum(compiled.value_bytes(name, rows) for name in call.reads),
            cache_bytes_written=sum(compiled.value_bytes(name, rows) for name in call.writes),
        )
        for n, call in enumerate(compiled.calls)
    ]
    bound = manifest.denoiser.weights
    summary = {
        "tool": manifest.tool,
        "family": manifest.denoiser.family,
        "model": manifest.denoiser.name,
        "sampler": compiled.sampler,
        "steps": compiled.steps,
        "programs": list(manifest.programs),
        "guidance": manifest.guidance.mode,
        "precision": manifest.precision,
        "batch": manifest.batch,
        "backend": manifest.backend,
        "link": manifest.link,
        "passes": list(manifest.passes),
        "graphs": len(compiled.step_graphs),
        "segments": len(manifest.denoiser.segments),
        "components": components(manifest),
        "stored": stored(manifest),
        "weights": None if bound is None else bound.described,
        "random_weights": bool(bound and bound.random is not None),
        "prologue_weight_bytes": sum(weights[n] for n in compiled.before_loop),
        "cache_bytes": rows * sum(compiled.cache_bytes),
        "scratch_bytes": rows * max(sum(compiled.graphs[name].slot_bytes) for name in compiled.step_graphs),
        "bytes": manifest.bytes,
        "builds": {
            name: {
                "targets": list(build.targets),
                "images": list(build.images),
                "engines": len(build.engines),
                "bytes": sum(manifest.files[file].bytes for file in build.engines.values()),
            }
            for name, build in manifest.builds.items()
        },
    }
    state = "unlinked" if bound is None else "RANDOM weights" if bound.random is not None else f"weights {bound.described}"
    name = manifest.denoiser.name or manifest.denoiser.family
    title = f"{name}, {compiled.sampler}, {manifest.precision}, {manifest.link} link, {state}"
    used = dict.fromkeys(name for call in calls for name in call.rules if name not in manifest.denoiser.sublayers)
    return View(title, list(manifest.denoiser.sublayers), calls, summary, levels=list(used))
