"""The weights that somebody gives for the model of an artefact."""

from __future__ import annotations

from pathlib import Path

from ..models.diffusers import pipeline_folder
from ..weights import notes
from ..weights.layout import Tensors
from .manifest import Manifest


def tensors(source: Path, manifest: Manifest) -> Tensors:
    """Name and values of every tensor of an artefact's model, from what `--weights` means.

    Raises WeightsError or ModelError for those of another model.
    """
    checkpoint = pipeline_folder.checkpoint_for(source, manifest.model.family, manifest.model.arch)
    notes.check_same(checkpoint, manifest.model.arch)
    return checkpoint.tensors(manifest.tensors)
