"""`l2c build` and `l2c remove`: add engines for a GPU to an artefact, from its ONNX files alone, and take them out.

It needs neither torch nor onnx, so it also runs on the device itself.  An artefact may hold builds of several backends
and for several GPUs.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from ..artefact import integrity, staging, store
from ..artefact.manifest import Manifest
from ..artefact.records import FILE, Build, image_range
from ..errors import BackendError, UsageError
from ..support.cache import cache_folder, cached, keep, kept
from ..support.files import Report, check_place
from ..support.progress import Watch, unwatched
from ..support.words import counted
from ..weights.layout import WEIGHTS
from .building import BuildSettings, EngineBuilder, Range
from .descriptor import Descriptor
from .descriptors import buildable
from .units import Unit, units


def images(text: str | None, manifest: Manifest) -> Range:
    """`--batch` as MIN:OPT:MAX images; by default 1 to what the artefact was compiled for, which is also the usual."""
    if text is None:
        return Range(1, manifest.batch, manifest.batch)
    match = re.fullmatch(r"(\d{1,9}):(\d{1,9}):(\d{1,9})", text)
    sizes = Range(*map(int, match.groups())) if match else Range(0, 0, 0)
    if not 1 <= sizes.least <= sizes.usual <= sizes.most:
        raise UsageError(f"batch={text!r}: give MIN:OPT:MAX images, for example 1:1:{manifest.batch}")
    if sizes.most > manifest.batch:
        raise UsageError(f"batch={text!r}: the artefact was compiled for at most {counted(manifest.batch, 'image')}")
    return sizes


def build(
    folder: Path,
    backend: str,
    settings: BuildSettings,
    batch: str | None = None,
    timing_cache: Path | None = None,
    report: Report = id,
    progress: Callable[[], object] = lambda: None,
    watch: Watch = unwatched,
) -> Manifest:
    """Build every engine that the artefact's link needs and add them to it, replacing a build of the same name.

    `progress` is told of every finished engine, `watch` of how far the present one is, where the library says so.
    Raises ArtefactError, BackendError or UsageError; the artefact is complete, without the new build, after an error.
    """
    descriptor = buildable(backend)
    store.read(folder, verify=False)  # refuse what is no artefact before anything is written
    if timing_cache and descriptor.targets:  # GPUs that need not be here
        raise UsageError(f"timing_cache={str(timing_cache)!r}: {backend} measures nothing when it builds: leave it out")
    if timing_cache:
        check_place(timing_cache, "timing_cache")
    targets = sorted(set(settings.targets or descriptor.targets), key=lambda t: (len(t), t))
    start = time.perf_counter()
    if descriptor.preparer:
        return _prepared(folder, descriptor, settings._replace(targets=tuple(targets)), batch, timing_cache, report, progress)
    with staging.changed(folder, report) as stage:
        manifest = store.read(folder)
        if manifest.link == "static":
            store.check_linked(folder, manifest)
        settings = settings._replace(precision=manifest.precision, targets=tuple(targets))
        sizes = images(batch, manifest)
        builder = descriptor.open_builder(settings, watch)
        cache = timing_cache or cache_folder("timing") / f"{backend}-{builder.version}-{builder.card}.cache"
        builder.known = kept(cache)
        name = f"{backend}-{builder.version}-{'-'.join(builder.gpus)}"
        (stage / name).mkdir()
        engines = {}
        for part, unit in units(manifest, sizes).items():
            engines[part] = f"{name}/{part}.plan"
            (stage / engines[part]).write_bytes(_plan(folder, manifest, builder, unit))
            progress()
        keep(cache, builder.timing_cache())
        record = Build(
            backend=backend,
            version=builder.version,
            targets=builder.gpus,
            images=(sizes.least, sizes.usual, sizes.most),
            level=settings.level,
            version_compatible=settings.version_compatible,
            hardware_compatible=settings.hardware_compatible,
            engines=engines,
        )
        result = _add(manifest, name, record, stage)
    size = sum(result.files[file].bytes for file in engines.values())
    seconds = time.perf_counter() - start
    report(f"{name}: {counted(len(engines), 'engine')}, {size / 2**20:.1f} MB in {seconds:.1f} s; {_longest(builder.seconds)}")
    if (old := manifest.builds.get(name)) and old.images != record.images:
        report(f"they replace those for {image_range(old.images)}: they are for {image_range(record.images)}")
    return result


def _prepared(
    folder: Path,
    descriptor: Descriptor,
    settings: BuildSettings,
    batch: str | None,
    timing_cache: Path | None,
    report: Report,
    progress: Callable[[], object],
) -> Manifest:
    """Make what loading would make; the artefact stays what it is."""
    if timing_cache:
        raise UsageError(f"timing_cache={str(timing_cache)!r}: {descriptor.name} measures into the user's cache: leave it out")
    if settings.level is not None or settings.version_compatible or settings.hardware_compatible:
        raise UsageError(f"backend={descriptor.name!r}: it builds no engines: leave level and the two compatibilities out")
    manifest = store.read(folder)
    descriptor.prepare(manifest, settings, images(batch, manifest), report, progress)
    return manifest


def _longest(seconds: Mapping[str, float]) -> str:
    """Where the time of a build went; the first engine has the library's start, too."""
    if not seconds:
        return "all of them were built before"
    slowest = sorted(seconds, key=lambda model: -seconds[model])[:4]
    return "slowest: " + ", ".join(f"{model.removesuffix('.onnx')} {seconds[model]:.1f} s" for model in slowest)


def _plan(folder: Path, manifest: Manifest, builder: EngineBuilder, unit: Unit) -> bytes:
    """One engine, perhaps built before by what was interrupted, or for another artefact."""
    path = folder / unit.file
    integrity.check_closed(path.read_bytes(), path)
    model = [manifest.files[unit.file].sha256]
    model += [manifest.files[WEIGHTS].sha256] if manifest.link == "static" else []
    key = [*model, *unit, builder.gpus, builder.card, *builder.identity]
    try:
        return cached("plans", key, lambda: builder.build(path, unit.ports, unit.ranges, unit.once))
    except BackendError as error:
        if manifest.link == "shared":
            raise
        raise BackendError(f"{error}: compile it with link='shared', whose engines are smaller") from None


def _add(manifest: Manifest, name: str, build: Build, stage: Path) -> Manifest:
    """Write the manifest with this build, instead of one of the same name."""
    rest = manifest.without_builds([name])
    files = rest.files | {file: integrity.info(stage / file) for file in build.engines.values()}
    builds = rest.builds | {name: build}  # the newest is the last
    return store.write_json(stage / FILE, msgspec.structs.replace(rest, builds=builds, files=files))


def remove(folder: Path, names: Sequence[str], report: Report = id) -> Manifest:
    """Take builds out of an artefact, with their files.

    Raises ArtefactError, or UsageError for a name that it does not hold; then nothing has changed.
    """
    store.read(folder, verify=False)  # refuse what is no artefact before anything is written
    with staging.changed(folder, report) as stage:
        manifest = store.read(folder, verify=False)
        if unknown := [name for name in names if name not in manifest.builds]:
            raise UsageError(f"{unknown[0]}: {folder} has no such build: {_listed(manifest)}")
        result = store.write_json(stage / FILE, manifest.without_builds(names))
    size = sum(file.bytes for name, file in manifest.files.items() if name not in result.files)
    report(f"{folder}: {size / 2**20:.1f} MB removed; {_listed(result)}")
    return result


def _listed(manifest: Manifest) -> str:
    return f"it holds {', '.join(manifest.builds)}" if manifest.builds else "no build is left: l2c_export.build adds one"
