"""The artefact compiled again with something left out, to be compared with itself."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from ..artefact import store
from ..artefact.compiled import Compiled
from ..artefact.manifest import Manifest
from ..artefact.records import FILE, Build
from ..errors import ArtefactError
from ..ir.dtypes import E4M3
from ..ir.precisions import FP8
from ..schedules.schedule import Schedule
from ..support.extras import needs_compiler
from ..weights.layout import WEIGHTS, Layout
from ..weights.stored import STORES
from .contenders import OURS, PYTORCH, TWINS, Contender, backends


def contender(
    name: str, folder: Path, manifest: Manifest, root: Path, report: Callable[[str], object]
) -> tuple[Contender, float | None]:
    """The contender of that name for an artefact, and the seconds that compiling took, if it is a twin of ours.

    Twins are written under `root`.  Raises L2CError where they cannot be made.
    """
    if name in PYTORCH:
        runtime, cached = PYTORCH[name]
        return Contender(name=name, folder=str(folder), runtime=runtime, cached=cached), None
    if name in backends():
        return Contender(name=name, folder=str(folder), backend=name), None
    if name == OURS:
        return Contender(name=name, folder=str(folder)), None
    report(f"{name}: compiling")
    start = time.perf_counter()
    compile_twin(folder, manifest, root / name, **TWINS[name])
    return Contender(name=name, folder=str(root / name)), time.perf_counter() - start


def compile_twin(folder: Path, manifest: Manifest, out: Path, **changes: bool) -> None:
    """Compile an artefact again from its own schedule and model, with other passes, over its own file of weights.

    The twin's manifest names the model and the weights as the artefact's does: they are the same.  With the same caching it has
    the same graphs; raises ArtefactError where it has not.
    """
    needs_compiler()
    from ..compiler.compile import compile_artefact
    from ..compiler.request import Options

    program = manifest.program()
    model, schedule = out.with_suffix(".model.json"), out.with_suffix(".schedule.json")
    schedule.write_bytes(asked_schedule(folder, manifest).to_json())
    model.write_bytes(msgspec.json.encode({"family": manifest.denoiser.family, "arch": manifest.denoiser.arch}))
    options: dict[str, Any] = {
        "schedule": str(schedule),
        "max_graphs": program.program.asked.max_graphs if program.program.asked else None,
        "model": str(model),
        "guidance": manifest.guidance.mode,
        "batch": manifest.batch,
        "precision": manifest.precision,
        "fp32": manifest.denoiser.fp32,
        "bf16": without_e4m3(manifest) if manifest.precision == FP8 else (),
        "store": tuple(word for word, stored in STORES.items() if stored == manifest.denoiser.stored),
        "backend": manifest.backend,
        "link": manifest.link,
        "hoist": "hoist" in manifest.passes,
        "fold": "fold" in manifest.passes,
    }
    twin = compile_artefact(Options(out=out, **{**options, **changes}), fingerprinted=False)
    if changes.get("cache", True) and distinct(twin.program()) != distinct(program):
        raise ArtefactError(f"{folder}: another release has merged its calls in another way: run l2c-export again")
    if Layout(twin.denoiser.tensors).header != Layout(manifest.denoiser.tensors).header:
        raise ArtefactError(f"{folder}: another release has laid out its weights in another way: run l2c-export again")
    share(folder / WEIGHTS, out / WEIGHTS)
    named = msgspec.structs.replace(manifest.denoiser, segments=twin.denoiser.segments, sizes=twin.denoiser.sizes)
    files = {**twin.files, WEIGHTS: manifest.files[WEIGHTS]}
    store.write_json(out / FILE, msgspec.structs.replace(twin, denoiser=named, files=files))
    for build in manifest.builds.values():
        build_like(build, out)


def without_e4m3(manifest: Manifest) -> tuple[str, ...]:
    """The sublayers of an artefact in fp8 whose products are none of e4m3."""
    narrow = {name for name, tensor in manifest.denoiser.tensors.items() if tensor.dtype == E4M3}
    return tuple(sublayer for sublayer in manifest.denoiser.sublayers if not any(n.startswith(f"{sublayer}.") for n in narrow))


def share(file: Path, place: Path) -> None:
    """The same file in another place: under a second name, or by a link where that is another file system."""
    file = file.resolve()
    try:
        os.link(file, place)
    except OSError:  # or one that has no second names
        place.symlink_to(file)


def distinct(compiled: Compiled) -> list[int]:
    """Of every call, which of the program's graphs it runs."""
    return [compiled.step_graphs.index(call.graph) for call in compiled.calls]


def asked_schedule(folder: Path, manifest: Manifest) -> Schedule:
    """The schedule that an artefact was asked to follow, before calls were merged."""
    program = manifest.program().program
    schedule = Schedule.read(folder / program.schedule)
    return schedule.computing(program.asked.computed) if program.asked else schedule


def build_like(build: Build, out: Path) -> None:
    """Engines for a twin as the artefact has them."""
    from ..backends import builds
    from ..backends.building import BuildSettings
    from ..backends.descriptors import buildable

    targets = build.targets if buildable(build.backend).targets else ()
    settings = BuildSettings(targets=targets, level=build.level, version_compatible=build.version_compatible,
                        hardware_compatible=build.hardware_compatible)  # fmt: skip
    builds.build(out, build.backend, settings, ":".join(map(str, build.images)))
