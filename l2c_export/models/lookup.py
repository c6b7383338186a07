"""Which model is meant: by a name, by a JSON file, or by the weights alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from ..errors import ModelError
from ..support.file_kind import MODEL, json_text, of_json
from ..weights.checkpoint import Checkpoint
from . import foreign, notes
from .evidence import ModelRequest, from_description, from_weights
from .families import FAMILIES, check_keys, fields_of, titles
from .family import Family, check_total

RECORDED = "router_file"  # a key of a recorded run's configuration, which says more than its model
REMEDY = "give a JSON file with family and arch"


def examples() -> str:
    """What may be asked for, in words."""
    names = [name for family in FAMILIES.values() for name in family.examples]
    return ", ".join([*names, "a pipeline folder of diffusers, or a JSON file with family and arch"])


class Resolved(NamedTuple):
    """A model, its name if it has a published one, and what of it nothing says."""

    family: Family
    name: str | None
    assumed: tuple[str, ...] = ()


def resolve(
    model: str | None, router_family: str | None, router_columns: int | None, checkpoint: Checkpoint | None
) -> Resolved:
    """The model that the user means: `ask`, then `find`."""
    return find(ask(model, router_family, router_columns, checkpoint), checkpoint)


def ask(
    model: str | None, router_family: str | None, router_columns: int | None, checkpoint: Checkpoint | None
) -> ModelRequest:
    """What the user says of the model: `--model`, a name or a JSON file.

    Left out, the weights say the family, and without weights a router's width is that of a published model.
    """
    if model is not None:
        is_file = Path(model).suffix == ".json" or Path(model).is_file()
        return _from_file(Path(model)) if is_file else _from_name(model, checkpoint)
    if checkpoint is not None:
        return ModelRequest(_family_of(checkpoint))
    default = FAMILIES[router_family].routed.get(router_columns or 0) if router_family in FAMILIES else None
    if default is None:
        wide = f"a router of width {router_columns}" if router_columns else "this schedule"
        raise ModelError(f"{wide} does not say which model it is for: give model=.. ({examples()}) or weights=..")
    assumed = f"the model {default}, which has the router's {router_columns} columns"
    return _from_name(default, None)._replace(assumed=(assumed,))


def find(request: ModelRequest, checkpoint: Checkpoint | None) -> Resolved:
    """The model that fits what was asked for and the checkpoint.  Raises ModelError where these do not say all of it."""
    family = FAMILIES[request.kind].load()
    arch, assumed = from_weights(family, request, checkpoint) if checkpoint else from_description(family, request)
    model = family(arch)
    check_total(model)
    return Resolved(model, request.name if request.name and family.named(request.name) == arch else None, assumed)


def _from_name(model: str, checkpoint: Checkpoint | None) -> ModelRequest:
    """A name stands for a size; for a size of pictures, too, if it says one, and without weights for all of a model."""
    for kind, family in FAMILIES.items():
        if (arch := family.load().named(model)) is not None:
            fields: dict[str, Any] = msgspec.structs.asdict(arch)
            pixels = {family.side: fields[family.side]} if "@" in model else {}
            return ModelRequest(kind, fields if checkpoint is None else {**family.size(arch), **pixels}, model)
    raise ModelError(f"unknown model {model!r}: use for example {examples()}")


def _from_file(path: Path) -> ModelRequest:
    try:
        config = msgspec.json.decode(json_text(path, REMEDY), type=dict[str, Any])
        if (other := of_json(config)) not in (None, MODEL):
            raise ModelError(f"does not describe a model: {other.instead(REMEDY)}")
        kind, arch = config["family"], config["arch"]
        if not isinstance(kind, str) or kind not in FAMILIES:
            raise ModelError(f"{path}: unknown family {kind!r}: known are {', '.join(FAMILIES)}")
        if RECORDED not in config:
            check_keys(config, ("family", "arch"))
        fields = msgspec.structs.asdict(fields_of(FAMILIES[kind].load().arch_type, arch))
        return ModelRequest(kind, {name: value for name, value in fields.items() if name in arch}, described=True)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None
    except OSError as error:
        raise ModelError(f"model={str(path)!r}: {error.strerror}: use for example {examples()}") from None
    except KeyError as error:
        raise ModelError(f"{path}: the key {error} is missing: a model needs family and arch") from None
    except (msgspec.MsgspecError, AttributeError, RecursionError, TypeError, ValueError) as error:
        raise ModelError(f"{path} does not describe a model: {error}") from None


def _family_of(checkpoint: Checkpoint) -> str:
    for kind, family in FAMILIES.items():
        if family.mark in checkpoint.shapes:
            return family.lookalike if notes.is_lookalike(family, checkpoint) else kind
    raise ModelError(f"{checkpoint.path}: l2c-export knows {titles('and')}, and {foreign.what(checkpoint.shapes)}")
