"""Which architecture a checkpoint has: what the user says, what its training noted, what its tensors show, a published size.

What these leave open is asked for, in a line of JSON: nothing that changes a number is guessed in silence.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

from ..errors import ModelError
from ..weights.checkpoint import Checkpoint
from ..weights.layout import Shapes
from . import families, notes
from .family import Family, summary, width_of
from .unshown import Unshown

Fields = Mapping[str, Any]
NONE: Fields = {}


class ModelRequest(NamedTuple):
    """What `--model` says: a family and fields of its architecture, by a published name or described in a file."""

    kind: str
    fields: Fields = NONE
    name: str | None = None
    described: bool = False
    assumed: tuple[str, ...] = ()

    def question(self, unknown: Iterable[str]) -> str:
        """What to do: the description that would be enough, with what is unknown in capitals."""
        fields = {} if self.name else self.fields
        entries = [f'"{name}": {json.dumps(value)}' for name, value in fields.items()]
        arch = ", ".join([*entries, *(f'"{name}": {name.upper()}' for name in unknown)])
        return f'say it with model=\'FILE.json\', and use in it {{"family": "{self.kind}", "arch": {{{arch}}}}}'


class Evidence(NamedTuple):
    """An architecture, and what of it nothing says."""

    arch: Any
    assumed: tuple[str, ...] = ()


def architecture(family: Family, assumed: Iterable[str]) -> list[str]:
    """A line of sizes, and one for each thing that was assumed."""
    return [summary(family, families.of(family.name).width), *(f"assumed: {assumption}" for assumption in assumed)]


def from_description(family: Any, request: ModelRequest) -> Evidence:
    """The architecture without any weights: what is left out is the family's default, but for the number of heads."""
    arch = family.arch_type(**request.fields)
    gaps = unshown(family, arch, request.fields, family(of_any_heads(arch)).tensors())
    if why := gaps.missing.get("num_heads"):
        raise ModelError(f"nothing says {why}: {request.question(['num_heads'])}")
    arch = msgspec.structs.replace(arch, **{**gaps.known, **request.fields})
    assumed = [f"{name} {getattr(arch, name)}: nothing says {why}" for name, why in gaps.missing.items()]
    return Evidence(arch, (*request.assumed, *assumed))


def from_weights(family: Any, request: ModelRequest, checkpoint: Checkpoint) -> Evidence:
    """The architecture of a checkpoint.  Raises ModelError for evidence that is missing, or contradicts itself."""
    notes.check(checkpoint, family.arch_type.__struct_fields__, families.of(request.kind))
    training = notes.fields(families.of(request.kind), checkpoint)
    try:
        arch = family.from_tensors(checkpoint.shapes, family.arch_type(**{**training, **request.fields}))
    except ModelError as error:
        raise ModelError(f"{checkpoint.path}: {error}") from None
    except (KeyError, ArithmeticError, ValueError, IndexError) as error:
        if request.described:  # what does not fit a description is named where the weights are read
            return Evidence(family.arch_type(**request.fields))
        why = f"there is no {error}" if isinstance(error, KeyError) else "its tensors have other shapes"
        raise ModelError(f"{checkpoint.path} holds no {request.kind} model: {why}: give another, or check model=..") from None
    if request.described and contradictions(family, request.fields, arch):  # so is this
        return Evidence(msgspec.structs.replace(arch, **request.fields))
    if not request.described:
        check_foreign(family, request, arch, checkpoint)
    if request.name:
        check_agrees(
            family, request.fields, arch, f"model={request.name!r}", str(checkpoint.path), "use no model=.., or other weights"
        )
    elif not request.described:
        notes.check_name(checkpoint, request.question(["num_heads"]))
        origin = f"what the training of {checkpoint.path} noted"
        check_agrees(family, training, arch, origin, "tensors of it", request.question(["num_heads"]))
        notes.check_pictures(checkpoint, family(of_any_heads(arch)).latent)
    return complete(family, request, training, arch, checkpoint)


def complete(family: Any, request: ModelRequest, training: Fields, seen: Any, checkpoint: Checkpoint) -> Evidence:
    """What the tensors show, with what they do not show from what is said, noted or published."""
    fields = {**{name: value for name, value in training.items() if name not in shown(family)}, **request.fields}
    gaps = unshown(family, seen, fields, checkpoint.shapes)
    published = request.name or family.named(notes.model_name(checkpoint))
    usual = {name: value for name, value in gaps.usual.items() if published and name in gaps.missing}
    if unknown := [name for name in gaps.missing if name not in usual]:
        why = "; ".join(gaps.missing[name] for name in unknown)
        raise ModelError(f"{checkpoint.path} does not show {why}: {request.question(unknown)}")
    assumed = [f"{name} {value}, as is usual: nothing says {gaps.missing[name]}" for name, value in usual.items()]
    known = families.of(request.kind)
    if known.lookalike and not (request.name or request.described or notes.predicts_noise(checkpoint)):
        why = f"nothing says so, and a {families.of(known.lookalike).title} has the same tensors"
        assumed.append(f"that it predicts noise, as a {known.title} does: {why}")
    arch = msgspec.structs.replace(seen, **{**gaps.usual, **gaps.known, **fields})
    if "mlp_ratio" in fields and is_rounded(fields["mlp_ratio"], seen, known.width):
        arch = msgspec.structs.replace(arch, mlp_ratio=seen.mlp_ratio)
    return Evidence(arch, tuple(assumed))


def shown(family: Any) -> tuple[str, ...]:
    """The fields that tensors show."""
    return getattr(family, "shown", ())


def unshown(family: Any, arch: Any, fields: Fields, shapes: Shapes) -> Unshown:
    """What tensors do not show.  A family without such fields need not say so."""
    gaps: Unshown = family.unshown(arch, fields, shapes) if hasattr(family, "unshown") else Unshown()
    return gaps


def of_any_heads(arch: Any) -> Any:
    """The architecture with a number of heads that fits any width: its tensors are the same."""
    return msgspec.structs.replace(arch, num_heads=1) if hasattr(arch, "num_heads") else arch


def is_rounded(ratio: float, arch: Any, width: str) -> bool:
    """Whether an `mlp_ratio` is the one that the tensors show, but for the rounding of a quotient."""
    return bool(abs(ratio - arch.mlp_ratio) * width_of(arch, width) < 1)


def check_foreign(family: Any, request: ModelRequest, arch: Any, checkpoint: Checkpoint) -> None:
    """Refuse tensors that no model of the family has, as those of a relative of DiT."""
    tensors, known = family(of_any_heads(arch)).tensors(), families.titles("or", "a ")
    if extra := next((name for name in checkpoint.shapes if name not in tensors), None):
        raise ModelError(f"{checkpoint.path} holds no {request.kind} model: {extra} is no part of one: give {known}")


def contradictions(family: Any, fields: Fields, arch: Any) -> list[str]:
    """The fields that somebody says otherwise than the tensors show them."""
    names = [name for name in fields if name in shown(family) and fields[name] != getattr(arch, name)]
    return [name for name in names if name != "mlp_ratio" or not is_rounded(fields[name], arch, families.of(family.name).width)]


def check_agrees(family: Any, fields: Fields, arch: Any, one: str, other: str, remedy: str) -> None:
    """Refuse a size that somebody says and the tensors contradict, naming both."""
    if names := contradictions(family, fields, arch):
        first = ", ".join(f"{name} {fields[name]}" for name in names)
        second = ", ".join(f"{name} {getattr(arch, name)}" for name in names)
        raise ModelError(f"{one} ({first}) contradicts the {other} ({second}): {remedy}")
