"""What is compared with what: the contenders of a benchmark, what they are asked, and what makes them comparable."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from . import artefact, machine
from . import schedule as schedules
from .errors import ArtefactError, UsageError
from .manifest import FILE, Build, Manifest
from .schedule import Schedule
from .weights import FILE as WEIGHTS


class Contender(msgspec.Struct, frozen=True, kw_only=True):
    """A way to make the images of an artefact."""

    name: str
    folder: str  # the artefact: its weights and its schedule, and its engines where they are used
    runtime: Literal["engines", "pytorch", "torch-compile"] = "engines"
    cached: bool = True  # PyTorch: whether it follows the schedule; for engines the artefact says so
    backend: str | None = None  # engines: instead of the artefact's own


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What every contender is asked to make: `images` at a time; None leaves the choice to the artefact."""

    images: int = 1
    seed: int = 0
    guidance_scale: float | None = None
    threads: int = msgspec.field(default_factory=machine.cores)
    device: str | None = None

    def __post_init__(self) -> None:
        for name, value, least in (("images", self.images, 1), ("threads", self.threads, 1), ("seed", self.seed, 0)):
            if value < least:
                raise UsageError(f"--{name} {value}: must be at least {least}")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What a contender did, as its own process saw it.  Only what differs in nothing but `COMPARED` may be compared."""

    runtime: str
    passes: tuple[str, ...]
    link: str
    schedule: str  # a hash of what every call computes
    computed: float  # the share of all sublayers
    weights: str  # a hash of the weights' file
    random_weights: bool
    model: str
    precision: str
    images: int
    calls: int
    steps: int
    sampler: str
    guidance: str
    guidance_scale: float
    labels: tuple[int, ...]
    seed: int
    threads: int
    device: str


COMPARED = frozenset({"runtime", "passes", "link", "schedule", "computed"})


OURS = "ours"
PYTORCH: Mapping[str, tuple[Literal["pytorch", "torch-compile"], bool]] = {
    "pytorch": ("pytorch", False),
    "pytorch-cached": ("pytorch", True),
    "torch-compile": ("torch-compile", False),
    "torch-compile-cached": ("torch-compile", True),
}
BACKENDS = ("onnxruntime", "openvino")
# Our engines with something left out, as options of the compiler; the first is always offered, the others with --passes.
TWINS: Mapping[str, Mapping[str, bool]] = {
    "uncached": {"cache": False},
    "uncached-no-hoist": {"cache": False, "hoist": False},
    "no-fold": {"fold": False},
}
KNOWN = (*PYTORCH, *BACKENDS, "uncached")


def chosen(names: str | None) -> list[str]:
    """The contenders of a list like "pytorch,uncached"; all that are known without one.  Raises UsageError."""
    if names is None:
        return list(KNOWN)
    found = [name.strip() for name in names.split(",") if name.strip()]
    for name in found:
        if name not in (*KNOWN, *TWINS):
            raise UsageError(f"--against {name}: known are {', '.join((*KNOWN, *(t for t in TWINS if t not in KNOWN)))}")
    return list(dict.fromkeys(found))


def twins_of(manifest: Manifest) -> list[str]:
    """The twins that isolate a pass, for the passes that the artefact was compiled with."""
    passes = {"hoist": "uncached-no-hoist", "fold": "no-fold"}
    return [passes[name] for name in manifest.passes if name in passes]


def contender(
    name: str, folder: Path, manifest: Manifest, root: Path, report: Callable[[str], object]
) -> tuple[Contender, float | None]:
    """The contender of that name for an artefact, and the seconds that compiling took, if it is a twin of ours.

    Twins are written under `root`.  Raises L2CError where they cannot be made.
    """
    if name in PYTORCH:
        runtime, cached = PYTORCH[name]
        return Contender(name=name, folder=str(folder), runtime=runtime, cached=cached), None
    if name in BACKENDS:
        return Contender(name=name, folder=str(folder), backend=name), None
    if name == OURS:
        return Contender(name=name, folder=str(folder)), None
    report(f"{name}: compiling")
    started = time.perf_counter()
    compile_twin(folder, manifest, root / name, **TWINS[name])
    return Contender(name=name, folder=str(root / name)), time.perf_counter() - started


def compile_twin(folder: Path, manifest: Manifest, out: Path, **changes: bool) -> None:
    """Compile an artefact again from its own schedule, model and weights, with other passes.

    The twin's manifest names the model and the weights as the artefact's does: they are the same.  With the same caching it has
    the same graphs; raises ArtefactError where it has not.
    """
    from .extras import needs

    needs("torch", "export")
    needs("onnx", "export")
    from .compile import compile_artefact
    from .options import Options

    model, schedule = out.with_suffix(".model.json"), out.with_suffix(".schedule.json")
    schedule.write_bytes(asked_schedule(folder, manifest).to_json())
    model.write_bytes(msgspec.json.encode({"family": manifest.model.family, "arch": manifest.model.arch}))
    options: dict[str, Any] = {
        "schedule": str(schedule),
        "max_graphs": manifest.asked.max_graphs if manifest.asked else None,
        "model": str(model),
        "weights": str(folder / WEIGHTS),
        "guidance": manifest.guidance.mode,
        "batch": manifest.batch,
        "precision": manifest.precision,
        "fp32": manifest.fp32,
        "backend": manifest.backend,
        "link": manifest.link,
        "hoist": "hoist" in manifest.passes,
        "fold": "fold" in manifest.passes,
    }
    made = compile_artefact(Options(out=out, **{**options, **changes}))
    if changes.get("cache", True) and [call.graph for call in made.calls] != [call.graph for call in manifest.calls]:
        raise ArtefactError(f"{folder}: another release has merged its calls in another way: run l2c-export again")
    artefact.write_json(out / FILE, msgspec.structs.replace(made, model=manifest.model, weights=manifest.weights))
    for build in manifest.builds.values():
        build_like(build, out)


def asked_schedule(folder: Path, manifest: Manifest) -> Schedule:
    """The schedule that an artefact was asked to follow, before calls were merged."""
    found = schedules.read(folder / "schedule.json")
    if not manifest.asked:
        return found
    known = (found.family, found.sampler, found.steps, found.columns)
    return schedules.make(*known, manifest.asked.computed, found.threshold, found.source, found.scheduler or None)


def build_like(build: Build, out: Path) -> None:
    """Engines for a twin as the artefact has them."""
    from . import building
    from .backends.tensorrt_build import Settings

    targets = build.targets if build.backend == "tensorrt-rtx" else ()
    settings = Settings(targets=targets, level=build.level, version_compatible=build.version_compatible,
                        hardware_compatible=build.hardware_compatible)  # fmt: skip
    building.build(out, build.backend, settings, ":".join(map(str, build.images)))
