"""What the training of a checkpoint noted of itself: the options of its script, as DiT, fast-DiT, SiT and U-ViT save them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from ..errors import ModelError
from ..weights.checkpoint import Checkpoint
from .descriptor import FamilyDescriptor
from .families import DIT, FAMILIES, SIT, by_hand, of, titles

NOISE = ("noise", "eps", "epsilon", "pred_noise")
PREDICTIONS = ("prediction", "prediction_type", "parameterization", "objective")
OTHERS = ("path_type", "predict_xstart", "predict_v", "qk_norm", "use_rope", "use_swiglu", "use_rmsnorm")  # of other models
ONLY = f"only {' and '.join(f'{key} {value!r}' for key, value in SIT.trained.items())} is: if it is that, use model='SiT-XL/2'"
USUAL = {"noise_schedule": "linear", "beta_schedule": "linear", "diffusion_steps": 1000}  # of DiT's diffusion


def options(checkpoint: Checkpoint) -> dict[str, Any]:
    """The training's options, and those of its model where they are kept apart."""
    nested = [mapping for name in ("model", "nnet") if isinstance(mapping := checkpoint.args.get(name), Mapping)]
    return {str(key): value for mapping in (checkpoint.args, *nested) for key, value in mapping.items()}


def model_name(checkpoint: Checkpoint) -> str:
    """The model's name in the options; empty without one."""
    name = checkpoint.args.get("model")
    return name if isinstance(name, str) else ""


def fields(family: FamilyDescriptor, checkpoint: Checkpoint) -> dict[str, Any]:
    """The fields of an architecture that the options tell, those of a published name among them."""
    model = family.load()
    training, usual = options(checkpoint), model.arch_type()
    return {
        **family.size(model.named(model_name(checkpoint))),
        **{f: training[f] for f in usual.__struct_fields__ if f in training and _alike(training[f], getattr(usual, f))},
    }


def _alike(value: object, usual: object) -> bool:
    return type(value) is type(usual) or (type(value) is int and type(usual) is float)


def names_one(name: str, patterns: Collection[str]) -> bool:
    """Whether a model's name has that of a family in it."""
    return re.search(rf"(?<![a-z])({'|'.join(patterns)})(?![a-z])", name, re.IGNORECASE) is not None


def is_known(name: str) -> bool:
    return names_one(name, [family.pattern for family in by_hand().values()])


def is_flow(name: str) -> bool:
    return names_one(name, [SIT.pattern])


def is_lookalike(family: FamilyDescriptor, checkpoint: Checkpoint) -> bool:
    """Whether the options say that it is of the family with the same tensors: by its name, and by all else that tells it."""
    other, training = FAMILIES.get(family.lookalike), options(checkpoint)
    if other is None or not names_one(model_name(checkpoint), [other.pattern]):
        return False
    return all(training.get(key) == value for key, value in other.trained.items())


def predicts_noise(checkpoint: Checkpoint) -> bool:
    """Whether the options say so."""
    return is_known(model_name(checkpoint)) or any(options(checkpoint).get(key) in NOISE for key in PREDICTIONS)


def check(checkpoint: Checkpoint, fields: Collection[str], family: FamilyDescriptor = DIT) -> None:
    """Raise ModelError for a model that was trained to predict something else than its family does, as far as one can see.

    `fields` are those of its architecture, which are options of its own.
    """
    training = {key: value for key, value in options(checkpoint).items() if family.trained.get(key) != value}
    unsupported = {key: training[key] for key in OTHERS if key not in fields and training.get(key) not in (None, False)}
    unsupported |= {
        key: training[key] for key in PREDICTIONS if isinstance(training.get(key), str) and training[key].lower() not in NOISE
    }
    unsupported |= {
        key: training[key] for key, usual in USUAL.items() if type(training.get(key)) is type(usual) and training[key] != usual
    }
    unsupported |= {key: training[key] for key in family.trained if training.get(key) is not None}
    name = model_name(checkpoint)
    if is_known(name) if family.flow else is_flow(name):
        unsupported = {"model": name, **unsupported}
    if unsupported:
        flow = not family.flow and is_flow(name)
        flow = flow or "path_type" in unsupported or unsupported.get("prediction") in ("v", "velocity")
        kind, remedy = ("this flow matching", ONLY) if flow else ("what it is", f"give {titles('or', 'a ')}")
        words = ", ".join(f"{key} {value!r}" for key, value in unsupported.items())
        raise ModelError(f"{checkpoint.path}: {kind} is not supported yet (its training noted {words}): {remedy}")
    if not (family.flow or options(checkpoint)) and is_flow(checkpoint.path.name):
        raise ModelError(f"{checkpoint.path}: a SiT by its name alone: use model='SiT-XL/2', or rename it if it is a DiT")


def check_name(checkpoint: Checkpoint, remedy: str) -> None:
    """Raise ModelError for the name of another model."""
    name, neither = model_name(checkpoint), " nor ".join(family.title for family in by_hand().values())
    if name and not is_known(name) and not is_flow(name):
        raise ModelError(f"{checkpoint.path}: its training noted model {name!r}, which is neither {neither}: {remedy}")


def check_pictures(checkpoint: Checkpoint, latent: tuple[int, ...]) -> None:
    """Raise ModelError for an `image_size` that no autoencoder makes these latents of."""
    pixels, (channels, *axes) = options(checkpoint).get("image_size"), latent
    side = max(axes, default=0)
    if type(pixels) is int and side and (pixels % side or (channels == 4 and pixels // side not in (1, 8))):
        raise ModelError(
            f"{checkpoint.path} contradicts itself: its training noted image_size {pixels}, its latents are {side} x {side}: "
            "give the weights of one model"
        )


def check_same(checkpoint: Checkpoint, arch: Mapping[str, Any], family: str) -> None:
    """Raise ModelError for weights whose training noted another model than the architecture of an artefact."""
    check(checkpoint, arch, of(family))
    training = options(checkpoint)
    for name in ("num_heads", "num_classes"):
        if type(training.get(name)) is int and training[name] != arch.get(name, training[name]):
            raise ModelError(
                f"{checkpoint.path} is of another model: its training noted {name} {training[name]}, the artefact has "
                f"{arch[name]}: compile it again with these weights"
            )
