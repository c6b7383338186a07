"""The model families.  To add one, describe it here: everybody else goes by this list."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

import msgspec

from ..errors import ModelError
from . import unsupported
from .descriptor import FamilyDescriptor, RouterLayout

if TYPE_CHECKING:
    from .family import CapturedFamily, Family


def _unet(count: int) -> list[str]:
    """As many blocks in as out, one in the middle; of an even number one more goes out."""
    half = (count - 1) // 2
    return [*(f"in_blocks.{n}" for n in range(half)), "mid_block", *(f"out_blocks.{n}" for n in range(count - 1 - half))]


DIT = FamilyDescriptor(
    name="dit",
    title="DiT",
    home=".dit",
    model="DiT",
    mark="x_embedder.proj.weight",
    sampler="ddim",
    guidance=("first3", 4.0),
    examples=("DiT-XL/2", "DiT-S/4@512"),
    routed={56: "DiT-XL/2"},
    lookalike="sit",
    parts=("attn", "mlp"),
    router=RouterLayout(signed=False, threshold=lambda side: 0.1 if side < 64 else 0.9),  # 256 px; 512 px
)
UVIT = FamilyDescriptor(
    name="uvit",
    title="U-ViT",
    home=".uvit",
    model="UViT",
    mark="patch_embed.proj.weight",
    sampler="dpm-solver++",
    guidance=("all", 1.4),
    examples=("U-ViT-H/2",),
    routed={58: "U-ViT-H/2"},
    noted="u-?vit",
    unguided=0.0,  # it writes c + s (c - u)
    width="embed_dim",
    side="img_size",
    blocks=_unet,
    parts=("attn", "mlp"),
    router=RouterLayout(container="", signed=False, spare=2, spared=lambda arch: bool(arch.depth % 2)),
)

SIT = FamilyDescriptor(
    name="sit",
    title="SiT",
    home=".sit",
    model="SiT",
    mark="",
    sampler="FlowMatchEulerDiscreteScheduler",
    guidance=("first3", 4.0),
    examples=("SiT-XL/2",),
    trained={"path_type": "Linear", "prediction": "velocity"},
    parts=("attn", "mlp"),
    flow=True,
)
PIXART = FamilyDescriptor(
    name="pixart",
    title="PixArt",
    home=".captured.family",
    model="PixArt",
    mark="",
    sampler="DPMSolverMultistepScheduler",
    guidance=("all", 4.5),
    captured="PixArtTransformer2DModel",
)

SD3 = FamilyDescriptor(
    name="sd3",
    title="Stable Diffusion 3",
    home=".captured.family",
    model="StableDiffusion3",
    mark="",
    sampler="FlowMatchEulerDiscreteScheduler",
    guidance=("all", 7.0),
    flow=True,
    captured="SD3Transformer2DModel",
)
FLUX = FamilyDescriptor(
    name="flux",
    title="FLUX",
    home=".captured.family",
    model="Flux",
    mark="",
    sampler="FlowMatchEulerDiscreteScheduler",
    guidance=("embedded", 3.5),
    flow=True,
    captured="FluxTransformer2DModel",
)
AURAFLOW = FamilyDescriptor(
    name="auraflow",
    title="AuraFlow",
    home=".captured.family",
    model="AuraFlow",
    mark="",
    sampler="FlowMatchEulerDiscreteScheduler",
    guidance=("all", 3.5),
    flow=True,
    captured="AuraFlowTransformer2DModel",
)
SANA = FamilyDescriptor(
    name="sana",
    title="Sana",
    home=".captured.family",
    model="Sana",
    mark="",
    sampler="DPMSolverMultistepScheduler",
    guidance=("all", 4.5),
    flow=True,
    captured="SanaTransformer2DModel",
    pixels=32,
)
QWEN_IMAGE = FamilyDescriptor(
    name="qwenimage",
    title="Qwen-Image",
    home=".captured.family",
    model="QwenImage",
    mark="",
    sampler="FlowMatchEulerDiscreteScheduler",
    guidance=("none", 1.0),
    flow=True,
    captured="QwenImageTransformer2DModel",
)

# Transformers of diffusers without an adapter, of noise and of flows.
BY_SIGNATURE = FamilyDescriptor(
    name="transformer",
    title="a transformer of diffusers",
    home=".captured.family",
    model="BySignature",
    mark="",
    sampler="DPMSolverMultistepScheduler",
    guidance=("all", 4.5),
    captured="*",
)
FLOW_BY_SIGNATURE = FamilyDescriptor(
    name="flow-transformer",
    title="a transformer of diffusers",
    home=".captured.family",
    model="FlowBySignature",
    mark="",
    sampler="FlowMatchEulerDiscreteScheduler",
    guidance=("all", 4.5),
    flow=True,
    captured="*",
)

# Keys of the reference's own configurations that change no number: what saves memory in training.
WITHOUT_EFFECT = {"use_checkpoint"}

FAMILIES: dict[str, FamilyDescriptor] = {
    family.name: family
    for family in (DIT, UVIT, SIT, PIXART, SD3, FLUX, AURAFLOW, SANA, QWEN_IMAGE, BY_SIGNATURE, FLOW_BY_SIGNATURE)
}


def of(name: str) -> FamilyDescriptor:
    """The family of that name.  Raises ModelError."""
    if name not in FAMILIES:
        raise ModelError(f"unknown model family {name!r}: known are {', '.join(FAMILIES)}")
    return FAMILIES[name]


def captured(kind: object, scheduler: object = None) -> FamilyDescriptor | None:
    """The family of a class of diffusers that is captured; None for others.  Without an adapter the scheduler tells flows."""
    own = next((family for family in FAMILIES.values() if family.captured and family.captured == kind), None)
    if own or not unsupported.tried(kind):
        return own
    return FLOW_BY_SIGNATURE if "Flow" in str(scheduler) else BY_SIGNATURE


def by_hand() -> dict[str, FamilyDescriptor]:
    """The families whose checkpoints are known by their tensors, and which have routers, by name."""
    return {name: family for name, family in FAMILIES.items() if family.mark}


def is_captured(family: Family) -> TypeGuard[CapturedFamily]:
    return bool(of(family.name).captured)


def build(name: str, arch: Mapping[str, Any]) -> Family:
    """A model of the family `name` with the given architecture.  Raises ModelError for one that it cannot have."""
    family = of(name).load()
    try:
        model: Family = family(fields_of(family.arch_type, arch))
    except msgspec.ValidationError as error:
        raise ModelError(f"{name}: {error} in its architecture: run l2c-export again") from None
    return model


def is_name(model: str) -> bool:
    return any(family.load().named(model) is not None for family in FAMILIES.values())


def titles(conjunction: str, article: str = "") -> str:
    """ "DiT and U-ViT"; "a DiT or a U-ViT" with an article: those whose checkpoints are known by their tensors."""
    *others, last = (f"{article}{family.title}" for family in by_hand().values())
    return f"{', '.join(others)} {conjunction} {last}" if others else last


def fields_of(arch_type: type, config: Mapping[str, Any]) -> Any:
    """Build an architecture record from a configuration.  Raises ModelError for a key that is not known."""
    names = [f.name for f in msgspec.structs.fields(arch_type)]
    check_keys(config, names, WITHOUT_EFFECT)
    return msgspec.convert({k: v for k, v in config.items() if k in names}, arch_type)


def check_keys(config: Mapping[str, Any], known: Sequence[str], tolerated: Collection[str] = ()) -> None:
    """Raise ModelError naming the first key that is not known, and the nearest that is."""
    for key in config:
        if key not in known and key not in tolerated:
            close = difflib.get_close_matches(key, known, 1)
            raise ModelError(f"unknown key {key!r}: {f'use {close[0]}' if close else 'known are ' + ', '.join(known)}")
