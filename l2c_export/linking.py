"""Linking: bind one copy of weights to an artefact that is otherwise complete."""

from __future__ import annotations

from pathlib import Path

import msgspec

from . import artefact, staging, weights
from .files import Report
from .manifest import FILE, Manifest, Weights


def bind(folder: Path, source: str, report: Report = id) -> Manifest:
    """Write `source` (a checkpoint's path, or "random[:SEED]") as the weights of the artefact in `folder`.

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
    return weights.open_checkpoint(Path(source)).tensors(manifest.tensors)
