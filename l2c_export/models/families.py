"""The model families.  A family is one file: its segments, its tensors' names, its call.  To add one, list it here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import ModelError
from .dit import DiT
from .family import Family, fields_of
from .uvit import UViT

FAMILIES: dict[str, Any] = {family.name: family for family in (DiT, UViT)}


def build(kind: str, arch: Mapping[str, Any]) -> Family:
    """The family `kind` with the given architecture."""
    if kind not in FAMILIES:
        raise ModelError(f"unknown model family {kind!r}: known are {', '.join(FAMILIES)}")
    family: Family = FAMILIES[kind](fields_of(FAMILIES[kind].arch_type, arch))
    return family


def is_name(model: str) -> bool:
    return any(family.named(model) is not None for family in FAMILIES.values())
