"""The weights that somebody gives for the model of an artefact."""

from __future__ import annotations

from pathlib import Path

from ..models.diffusers import pipeline_folder
from ..weights import notes
from ..weights.checkpoint import Checkpoint
from ..weights.layout import Tensors
from .manifest import Manifest


def checkpoint(source: Path, manifest: Manifest) -> Checkpoint:
    """What `--weights` means for an artefact's model.  Raises WeightsError or ModelError for weights of another one."""
    opened = pipeline_folder.checkpoint_for(source, manifest.denoiser.family, manifest.denoiser.arch)
    notes.check_same(opened, manifest.denoiser.arch)
    return opened


def tensors(source: Path, manifest: Manifest) -> Tensors:
    """Name and values of every tensor of the model, from there."""
    return checkpoint(source, manifest).tensors(manifest.denoiser.tensors)
