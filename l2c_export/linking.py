"""Linking: bind one copy of weights to an artefact that is otherwise complete."""

from __future__ import annotations

from pathlib import Path

import msgspec

from . import artefact, diffusers_folder, staging, weights
from .files import Report
from .manifest import FILE, Manifest, Weights


def bind(folder: Path, source: str, report: Report = id) -> Manifest:
    """Write `source` as the weights of the artefact in `folder`: the path of a checkpoint or of a pipeline folder of
    diffusers, or "random[:SEED]".

    The old weights stay in place until the new ones are complete.  Raises ArtefactError or WeightsError.
    """
    artefact.read(folder, verify=False)  # refuse what is no artefact before anything is written
    seed = weights.random_seed(source)
    with staging.changed(folder, report) as stage:
        manifest = artefact.read(folder, verify=False)
        tensors = weights.random(manifest.tensors, seed) if seed is not None else checkpoint(source, manifest)
        layout = weights.Layout(manifest.tensors, manifest.weight_types)
        weights.write(stage / weights.FILE, layout, tensors)
        name = "random" if seed is not None else Path(source).name
        files = {**manifest.files, weights.FILE: artefact.info(stage / weights.FILE)}
        linked = msgspec.structs.replace(manifest, weights=Weights(source=name, random=seed), files=files)
        return artefact.write_json(stage / FILE, linked)


def checkpoint(source: str, manifest: Manifest) -> weights.Tensors:
    return diffusers_folder.checkpoint(Path(source)).tensors(manifest.tensors)
