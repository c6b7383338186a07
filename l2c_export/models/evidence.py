"""Which architecture a checkpoint has: what the user says, what its training noted, what its tensors show, a published size.

What these leave open is asked for, in a line of JSON: nothing that changes a number is guessed in silence.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

from ..errors import ModelError
from ..weights import notes
from ..weights.checkpoint import Checkpoint
from ..weights.layout import Shapes
from .family import Family, summary, width_of
from .unshown import Unshown

Fields = Mapping[str, Any]
NONE: Fields = {}
PREDICTION = "that it predicts noise, as a DiT does: nothing says so, and a SiT has the same tensors"


class ModelRequest(NamedTuple):
    """What `--model` says: a family and fields of its architecture, by a published name or described in a file."""

    kind: str
    fields: Fields = NONE
    name: str | None = None
    described: bool = False
    assumed: tuple[str, ...] = ()

    def question(self, unknown: Iterable[str]) -> str:
        """What to do: the description that would be enough, with what is unknown in capitals."""
        known = {} if self.name else self.fields
        said = [f'"{name}": {json.dumps(value)}' for name, value in known.items()]
        arch = ", ".join([*said, *(f'"{name}": {name.upper()}' for name in unknown)])
        return f'say it with model=\'FILE.json\', and use in it {{"family": "{self.kind}", "arch": {{{arch}}}}}'


class Evidence(NamedTuple):
    """An architecture, and what of it nothing says."""

    arch: Any
    assumed: tuple[str, ...] = ()


def architecture(family: Family, assumed: Iterable[str]) -> list[str]:
    """A line of sizes, and one for each thing that was assumed."""
    return [summary(family), *(f"assumed: {each}" for each in assumed)]


def described(family: Any, asked: ModelRequest) -> Evidence:
    """The architecture without any weights: what is left out is the family's default, but for the number of heads."""
    arch = family.arch_type(**asked.fields)
    found = unshown(family, arch, asked.fields, family(of_any_heads(arch)).tensors())
    if why := found.missing.get("num_heads"):
        raise ModelError(f"nothing says {why}: {asked.question(['num_heads'])}")
    arch = msgspec.structs.replace(arch, **{**found.known, **asked.fields})
    assumed = [f"{name} {getattr(arch, name)}: nothing says {why}" for name, why in found.missing.items()]
    return Evidence(arch, (*asked.assumed, *assumed))


def of_weights(family: Any, asked: ModelRequest, checkpoint: Checkpoint) -> Evidence:
    """The architecture of a checkpoint.  Raises ModelError for evidence that is missing, or contradicts itself."""
    notes.check(checkpoint)
    noted = notes.fields(family, checkpoint)
    try:
        seen = family.from_tensors(checkpoint.shapes, family.arch_type(**{**noted, **asked.fields}))
    except ModelError as error:
        raise ModelError(f"{checkpoint.path}: {error}") from None
    except (KeyError, ArithmeticError, ValueError, IndexError) as error:
        if asked.described:  # what does not fit a description is named where the weights are read
            return Evidence(family.arch_type(**asked.fields))
        why = f"there is no {error}" if isinstance(error, KeyError) else "its tensors have other shapes"
        raise ModelError(f"{checkpoint.path} holds no {asked.kind} model: {why}: give another, or check model=..") from None
    if asked.described and contradictions(family, asked.fields, seen):  # so is this
        return Evidence(msgspec.structs.replace(seen, **asked.fields))
    if not asked.described:
        check_foreign(family, asked, seen, checkpoint)
    if asked.name:
        check_agrees(
            family, asked.fields, seen, f"model={asked.name!r}", str(checkpoint.path), "use no model=.., or other weights"
        )
    elif not asked.described:
        notes.check_name(checkpoint, asked.question(["num_heads"]))
        said = f"what the training of {checkpoint.path} noted"
        check_agrees(family, noted, seen, said, "tensors of it", asked.question(["num_heads"]))
        notes.check_pictures(checkpoint, family(of_any_heads(seen)).latent)
    return completed(family, asked, noted, seen, checkpoint)


def completed(family: Any, asked: ModelRequest, noted: Fields, seen: Any, checkpoint: Checkpoint) -> Evidence:
    """What the tensors show, with what they do not show from what is said, noted or published."""
    said = {**{name: value for name, value in noted.items() if name not in shown(family)}, **asked.fields}
    found = unshown(family, seen, said, checkpoint.shapes)
    published = asked.name or family.named(notes.model_name(checkpoint))
    usual = {name: value for name, value in found.usual.items() if published and name in found.missing}
    if unknown := [name for name in found.missing if name not in usual]:
        why = "; ".join(found.missing[name] for name in unknown)
        raise ModelError(f"{checkpoint.path} does not show {why}: {asked.question(unknown)}")
    assumed = [f"{name} {value}, as is usual: nothing says {found.missing[name]}" for name, value in usual.items()]
    if asked.kind == "dit" and not (asked.name or asked.described or notes.predicts_noise(checkpoint)):
        assumed.append(PREDICTION)
    arch = msgspec.structs.replace(seen, **{**found.usual, **found.known, **said})
    if "mlp_ratio" in said and is_rounded(said["mlp_ratio"], seen):
        arch = msgspec.structs.replace(arch, mlp_ratio=seen.mlp_ratio)
    return Evidence(arch, tuple(assumed))


def shown(family: Any) -> tuple[str, ...]:
    """The fields that tensors show."""
    return getattr(family, "shown", ())


def unshown(family: Any, arch: Any, said: Fields, shapes: Shapes) -> Unshown:
    """What tensors do not show.  A family without such fields need not say so."""
    found: Unshown = family.unshown(arch, said, shapes) if hasattr(family, "unshown") else Unshown()
    return found


def of_any_heads(arch: Any) -> Any:
    """The architecture with a number of heads that fits any width: its tensors are the same."""
    return msgspec.structs.replace(arch, num_heads=1) if hasattr(arch, "num_heads") else arch


def is_rounded(ratio: float, seen: Any) -> bool:
    """Whether an `mlp_ratio` is the one that the tensors show, but for the rounding of a quotient."""
    return bool(abs(ratio - seen.mlp_ratio) * width_of(seen) < 1)


def check_foreign(family: Any, asked: ModelRequest, seen: Any, checkpoint: Checkpoint) -> None:
    """Refuse tensors that no model of the family has, as those of a relative of DiT."""
    known = family(of_any_heads(seen)).tensors()
    if extra := next((name for name in checkpoint.shapes if name not in known), None):
        raise ModelError(f"{checkpoint.path} holds no {asked.kind} model: {extra} is no part of one: give a DiT or a U-ViT")


def contradictions(family: Any, said: Fields, seen: Any) -> list[str]:
    """The fields that somebody says otherwise than the tensors show them."""
    wrong = [name for name in said if name in shown(family) and said[name] != getattr(seen, name)]
    return [name for name in wrong if name != "mlp_ratio" or not is_rounded(said[name], seen)]


def check_agrees(family: Any, said: Fields, seen: Any, one: str, other: str, remedy: str) -> None:
    """Refuse a size that somebody says and the tensors contradict, naming both."""
    if wrong := contradictions(family, said, seen):
        first = ", ".join(f"{name} {said[name]}" for name in wrong)
        second = ", ".join(f"{name} {getattr(seen, name)}" for name in wrong)
        raise ModelError(f"{one} ({first}) contradicts the {other} ({second}): {remedy}")
