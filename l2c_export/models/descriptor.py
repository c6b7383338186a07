"""What is known of a family of models before PyTorch is imported: its names, its checkpoints, its routers, its defaults."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple


def never(arch: Any) -> bool:
    return False


def numbered(count: int) -> Sequence[str]:
    return [f"blocks.{n}" for n in range(count)]


def high(side: int) -> float:
    return 0.9


class RouterLayout(NamedTuple):
    """A router as the trainings of a family save it: a vector of scores for every step or network evaluation.

    `container` is the key of the file that has the vectors; "" if the file holds nothing else.  Such a file says nothing of its
    family, and others only if they are `signed`.
    """

    row: str = "{}.prob"  # the key of a vector by its number
    container: str = "routers"
    signed: bool = True
    spare: int = 0  # scores at a vector's end that no sublayer has, in the routers
    spared: Callable[[Any], bool] = never  # of these architectures
    threshold: Callable[[int], float] = high  # of the released routers, by the latents' height

    def names(self, count: int) -> list[str]:
        return [self.row.format(n) for n in range(count)]


@dataclass(frozen=True)
class FamilyDescriptor:
    """A family as the others see it.  `home` is a module, with a dot in front if it is in `models`, and `model` a class of it
    with the contract of `family.Family`.
    """

    name: str  # in manifests, schedules, routers and descriptions
    title: str  # in sentences
    home: str
    model: str
    mark: str  # a tensor that all of its checkpoints have, and those of no other family; "" where something else says it
    sampler: str  # what its reference samples with, and its routers are for
    guidance: tuple[str, float]  # mode and scale by default
    examples: tuple[str, ...] = ()  # names of published models, for messages
    routed: Mapping[int, str] = field(default_factory=dict)  # published models by the width of their routers
    noted: str = ""  # a pattern of what trainings call it; "": the title
    lookalike: str = ""  # the name of a family with the same tensors that predicts something else than noise
    trained: Mapping[str, str] = field(default_factory=dict)  # what tells its trainings from other lookalikes, in their options
    unguided: float = 1.0  # the guidance scale in its reference's convention that guides nothing; 1 is the usual one
    width: str = "hidden_size"  # the field of its architecture that says how wide tokens are
    side: str = "input_size"  # and the one that says how high latents are
    blocks: Callable[[int], Sequence[str]] = numbered  # their names, given how many there are
    parts: tuple[str, ...] = ()  # the sublayers of every block; (): their columns have no names without a model
    router: RouterLayout = field(default_factory=RouterLayout)
    flow: bool = False  # whether it predicts noise - data, and not noise
    pixels: int = 8  # a latent, along each side
    captured: str = ""  # the class of diffusers whose own module it is; "": the family is written by hand

    def load(self) -> Any:
        """The class.  Imports PyTorch."""
        return getattr(importlib.import_module(self.home, __package__), self.model)

    @property
    def pattern(self) -> str:
        return self.noted or re.escape(self.title)

    def size(self, arch: Any) -> dict[str, Any]:
        """What a published name says of any model that is built under it, whatever its pictures and classes."""
        names = ("depth", self.width, "patch_size", "num_heads")
        return {name: getattr(arch, name) for name in names if hasattr(arch, name)}

    def sublayers(self, columns: int) -> tuple[str, ...]:
        """The names of so many columns of a router, or of a schedule that has numbers for them."""
        if not self.parts:
            return tuple(map(str, range(columns)))
        blocks = self.blocks(-(-columns // len(self.parts)))
        return tuple(f"{block}.{part}" for block in blocks for part in self.parts)[:columns]
