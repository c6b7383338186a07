"""An artefact of format 1 as one of format 2: the same files, engines and images.

Format 1 knew one model with class labels, one schedule and one size, and said by a value's name alone where it comes from.
It keeps its segments, and with them what they were compiled for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..ir.dtypes import Types
from ..ir.inputs import CLASS_LABELS
from ..ir.names import rows_of, split_at

OLDEST = 1
# what the loop provides, by name
KINDS = {
    "x": "state", "base": "state", "x.data": "state", "rows": "index", "conditional": "index", "unconditional": "index",
    "guidance": "guidance", "coefficients": "coefficients", "t": "time",
}  # fmt: skip
ISLAND = "_fp32"  # ended the operation of a sublayer that is kept in float32
ISLANDS = ("update", "multistep", "data", "final", "time", "condition")  # were computed in it by themselves
OF_PROGRAM = ("sampler", "steps", "calls", "cache_bytes", "history", "noise_scale", "asked")
OF_SIZE = ("values", "graphs", "constants", "prologue")
OF_DENOISER = ("weight_dtype", "fp32", "weights", "tensors", "segments")
OF_ARTEFACT = ("format", "tool", "guidance", "precision", "batch", "backend", "link", "passes", "decoder", "builds", "files")

Raw = Mapping[str, Any]


def upgraded(raw: Raw) -> dict[str, Any]:
    """The manifest of format 2 that says what one of format 1 says.  Raises KeyError, TypeError or ValueError for no manifest.

    A key that format 1 does not have is left where it stood, to be refused as unknown.
    """
    known = {*OF_PROGRAM, *OF_SIZE, *OF_DENOISER, *OF_ARTEFACT, "version", "model", "checksum"}
    model, rest = raw["model"], {key: value for key, value in raw.items() if key not in known}
    latent = model["latent"]
    name = "x".join(map(str, latent[1:]))
    size = {"latent": latent, "origins": dict(_origins(raw)), **_only(raw, OF_SIZE)}
    size["graphs"] = {
        name: {key: value for key, value in graph.items() if key != "inputs"} for name, graph in raw["graphs"].items()
    }
    types = Types(raw["weight_dtype"], tuple(raw["fp32"]))
    tensors = {name: {"shape": shape, "dtype": types.of(name)} for name, shape in raw["tensors"].items()}
    segments = {name: _segment(name, record, raw["weight_dtype"]) for name, record in raw["segments"].items()}
    own = {key: value for key, value in model.items() if key not in ("latent", "labels", "null_label", "names")}
    denoiser = {**_only(raw, OF_DENOISER), **own, "tensors": tensors, "segments": segments}
    program = {"size": name, "schedule": "schedule.json", **_only(raw, OF_PROGRAM)}
    return {
        **rest,
        **_only(raw, OF_ARTEFACT),
        "version": 2,
        "inputs": [_labels(model)],
        "denoiser": {**denoiser, "sizes": {name: size}},
        "programs": {str(raw["steps"]): program},
        "checksum": raw["checksum"],
    }


def _labels(model: Raw) -> dict[str, Any]:
    """The one input of format 1."""
    declared = {"name": CLASS_LABELS, "dtype": "int32", "choices": model["labels"]}
    null = {} if model["null_label"] is None else {"unconditional": model["null_label"]}
    return {**declared, **null, **_only(model, ("names",))}


def _only(raw: Raw, keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: raw[key] for key in keys if key in raw}


def _segment(name: str, record: Raw, dtype: str) -> dict[str, Any]:
    """What its name said: "attn_fp32-mul-add.3f2a9c"."""
    first = name.partition(".")[0].partition("-")[0]
    kind = first.removesuffix(ISLAND)
    island = kind != first or kind in ISLANDS
    return {**record, "kind": "sum" if kind in ("add", "mul") else kind, "precision": "float32" if island else dtype}


def _origins(raw: Raw) -> Iterator[tuple[str, list[Any]]]:
    """Where every value comes from that is not made by its own graph under its own name."""
    hoisted = {name for part in (raw["constants"], raw["prologue"]) if part for name in raw["graphs"][part]["outputs"]}
    for graph in raw["graphs"].values():
        for name in graph["inputs"]:
            yield name, _origin(name, raw["values"], hoisted)
        for _, _, _, outputs in graph["nodes"]:
            yield from ((name, ["later", *split_at(name)]) for name in outputs if split_at(name)[1])


def _origin(name: str, values: Raw, hoisted: set[str]) -> list[Any]:
    """Of an input of a graph."""
    base, offset = split_at(name)
    if name == "y":
        return ["request", CLASS_LABELS]
    if base not in values:
        tensor, rows = rows_of(name)
        return ["weight", tensor, 0, rows.start, rows.stop]
    return ["prologue" if base in hoisted else KINDS.get(base, "cache"), base, offset]
