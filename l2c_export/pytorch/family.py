"""The model in an artefact: built by its family from the architecture that the manifest notes."""

from __future__ import annotations

import msgspec

from ..artefact.manifest import Manifest
from ..artefact.records import DenoiserRecord
from ..errors import ArtefactError, ModelError
from ..models import families
from ..models.family import Family


def family_of(manifest: Manifest) -> Family:
    """The family's description of an artefact's model.  Raises ArtefactError for one that its graphs are not of."""
    model = manifest.denoiser
    try:
        family = families.build(model.family, model.arch)
    except (ModelError, msgspec.ValidationError) as error:
        raise ArtefactError(f"the manifest describes no model: {error}; run l2c-export again") from None
    noted = {"tensors": of_first_size(model), "sublayers": model.sublayers, "inputs": [i.name for i in manifest.inputs]}
    built = {"tensors": family.tensors(), "sublayers": family.sublayers, "inputs": [i.name for i in family.inputs]}
    if other := next((what for what, value in noted.items() if value != built[what]), None):
        raise ArtefactError(
            f"the manifest contradicts itself: its {other} are not those of a {model.family} with its architecture; "
            "run l2c-export again"
        )
    return family


def of_first_size(model: DenoiserRecord) -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors but those that only further sizes have: what follows from the size."""
    first, *others = ({o.of for o in size.origins.values() if o.kind == "weight"} for size in model.sizes.values())
    return {name: shape for name, shape in model.shapes.items() if name in first or not any(name in other for other in others)}
