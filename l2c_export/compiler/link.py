"""Linking: bind one copy of weights to an artefact that is otherwise complete."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from ..artefact import autoencoder, fingerprint, integrity, staging, store, user_weights
from ..artefact.manifest import Manifest
from ..artefact.merged_lora import fit, merged, with_loras
from ..artefact.records import FILE, Build, DecoderRecord, FileInfo, WeightsRecord
from ..errors import ArtefactError, MissingExtra, WeightsError
from ..ir.inputs import named
from ..ir.precisions import FP8
from ..models import families
from ..models.diffusers import model_index, pipeline_folder
from ..models.diffusers.model_index import INDEX
from ..samplers.scheduler_config import check_noise
from ..samplers.trained import TRAINED, trained_otherwise
from ..schedules.schedule import Schedule
from ..support.extras import needs, needs_compiler
from ..support.files import Report
from ..support.progress import Progress, unseen
from ..weights import layout, origin, random
from ..weights.lora import open_lora
from ..weights.stored import said


def bind(
    folder: Path, source: str | None, report: Report = id, progress: Progress = unseen, loras: Sequence[str] = ()
) -> Manifest:
    """Write `source` as the weights of the artefact in `folder`: the path of a checkpoint, of a folder of diffusers, or
    "random[:SEED]"; None is those that it has.  `loras` ("FILE:SCALE") are merged into them.  A pipeline folder brings its
    decoder, too, where the artefact has one.

    The old weights stay in place until the new ones are complete.  Engines that hold what is replaced go with it: all that
    were built for `--link static`, and those of another decoder.  Raises ArtefactError, WeightsError or UsageError.
    """
    if store.read(folder, verify=False).precision == FP8:  # refuse what cannot be done before anything is written
        needs("torch", "export")  # for the scales of what is multiplied
    opened = [open_lora(path) for path in loras]
    seed = random.random_seed(source) if source else None
    with staging.changed(folder, report) as stage:
        manifest = store.read(folder, verify=False)
        fitted = [fit(lora, manifest.denoiser) for lora in opened]
        tensors, bound = _tensors(folder, source, seed, manifest)
        for line in (line for lora in fitted for line in lora.said):
            report(line)
        pipeline = Path(source) if source and seed is None and (Path(source) / INDEX).is_file() else None
        if pipeline:
            _check_training(folder, pipeline, manifest)
        decoder = _decoder(folder, pipeline, manifest) if pipeline else None
        places = layout.Layout(manifest.denoiser.tensors)
        step = progress("writing weights", places.bytes)
        narrowing = layout.write(stage / layout.WEIGHTS, places, merged(tensors, fitted), step)
        if narrowing:
            report(f"weights: {said(places.tensors, narrowing)}")
        changes: dict[str, float] = {}
        if manifest.precision == FP8:
            again, bound = _tensors(folder, source, seed, manifest)
            changes = _calibrate(stage, manifest, bound, merged(again, fitted), report)
            if source is None:  # what was changed before is changed still
                before = manifest.denoiser.corrected or {}
                changes = {name: change + before.get(name, 0.0) for name, change in changes.items()}
        written = {layout.WEIGHTS: integrity.info(stage / layout.WEIGHTS)}
        if pipeline and decoder:
            written[decoder.file] = _write_decoder(stage, pipeline, decoder, manifest, report)
        stale = manifest.builds if manifest.link == "static" or decoder else {}
        rest = fingerprint.without(manifest.without_builds(stale))
        labels = model_index.read(pipeline / INDEX).labels if pipeline else {}
        linked = msgspec.structs.replace(
            rest,
            inputs=named(manifest.inputs, labels),
            denoiser=msgspec.structs.replace(
                manifest.denoiser,
                weights=with_loras(bound, loras),
                narrowing=narrowing or msgspec.UNSET,
                corrected=changes or msgspec.UNSET,
            ),
            files=rest.files | written,
            decoder=decoder or rest.decoder,
        )
        linked = store.write_json(stage / FILE, linked)
    _tell_of_stale(stale, folder, report)
    if manifest.fingerprint:
        report(f"its fingerprint was that of the old weights: run l2c_export.check({str(folder)!r}, record=True) for a new one")
    for assumption in linked.denoiser.assumed or ():
        report(f"assumed when it was compiled: {assumption}")
    return linked


def _tensors(folder: Path, source: str | None, seed: int | None, manifest: Manifest) -> tuple[layout.Tensors, WeightsRecord]:
    """What is to be bound, and what is noted of it."""
    if source is None:
        return _bound(folder, manifest)
    checkpoint = user_weights.checkpoint(Path(source), manifest) if seed is None else None
    tensors = origin.tensors(manifest.denoiser.shapes, checkpoint, seed)
    assert tensors is not None
    return tensors, WeightsRecord(source="random" if seed is not None else Path(source).name, random=seed)


def _bound(folder: Path, manifest: Manifest) -> tuple[layout.Tensors, WeightsRecord]:
    """The weights that the artefact has.  Raises ArtefactError where it has none, or no longer those."""
    record, stored = manifest.denoiser.weights, manifest.denoiser.tensors
    if record is None:
        raise ArtefactError(f"{folder}: has no weights yet, so nothing to merge a LoRA into: give them, too, as weights=..")
    integrity.check_file(folder, layout.WEIGHTS, manifest.files[layout.WEIGHTS], hashed=True)
    view = layout.mapped(folder / layout.WEIGHTS, stored)
    return ((name, layout.unscaled(name, view, stored[name])) for name in sorted(manifest.denoiser.checkpointed)), record


def _calibrate(
    stage: Path, manifest: Manifest, bound: WeightsRecord, tensors: layout.Tensors, report: Report
) -> dict[str, float]:
    from ..pytorch.calibrate import calibrate  # which needs torch

    denoiser = msgspec.structs.replace(manifest.denoiser, weights=bound)
    return calibrate(stage, msgspec.structs.replace(manifest, denoiser=denoiser), tensors, report)


def _check_training(folder: Path, pipeline: Path, manifest: Manifest) -> None:
    """Refuse a model of other noise or another prediction than the artefact's loop is for.  Raises WeightsError."""
    config = model_index.config(pipeline / pipeline_folder.SCHEDULER)
    if not families.of(manifest.denoiser.family).flow:
        check_noise(model_index.read(pipeline / INDEX).part("scheduler"), str(pipeline / "scheduler"))
    schedule = Schedule.read(folder / manifest.program().program.schedule)
    trained = msgspec.structs.asdict(schedule.scheduler) if schedule.scheduler else TRAINED[schedule.sampler]
    if other := trained_otherwise(trained, config):
        raise WeightsError(
            f"{pipeline}: was trained with {other}, the loop in {folder} is for another: compile it from {pipeline}"
        )


