"""Linking: bind one copy of weights to an artefact that is otherwise complete."""

from __future__ import annotations

from pathlib import Path

import msgspec

from . import artefact, diffusers_folder, diffusers_names, staging, weights
from .files import Report
from .manifest import FILE, Manifest, Weights


def bind(folder: Path, source: str, report: Report = id) -> Manifest:
    """Write `source` as the weights of the artefact in `folder`: the path of a checkpoint or of a pipeline folder of
    diffusers, or "random[:SEED]".

    The old weights stay in place until the new ones are complete.  Engines that were built for `--link static` hold the old
    ones, and go with them.  Raises ArtefactError or WeightsError.
    """
    artefact.read(folder, verify=False)  # refuse what is no artefact before anything is written
    seed = weights.random_seed(source)
    with staging.changed(folder, report) as stage:
        manifest = artefact.read(folder, verify=False)
        tensors = weights.random(manifest.tensors, seed) if seed is not None else checkpoint(source, manifest)
        layout = weights.Layout(manifest.tensors, manifest.weight_types)
        weights.write(stage / weights.FILE, layout, tensors)
        name = "random" if seed is not None else Path(source).name
        stale = manifest.builds if manifest.link == "static" else {}
        gone = {file for build in stale.values() for file in build.engines.values()}
        files = {n: info for n, info in manifest.files.items() if n not in gone}
        files[weights.FILE] = artefact.info(stage / weights.FILE)
        builds = {n: build for n, build in manifest.builds.items() if n not in stale}
        linked = msgspec.structs.replace(manifest, weights=Weights(source=name, random=seed), files=files, builds=builds)
        linked = artefact.write_json(stage / FILE, linked)
    for build in stale.values():
        report(f"its engines for {build.backend} held the old weights: run l2c build {folder} --backend {build.backend} again")
    return linked


def checkpoint(source: str, manifest: Manifest) -> weights.Tensors:
    found = diffusers_folder.checkpoint(Path(source))
    return diffusers_names.for_model(found, manifest.model.family, manifest.model.arch).tensors(manifest.tensors)
