"""What the training of a checkpoint noted of itself: the options of its script, as DiT, fast-DiT, SiT and U-ViT save them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..errors import ModelError
from .checkpoint import Checkpoint

NOISE = ("noise", "eps", "epsilon", "pred_noise")
PREDICTIONS = ("prediction", "prediction_type", "parameterization", "objective")
OTHERS = ("path_type", "predict_xstart", "predict_v", "qk_norm", "use_rope", "use_swiglu", "use_rmsnorm")  # of other models
USUAL = {"noise_schedule": "linear", "beta_schedule": "linear", "diffusion_steps": 1000}  # of DiT's diffusion
SIT, KNOWN = (re.compile(rf"(?<![a-z])({name})(?![a-z])", re.IGNORECASE) for name in ("sit", "dit|u-?vit"))
SIZE = ("depth", "hidden_size", "embed_dim", "patch_size", "num_heads")


def options(checkpoint: Checkpoint) -> dict[str, Any]:
    """The training's options, and those of its model where they are kept apart."""
    inner = [given for name in ("model", "nnet") if isinstance(given := checkpoint.args.get(name), Mapping)]
    return {str(key): value for given in (checkpoint.args, *inner) for key, value in given.items()}


def model_name(checkpoint: Checkpoint) -> str:
    """The model's name in the options; empty without one."""
    found = checkpoint.args.get("model")
    return found if isinstance(found, str) else ""


def fields(family: Any, checkpoint: Checkpoint) -> dict[str, Any]:
    """The fields of an architecture that the options tell, those of a published name among them."""
    noted, usual = options(checkpoint), family.arch_type()
    named = family.named(model_name(checkpoint))
    return {
        **size(named),
        **{f: noted[f] for f in usual.__struct_fields__ if f in noted and _alike(noted[f], getattr(usual, f))},
    }


def size(arch: Any) -> dict[str, Any]:
    """What a published name says of any model that is built under it, whatever its pictures and classes."""
    return {name: getattr(arch, name) for name in SIZE if hasattr(arch, name)}


def _alike(value: object, usual: object) -> bool:
    return type(value) is type(usual) or (type(value) is int and type(usual) is float)


def predicts_noise(checkpoint: Checkpoint) -> bool:
    """Whether the options say so."""
    return bool(KNOWN.search(model_name(checkpoint))) or any(options(checkpoint).get(key) in NOISE for key in PREDICTIONS)


def check(checkpoint: Checkpoint) -> None:
    """Raise ModelError for a model that was trained to predict something else than noise, as far as one can see."""
    noted = options(checkpoint)
    wrong = {key: noted[key] for key in OTHERS if noted.get(key) not in (None, False)}
    wrong |= {key: noted[key] for key in PREDICTIONS if isinstance(noted.get(key), str) and noted[key].lower() not in NOISE}
    wrong |= {key: noted[key] for key, usual in USUAL.items() if type(noted.get(key)) is type(usual) and noted[key] != usual}
    sit = SIT.search(model_name(checkpoint))
    wrong = {"model": model_name(checkpoint), **wrong} if sit else wrong
    if wrong:
        kind = "flow matching" if sit or "path_type" in wrong or wrong.get("prediction") in ("v", "velocity") else "what it is"
        said = ", ".join(f"{key} {value!r}" for key, value in wrong.items())
        raise ModelError(f"{checkpoint.path}: {kind} is not supported yet (its training noted {said}): give a DiT or a U-ViT")
    if not noted and SIT.search(checkpoint.path.name):
        raise ModelError(f"{checkpoint.path}: a SiT by its name: flow matching is not supported yet: rename it if it is a DiT")


def check_name(checkpoint: Checkpoint, remedy: str) -> None:
    """Raise ModelError for the name of another model."""
    name = model_name(checkpoint)
    if name and not KNOWN.search(name):
        raise ModelError(f"{checkpoint.path}: its training noted model {name!r}, which is neither DiT nor U-ViT: {remedy}")


def check_pictures(checkpoint: Checkpoint, latent: tuple[int, int, int]) -> None:
    """Raise ModelError for an `image_size` that no autoencoder makes these latents of."""
    pixels, (channels, side, _) = options(checkpoint).get("image_size"), latent
    if type(pixels) is int and (pixels % side or (channels == 4 and pixels // side not in (1, 8))):
        raise ModelError(
            f"{checkpoint.path} contradicts itself: its training noted image_size {pixels}, its latents are {side} x {side}: "
            "give the weights of one model"
        )


def check_same(checkpoint: Checkpoint, arch: Mapping[str, Any]) -> None:
    """Raise ModelError for weights whose training noted another model than the architecture of an artefact."""
    check(checkpoint)
    noted = options(checkpoint)
    for name in ("num_heads", "num_classes"):
        if type(noted.get(name)) is int and noted[name] != arch.get(name, noted[name]):
            raise ModelError(
                f"{checkpoint.path} is of another model: its training noted {name} {noted[name]}, the artefact has "
                f"{arch[name]}: compile it again with these weights"
            )
