"""A transformer of diffusers as a family: its own module, captured from its configuration."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ...errors import ModelError
from ...weights.checkpoint import Checkpoint
from ...weights.recipe import Recipe
from ..family import Runner
from . import selfcheck
from .adapters import adapter_of
from .call import call, operations
from .cut import cut
from .dataflow import Flow
from .export import ROWS, export
from .pieces import Pieces, pieces
from .signature import without_adapter
from .skeleton import build, skeleton

MOST_CHECKED = 20_000_000  # parameters of a model that is compared with its module; larger ones are in small


class CapturedArch(msgspec.Struct, frozen=True):
    """A class of diffusers, its configuration as JSON, and the sizes that are compiled: of latents, and of a prompt."""

    model: str
    config: str
    height: int = 0  # 0: the configuration's
    width: int = 0
    tokens: int = 0  # 0: the family's
    cut: str = ""  # a pattern of modules that are sublayers, too


class Captured:
    """What `Family` asks for, of any module with an adapter."""

    name: ClassVar[str]
    arch_type: ClassVar[type] = CapturedArch

    def __init__(self, arch: CapturedArch) -> None:
        adapter = adapter_of(self.name, arch.model)
        config = json.loads(arch.config)
        height, width = adapter.sides(config)
        tokens = arch.tokens or adapter.tokens
        self.arch = msgspec.structs.replace(arch, height=arch.height or height, width=arch.width or width, tokens=tokens)
        self.latent = (adapter.channels(config), self.arch.height, self.arch.width)
        self.inputs = adapter.inputs(config, tokens)
        self.from_one = adapter.from_one
        self.guidance = adapter.guidance(config)  # mode, and scale by default
        patch = adapter.patch(config)
        self.picture_tokens = (self.arch.height // patch) * (self.arch.width // patch)
        self.pieces = captured(self.name, self.arch)
        self.sublayers = self.pieces.sublayers
        self.segments = operations(self.pieces)

    @staticmethod
    def named(name: str) -> None:
        """No name stands for one of these: their folders describe them."""

    @staticmethod
    def from_tensors(shapes: Mapping[str, tuple[int, ...]], arch: CapturedArch) -> CapturedArch:
        return arch

    def tensors(self) -> dict[str, tuple[int, ...]]:
        return self.pieces.tensors

    def checkpoint(self, opened: Checkpoint) -> Checkpoint:
        """A checkpoint of diffusers, and what follows from the configuration; without what nothing reads."""
        derived = self.pieces.derived
        shapes = {name: shape for name, shape in opened.shapes.items() if name not in self.pieces.unread}
        known = {name: tuple(value.shape) for name, value in derived.items()}
        whole = opened._replace(shapes={**shapes, **known}, read=lambda n: derived[n] if n in derived else opened.read(n))
        joined = {name: Recipe.of(*names) for name, names in self.pieces.joined.items() if name not in shapes}
        if not joined:
            return whole
        whole.tensors(self.pieces.stored)  # refuse what does not fit under the names of the file
        parts = {source.tensor for recipe in joined.values() for source in recipe.sources}
        return whole.by_recipe({**{name: Recipe.of(name) for name in whole.shapes if name not in parts}, **joined})

    def call(self, run: Runner, x: Any, rows: Any, t: Any, request: Mapping[str, Any]) -> Any:
        return call(self.pieces, run, x, rows, t, request)


@functools.lru_cache(maxsize=4)
def captured(family: str, arch: CapturedArch) -> Pieces:
    """The module's pieces.  Raises ModelError where it cannot be captured, or is not cut as it should be."""
    parts, parameters = cut_module(family, arch)
    if arch.cut and not parts.finer:
        raise ModelError(
            f"{arch.model}: cut={arch.cut!r} names no further sublayer: it is a pattern of modules' names, as those "
            f"in {parts.sublayers[-1]}"
        )
    small = arch if parameters <= MOST_CHECKED else smaller(family, arch)
    in_small = parts if small is arch else cut_module(family, small)[0]
    config, adapter = json.loads(small.config), adapter_of(family, arch.model)
    latent = (adapter.channels(config), small.height, small.width)
    selfcheck.check(build(small.model, config), adapter.call, in_small, latent, adapter.inputs(config, small.tokens))
    return parts


def smaller(family: str, arch: CapturedArch) -> CapturedArch:
    """The same model in small: what is compared with its module where the model itself is too large for that."""
    adapter = adapter_of(family, arch.model)
    config = {**json.loads(arch.config), **adapter.small(json.loads(arch.config))}
    side = 4 * adapter.patch(config)
    return msgspec.structs.replace(arch, config=json.dumps(config), height=side, width=side, tokens=5)


def cut_module(family: str, arch: CapturedArch) -> tuple[Pieces, int]:
    """The pieces, and how many parameters the model has."""
    config, adapter = json.loads(arch.config), adapter_of(family, arch.model)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    model = skeleton(arch.model, config, mode)
    latent = (adapter.channels(config), arch.height, arch.width)
    with mode:
        x, t = torch.zeros(ROWS, *latent), torch.zeros(ROWS)
        request = {
            i.name: torch.zeros((ROWS, *i.shape), dtype=getattr(torch, i.dtype)) for i in adapter.inputs(config, arch.tokens)
        }
    flow = Flow(export(model, adapter.call, x, t, request))
    parts = pieces(flow, cut(flow, arch.cut))
    if not parts.sublayers:
        raise without_adapter(arch.model, "no value is added to the stream that it was computed from")
    count = len(parts.sublayers) - parts.finer
    if count != (expected := adapter.sublayers(config)) and expected is not None:
        raise ModelError(
            f"{arch.model}: {count} sublayers were found where there are {expected}: use another release of diffusers"
        )
    parts.unread = frozenset(model.state_dict()) - parts.stored.keys()
    return parts, sum(parameter.numel() for parameter in model.parameters())


class PixArt(Captured):
    """PixArt-alpha and PixArt-Sigma (arXiv 2310.00426, 2403.04692)."""

    name: ClassVar[str] = "pixart"


class StableDiffusion3(Captured):
    """Stable Diffusion 3 and 3.5 (arXiv 2403.03206)."""

    name: ClassVar[str] = "sd3"


class Flux(Captured):
    """FLUX.1, dev and schnell."""

    name: ClassVar[str] = "flux"


class AuraFlow(Captured):
    """AuraFlow."""

    name: ClassVar[str] = "auraflow"


class Sana(Captured):
    """Sana (arXiv 2410.10629)."""

    name: ClassVar[str] = "sana"


class QwenImage(Captured):
    """Qwen-Image (arXiv 2508.02324)."""

    name: ClassVar[str] = "qwenimage"


class BySignature(Captured):
    """A class without an adapter, of which the scheduler says that it predicts noise."""

    name: ClassVar[str] = "transformer"


class FlowBySignature(Captured):
    """The same, of a flow."""

    name: ClassVar[str] = "flow-transformer"