def _decoder(folder: Path, source: Path, manifest: Manifest) -> DecoderRecord | None:
    """The decoder that takes the place of the artefact's: that of a pipeline folder, if it is another one."""
    if not manifest.decoder:
        return None
    own = pipeline_folder.autoencoder(model_index.read(source / INDEX))
    of_pipeline = not families.of(manifest.denoiser.family).captured
    described = autoencoder.describe(own, manifest.program().latent[0], of_pipeline)
    described = msgspec.structs.replace(described, stored=manifest.decoder.stored)
    if described.made_from == manifest.decoder.made_from:
        return None
    try:
        needs_compiler()
        needs("diffusers", "diffusers")
    except MissingExtra as error:
        raise ArtefactError(
            f"{folder}: its decoder is not that of {source}, and exporting the new one needs more: {error}; "
            f"or give {source / 'transformer'}, which keeps the decoder"
        ) from None
    return described


def _write_decoder(stage: Path, source: Path, decoder: DecoderRecord, manifest: Manifest, report: Report) -> FileInfo:
    from .onnx.decoder import write  # which needs torch

    own = source / "vae"
    report(autoencoder.said(own, decoder))
    write(own, decoder, manifest.program().latent[0], stage / decoder.file)
    return integrity.info(stage / decoder.file)


def _tell_of_stale(stale: Mapping[str, Build], folder: Path, report: Report) -> None:
    for build in stale.values():
        again = f"run l2c_export.build({str(folder)!r}, backend={build.backend!r}) again"
        report(f"its engines for {build.backend} held the old weights: {again}")
