"""What scripts ask of a DiTPipeline besides images: a type, a device, downloads, its parts.

What changes nothing here is taken; what would change the images, or cannot be had, is refused in one line.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import UsageError
from ...ir.precisions import DTYPES

TYPES = DTYPES
DOWNLOADS = frozenset({
    "cache_dir", "force_download", "local_files_only", "low_cpu_mem_usage", "max_memory", "mirror", "offload_folder",
    "offload_state_dict", "proxies", "resume_download", "token", "use_auth_token", "use_safetensors",
})  # fmt: skip
OWN = frozenset({"backend", "device", "threads", "verify", "link", "tile"})
ANYWHERE = (None, "auto", "balanced")  # what a device_map may be without saying a device
COMPILED = {
    "scheduler": "compile another one with sampler=..",
    "transformer": "swap its weights with l2c_export.link",
    "vae": "compile another one with vae=..; tile= of from_pretrained decodes in parts",
    "config": "what was compiled is in .manifest",
    "components": "what was compiled is in .manifest",
    "id2label": "the names are in .labels",
}


class NotThere(UsageError, AttributeError):
    """A part of a DiTPipeline that an artefact does not have as an object."""

    def __init__(self, name: str, kind: str) -> None:
        hint = f": it is part of the compiled artefact: {COMPILED[name]}" if name in COMPILED else ""
        super().__init__(f"{kind!r} object has no attribute {name!r}{hint}")


def for_load(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of `l2c_export.load` among those of a `from_pretrained`.  Raises UsageError for what has no meaning here."""
    load_options = {name: value for name, value in options.items() if name in OWN}
    for name in options.keys() - OWN - DOWNLOADS - {"torch_dtype", "dtype", "device_map"}:
        if name in COMPILED:
            raise UsageError(f"from_pretrained({name}=..): it is part of the compiled artefact: {COMPILED[name]}")
        if options[name] is not None:
            raise UsageError(f"from_pretrained({name}=..): has no meaning for an artefact: leave it out")
    place = options.get("device_map")
    if isinstance(place, Mapping):
        raise UsageError("device_map: an artefact is on one device: give its name")
    if place not in ANYWHERE:
        load_options.setdefault("device", device(place))
    return load_options


def is_type(value: Any) -> bool:
    """Whether it is a type of PyTorch, or the name of one."""
    return type(value).__name__ == "dtype" or str(value).removeprefix("torch.") in TYPES.values()


def check_type(dtype: Any, precision: str) -> None:
    """Raise UsageError for a torch_dtype, or a mapping of them, that is not what was compiled."""
    for entry in dtype.values() if isinstance(dtype, Mapping) else (dtype,):
        name = str(entry).removeprefix("torch.")
        if entry is None or name in ("auto", TYPES[precision]):
            continue
        other = next((p for p, known in TYPES.items() if known == name), None)
        remedy = f"leave it out, or compile another one with precision={other!r}" if other else "leave it out"
        raise UsageError(f"type {entry}: this artefact was compiled with precision={precision!r}: {remedy}")


def check_device(target: Any, own: str) -> None:
    """Raise UsageError for a device that the pipeline is not on."""
    name = device(target)
    kind, _, number = name.partition(":")
    if kind != own.partition(":")[0] or (number and kind != "cpu" and name != own):
        raise UsageError(f"to({name!r}): this pipeline is on {own}: load it there with from_pretrained(.., device={name!r})")


def device(value: Any) -> str:
    """A device's name, as text or as PyTorch has it."""
    if isinstance(value, bool) or not (isinstance(value, (str, int)) or type(value).__name__ == "device"):
        raise UsageError(f"device {value!r}: use the name of one, such as cpu or cuda")
    return f"cuda:{value}" if isinstance(value, int) else str(value)


def check_saving(options: Mapping[str, Any]) -> None:
    """Raise UsageError for a way of saving that an artefact does not have."""
    for name, value in options.items():
        if name not in ("safe_serialization", "max_shard_size") and value not in (None, False):
            raise UsageError(f"save_pretrained({name}={value!r}): an artefact is copied as it is: leave it out")
