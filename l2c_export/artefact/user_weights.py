"""The weights that somebody gives for the model of an artefact."""

from __future__ import annotations

from pathlib import Path

from ..models import families, notes
from ..models.diffusers import pipeline_folder
from ..weights.checkpoint import Checkpoint
from ..weights.layout import Tensors
from ..weights.recipe import Recipe
from .manifest import Manifest


def checkpoint(source: Path, manifest: Manifest) -> Checkpoint:
    """What `--weights` means for an artefact's model.  Raises WeightsError or ModelError for weights of another one."""
    opened = by_recipes(pipeline_folder.checkpoint_for(source, manifest.denoiser.family, manifest.denoiser.arch), manifest)
    opened = for_all_sizes(opened, manifest)
    notes.check_same(opened, manifest.denoiser.arch, manifest.denoiser.family)
    return opened


def for_all_sizes(opened: Checkpoint, manifest: Manifest) -> Checkpoint:
    """The same with what follows from a model's configuration for the sizes of an artefact's other programs."""
    for size in list(manifest.denoiser.sizes.values())[1:]:
        height, width = size.latent[1:]
        family = families.build(manifest.denoiser.family, {**manifest.denoiser.arch, "height": height, "width": width})
        assert families.is_captured(family)
        opened = family.checkpoint(opened)
    return opened


def by_recipes(opened: Checkpoint, manifest: Manifest) -> Checkpoint:
    """The same under the names that are stored, if its own are those that the artefact's recipes name."""
    recipes = {name: tensor.recipe or Recipe.of(name) for name, tensor in manifest.denoiser.checkpointed.items()}
    named = {source.tensor for recipe in recipes.values() for source in recipe.sources}
    return opened.by_recipe(recipes) if opened.shapes.keys() == named else opened


def tensors(source: Path, manifest: Manifest) -> Tensors:
    """Name and values of every tensor of the model, from there."""
    return checkpoint(source, manifest).tensors(manifest.denoiser.shapes)
