"""A LoRA that somebody gives for the model of an artefact: what of it is added to which rows of which stored tensor."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from ..errors import WeightsError
from ..models import families
from ..models.diffusers import flux_names, tensor_names
from ..support.words import counted
from ..weights.layout import Tensors
from ..weights.lora import Lora
from ..weights.recipe import Read, Recipe, Shape, TensorSource, Unfit
from .records import DenoiserRecord, WeightsRecord

WEIGHT = ".weight"
Naming = Mapping[str, Recipe]  # what the stored tensors are made of, under the names of one kind of checkpoint
REMEDY = "give a LoRA of this model"
BLOCK = re.compile(r"(.*?_)(\d+)_")  # begins the flat name of a module in a block


class LoraAddition(NamedTuple):
    """What the product of a module, or a part of it, is added to: a place in a stored tensor."""

    module: str
    source: TensorSource
    place: tuple[slice, ...]

    def read(self, lora: Lora) -> Read:
        return lambda _: lora.delta(self.module)


@dataclass(frozen=True)
class FittedLora:
    """A LoRA, and its additions by the name of a stored tensor."""

    lora: Lora
    additions: Mapping[str, tuple[LoraAddition, ...]]
    unread: tuple[str, ...] = ()  # modules whose output the model does not use

    @property
    def said(self) -> list[str]:
        """Lines: what is merged, and what of the file is not."""
        lora, count = self.lora, len(self.lora.products)
        lines = [f"merging {lora.called}: {counted(count, 'product')} into {counted(len(self.additions), 'tensor')}"]
        if lora.encoders:
            parts = ", ".join(f"{counted(tensors, 'tensor')} of {name}" for name, tensors in sorted(lora.encoders.items()))
            lines.append(f"{lora.called}: what it has for text encoders is left out ({parts}): prompts are encoded without it")
        if self.unread:
            several = f" and {len(self.unread) - 1} more" if len(self.unread) > 1 else ""
            lines.append(f"{lora.called}: {self.unread[0]}{several} is left out: the model does not use what it computes")
        return lines

    def merged(self, name: str, value: np.ndarray) -> np.ndarray:
        """A stored tensor with what is added to it: float32, a copy where anything is."""
        additions = self.additions.get(name, ())
        if not additions:
            return value
        whole = np.array(value, np.float32)
        for addition in additions:
            whole[addition.place] += addition.source.value(addition.read(self.lora))
        return whole


def merged(tensors: Tensors, loras: Sequence[FittedLora]) -> Tensors:
    """The tensors of a model with all that LoRAs add; one at a time, as they are asked for."""
    for name, value in tensors:
        for lora in loras:
            value = lora.merged(name, value)
        yield name, value


def with_loras(bound: WeightsRecord, loras: Sequence[str]) -> WeightsRecord:
    """What is noted of weights that LoRAs ("FILE:SCALE") were merged into."""
    return msgspec.structs.replace(bound, loras=(*bound.loras, *(Path(path).name for path in loras)))


def fit(original: Lora, denoiser: DenoiserRecord) -> FittedLora:
    """What a LoRA adds to a model's stored tensors.  Raises WeightsError for one of another model."""
    lora = in_names_of_diffusers(original) if denoiser.family == families.FLUX.name else original
    known = [(naming, modules_of(naming)) for naming in namings(denoiser)]
    naming, modules = min(known, key=lambda pair: len(_missing(lora, pair[1], denoiser)))
    if missing := _missing(lora, modules, denoiser):
        key = lora.products[missing[0]].down
        raise WeightsError(f"{lora.path} is of another model: {key} is for no layer of this {denoiser.family}: {REMEDY}")
    own = {module: _own(lora, module, modules) for module in lora.products}
    module_of = {name + WEIGHT: module for module, name in own.items() if name}
    additions_of = {n: tuple(_additions(lora, module_of, denoiser.tensors[n].shape, recipe)) for n, recipe in naming.items()}
    unread = tuple(module for module, name in own.items() if not name)
    return FittedLora(lora, {name: additions for name, additions in additions_of.items() if additions}, unread)


