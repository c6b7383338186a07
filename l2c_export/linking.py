"""Linking: bind one copy of weights to an artefact that is otherwise complete."""

from __future__ import annotations

from pathlib import Path

import msgspec

from . import artefact, diffusers_folder, weights
from .errors import ArtefactError
from .manifest import FILE, Manifest, Weights


def bind(folder: Path, source: str) -> Manifest:
    """Write `source` as the weights of the artefact in `folder`: the path of a checkpoint or of a pipeline folder of
    diffusers, or "random[:SEED]".

    The old weights stay in place until the new ones are complete.  Raises ArtefactError or WeightsError.
    """
    manifest = artefact.read(folder, verify=False)
    seed = weights.random_seed(source)
    tensors = weights.random(manifest.tensors, seed) if seed is not None else checkpoint(source, manifest)
    layout = weights.Layout(manifest.tensors, manifest.weight_types)
    try:
        weights.write(folder / weights.FILE, layout, tensors)
    except OSError as error:
        raise ArtefactError(f"{folder / weights.FILE}: cannot be written: {error.strerror or error}: check the disk") from None
    name = "random" if seed is not None else Path(source).name
    files = {**manifest.files, weights.FILE: artefact.info(folder / weights.FILE)}
    linked = msgspec.structs.replace(manifest, weights=Weights(source=name, random=seed), files=files)
    artefact.write_json(folder / FILE, linked)
    return linked


def checkpoint(source: str, manifest: Manifest) -> weights.Tensors:
    return diffusers_folder.checkpoint(Path(source)).tensors(manifest.tensors)
