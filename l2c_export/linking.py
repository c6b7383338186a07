"""Linking: bind one copy of weights to an artefact that is otherwise complete."""

from __future__ import annotations

from pathlib import Path

import msgspec

from . import artefact, diffusers_folder, diffusers_names, notes, staging, weights
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
        tensors = weights.random(manifest.tensors, seed) if seed is not None else checkpoint(Path(source), manifest)
        layout = weights.Layout(manifest.tensors, manifest.weight_types)
        weights.write(stage / weights.FILE, layout, tensors)
        name = "random" if seed is not None else Path(source).name
        stale = manifest.builds if manifest.link == "static" else {}
        rest = manifest.without_builds(stale)
        files = rest.files | {weights.FILE: artefact.info(stage / weights.FILE)}
        linked = msgspec.structs.replace(rest, weights=Weights(source=name, random=seed), files=files)
        linked = artefact.write_json(stage / FILE, linked)
    for build in stale.values():
        report(f"its engines for {build.backend} held the old weights: run l2c build {folder} --backend {build.backend} again")
    for each in linked.model.assumed or ():
        report(f"assumed when it was compiled: {each}")
    return linked


def checkpoint(source: Path, manifest: Manifest) -> weights.Tensors:
    """The tensors of an artefact's model from what `--weights` means.  Raises WeightsError for those of another model."""
    found = diffusers_folder.checkpoint(source)
    notes.check_same(found, manifest.model.arch)
    return diffusers_names.for_model(found, manifest.model.family, manifest.model.arch).tensors(manifest.tensors)