def namings(denoiser: DenoiserRecord) -> list[Naming]:
    """What checkpoints of a model call its tensors: that which was compiled, the stored ones, and of a DiT diffusers'."""
    compiled = {name: tensor.recipe or Recipe.of(name) for name, tensor in denoiser.checkpointed.items()}
    known: list[Naming] = [compiled, {name: Recipe.of(name) for name in denoiser.checkpointed}]
    if denoiser.family != families.DIT.name:
        return known
    depth, block_embeddings = int(denoiser.arch["depth"]), bool(denoiser.arch.get("block_embeddings"))
    known.append(tensor_names.recipes(depth, block_embeddings))
    if block_embeddings:
        return known
    # where all blocks share their embedders, what a LoRA adds to one block's cannot be stored
    return [{n: r for n, r in naming.items() if not tensor_names.EMBEDDED.match(r.sources[0].tensor)} for naming in known]


def modules_of(naming: Naming) -> dict[str, str]:
    """The modules of a checkpoint with a weight, by their names with underscores for dots."""
    tensors = {source.tensor for recipe in naming.values() for source in recipe.sources}
    modules = [tensor.removesuffix(WEIGHT) for tensor in tensors if tensor.endswith(WEIGHT)]
    return {_flat(module): module for module in modules}


def in_names_of_diffusers(lora: Lora) -> Lora:
    """The same, where its modules have the names of FLUX's own code, under those of diffusers."""
    products = {}
    for module, product in lora.products.items():
        rows = lora.shape(module)[0]
        parts = flux_names.modules(module)
        for part in parts:
            places = part.rows(rows)
            if places is None:
                raise WeightsError(f"{lora.path} is of another model: {product.up} has {counted(rows, 'row')}: {REMEDY}")
            products[part.module] = product._replace(rows=places)
        if not parts:
            products[module] = product
    return replace(lora, products=products)


def _flat(module: str) -> str:
    return module.replace(".", "_")


def _own(lora: Lora, module: str, modules: Mapping[str, str]) -> str | None:
    """What a checkpoint calls a module of a LoRA."""
    own = modules.get(_flat(module))
    return own if module in lora.flat or own == module else None


def _missing(lora: Lora, modules: Mapping[str, str], denoiser: DenoiserRecord) -> list[str]:
    """The modules of a LoRA that a checkpoint does not have."""
    captured = families.of(denoiser.family).captured
    absent = [module for module in lora.products if _own(lora, module, modules) is None]
    return [module for module in absent if not (captured and _is_unread(_flat(module), modules))]


def _is_unread(module: str, modules: Mapping[str, str]) -> bool:
    """Whether a captured model has a module in one block only for others to be like it: as the last one's of a text's stream.

    It is not stored, so other blocks must have it, and its own must have others.
    """
    match = BLOCK.match(module)
    if match is None or not any(known.startswith(match[0]) for known in modules):
        return False
    same = re.compile(rf"{re.escape(match[1])}\d+_{re.escape(module[match.end() :])}")
    return any(same.fullmatch(known) for known in modules)


def _additions(lora: Lora, module_of: Mapping[str, str], shape: Shape, recipe: Recipe) -> Iterator[LoraAddition]:
    """What of a LoRA belongs to a stored tensor.  Raises WeightsError where it has another shape."""
    first = 0
    for source, length in zip(recipe.sources, _lengths(shape, recipe), strict=True):
        place = (*shape[: recipe.axis], length, *shape[recipe.axis + 1 :])
        if module := module_of.get(source.tensor):
            added = lora.shape(module)
            try:
                fits = source.shape({source.tensor: added}) == place
            except Unfit:
                fits = False
            if not fits:
                key = lora.products[module].down
                raise WeightsError(
                    f"{lora.path} is of another model: {key} and its twin add {list(added)} to {source.tensor}, which has "
                    f"{list(place)}: {REMEDY}"
                )
            yield LoraAddition(module, source, (slice(None),) * recipe.axis + (slice(first, first + length),))
        first += length


def _lengths(shape: Shape, recipe: Recipe) -> list[int]:
    """How much of a stored tensor each source is: parts what they say, whole ones as much as each other."""
    if len(recipe.sources) == 1:
        return [shape[recipe.axis]] if shape else [0]
    told = [None if source.last is None else source.last - source.first for source in recipe.sources]
    rest = shape[recipe.axis] - sum(length or 0 for length in told)
    share = rest // max(told.count(None), 1)
    return [share if length is None else length for length in told]
