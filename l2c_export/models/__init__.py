"""Model families.  A family is one file: its segments, its tensors' names, its call.  To add one, list it here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from ..errors import ModelError
from ..file_kind import MODEL, json_text, of_json
from .base import Family, check_total, fields_of
from .dit import DiT
from .uvit import UViT

FAMILIES: dict[str, Any] = {family.name: family for family in (DiT, UViT)}
DEFAULTS = {"dit": "DiT-XL/2", "uvit": "U-ViT-H/2"}
REMEDY = "give a JSON file with family and arch"
EXAMPLES = "DiT-XL/2, DiT-S/4@512, U-ViT-H/2, a pipeline folder of diffusers, or a JSON file with family and arch"


def resolve(
    model: str | None, router_family: str | None, router_columns: int | None, shapes: Mapping[str, tuple[int, ...]] | None
) -> tuple[Family, str | None]:
    """The model that the user means, and its name if it has one.

    `model` is a name or a JSON file.  Left out, the weights' shapes decide, and without weights a router's width
    does (56 is DiT-XL/2, 58 is U-ViT-H/2).  The weights' shapes override what a name says.
    """
    name: str | None = None
    if model is None and shapes is None:
        default = {("dit", 56): "DiT-XL/2", ("uvit", 58): "U-ViT-H/2"}.get((router_family or "", router_columns or 0))
        if default is None:
            wide = f"a router of width {router_columns}" if router_columns else "this schedule"
            raise ModelError(f"{wide} does not say which model it is for: give --model ({EXAMPLES}) or --weights")
        model = default
    if model is None:
        kind, arch = _family_of(shapes or {}), None
    elif Path(model).suffix == ".json" or Path(model).is_file():
        kind, arch = _from_file(Path(model))
    else:
        kind, arch = _from_name(model)
        name = model
    family = FAMILIES[kind]
    if shapes is not None and (arch is None or name is not None):
        try:
            seen = family.from_tensors(shapes, arch or family.arch_type())
        except KeyError as error:
            raise ModelError(f"the weights are not those of a {kind} model: there is no {error}; check --model") from None
        except (ArithmeticError, ValueError, IndexError):
            raise ModelError(
                f"the weights are not those of a {kind} model: its tensors have other shapes; check --model"
            ) from None
        name = name if arch in (None, seen) else None
        arch = seen
    made = family(arch)
    check_total(made)
    return made, name


def build(kind: str, arch: Mapping[str, Any]) -> Family:
    """The family `kind` with the given architecture."""
    if kind not in FAMILIES:
        raise ModelError(f"unknown model family {kind!r}: known are {', '.join(FAMILIES)}")
    family: Family = FAMILIES[kind](fields_of(FAMILIES[kind].arch_type, arch))
    return family


def is_name(model: str) -> bool:
    return any(family.named(model) is not None for family in FAMILIES.values())


def _from_name(model: str) -> tuple[str, Any]:
    for kind, family in FAMILIES.items():
        if (arch := family.named(model)) is not None:
            return kind, arch
    raise ModelError(f"unknown model {model!r}: use for example {EXAMPLES}")


def _from_file(path: Path) -> tuple[str, Any]:
    try:
        config = msgspec.json.decode(json_text(path, REMEDY), type=dict[str, Any])
        if (other := of_json(config)) not in (None, MODEL):
            raise ModelError(f"{path} does not describe a model: {other.instead(REMEDY)}")
        kind = config["family"]
        if not isinstance(kind, str) or kind not in FAMILIES:
            raise ModelError(f"{path}: unknown family {kind!r}: known are {', '.join(FAMILIES)}")
        return kind, fields_of(FAMILIES[kind].arch_type, config["arch"])
    except OSError as error:
        raise ModelError(f"--model {path}: {error.strerror}: use for example {EXAMPLES}") from None
    except KeyError as error:
        raise ModelError(f"{path}: the key {error} is missing: a model needs family and arch") from None
    except (msgspec.MsgspecError, AttributeError, RecursionError, ValueError) as error:
        raise ModelError(f"{path} does not describe a model: {error}") from None


def _family_of(shapes: Mapping[str, tuple[int, ...]]) -> str:
    for kind, mark in (("dit", "x_embedder.proj.weight"), ("uvit", "patch_embed.proj.weight")):
        if mark in shapes:
            return kind
    raise ModelError(f"the weights are of no known model (their first tensor is {next(iter(shapes), 'none')}): give --model")
