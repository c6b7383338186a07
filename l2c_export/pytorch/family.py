"""The model in an artefact: built by its family from the architecture that the manifest notes."""

from __future__ import annotations

import msgspec

from ..artefact.manifest import Manifest
from ..artefact.records import DenoiserRecord
from ..errors import ArtefactError, ModelError
from ..models import families
from ..models.family import Family


def family_of(manifest: Manifest, size: str | None = None) -> Family:
    """The family's description of an artefact's model, for latents of a size (by default the first program's).

    Raises ArtefactError for one that its graphs are not of.
    """
    model, first = manifest.denoiser, manifest.program().program.size
    arch = {**model.arch}
    if size not in (None, first):  # only captured models have several
        arch |= dict(zip(("height", "width"), model.sizes[size].latent[1:], strict=True))
    try:
        family = families.build(model.family, arch)
    except (ModelError, msgspec.ValidationError) as error:
        raise ArtefactError(f"the manifest describes no model: {error}; run l2c-export again") from None
    tensors = of_size(model, size or first)
    noted = {"tensors": tensors, "sublayers": model.sublayers, "inputs": [i.name for i in manifest.inputs]}
    built = {"tensors": family.tensors(), "sublayers": family.sublayers, "inputs": [i.name for i in family.inputs]}
    if other := next((what for what, value in noted.items() if value != built[what]), None):
        raise ArtefactError(
            f"the manifest contradicts itself: its {other} are not those of a {model.family} with its architecture; "
            "run l2c-export again"
        )
    return family


def of_size(model: DenoiserRecord, name: str) -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors but those that only other sizes have: what follows from the size."""
    read = {size: {o.of for o in record.origins.values() if o.kind == "weight"} for size, record in model.sizes.items()}
    others = set[str]().union(*(tensors for size, tensors in read.items() if size != name)) - read[name]
    return {tensor: shape for tensor, shape in model.shapes.items() if tensor not in others}
