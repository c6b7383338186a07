"""A pipeline folder of diffusers (`model_index.json`, `transformer/`, `vae/`, `scheduler/`), read without diffusers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from .diffusers_names import Config, check_blocks, renamed, same_embedders
from .errors import MissingExtra, ModelError, WeightsError
from .extras import needs
from .file_kind import NotJson, json_text
from .schedulers import Scheduler
from .weights import Checkpoint, open_checkpoint

INDEX = "model_index.json"
MODELS = ("DiTTransformer2DModel", "Transformer2DModel")  # the second is its name in older checkpoints
WEIGHTS = (
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model.fp16.safetensors",
    "diffusion_pytorch_model.bin",
)
# What must be so for it to be a DiT; older configurations have options of other models, too.
NEEDED: dict[str, tuple[Any, ...]] = {
    "norm_type": ("ada_norm_zero",),
    "activation_fn": ("gelu-approximate",),
    "norm_elementwise_affine": (False,),
    "attention_bias": (True,),
    "num_vector_embeds": (None,),
    "cross_attention_dim": (None,),
    "double_self_attention": (False,),
    "only_cross_attention": (False,),
}


@dataclass(frozen=True)
class Folder:
    """What a pipeline folder holds."""

    path: Path
    name: str
    arch: dict[str, Any]  # of the DiT family
    checkpoint: Checkpoint  # under the family's names
    scheduler: Mapping[str, Any]  # its configuration
    labels: dict[str, int]  # class names

    def sampler(self, kind: str | None = None) -> Scheduler:
        """The folder's scheduler, or another one with the same configuration."""
        return Scheduler.from_config(self.scheduler, str(self.path / "scheduler"), kind)


def find(model: str) -> Path | None:
    """The folder that `--model` means: a path, or an id of the Hugging Face hub that is in the local cache."""
    path = Path(model)
    if path.is_dir():
        if not (path / INDEX).is_file():
            raise ModelError(
                f"--model {path}: no pipeline folder of diffusers ({INDEX} is missing): give one that save_pretrained wrote"
            )
        return path
    return None if path.suffix == ".json" or path.is_file() or not re.fullmatch(r"[\w.-]+/[\w.-]+", model) else _cached(model)


def _cached(repository: str) -> Path | None:
    try:
        hub, errors, constants = (needs(f"huggingface_hub{part}", "diffusers") for part in ("", ".errors", ".constants"))
    except MissingExtra:
        return None  # most likely a mistyped name, and nothing is in a cache that nobody has
    try:
        return Path(hub.snapshot_download(repository, local_files_only=True))
    except (errors.LocalEntryNotFoundError, errors.HFValidationError):
        raise ModelError(
            f"unknown model {repository!r}: use for example DiT-XL/2, or, if it is one of the Hugging Face hub, download it "
            f"first: hf download {repository} (it goes to {constants.HF_HUB_CACHE})"
        ) from None


def checkpoint(path: Path) -> Checkpoint:
    """What `--weights` means: a checkpoint, or a pipeline folder."""
    return read(path).checkpoint if (path / INDEX).is_file() else open_checkpoint(path)


def _name(path: Path) -> str:
    """What people call it; in the cache of the hub a folder is models--OWNER--NAME/snapshots/REVISION."""
    path = path.resolve()
    return path.parents[1].name.split("--")[-1] if path.parent.name == "snapshots" else path.name


def read(path: Path) -> Folder:
    """Raises ModelError, ScheduleError or WeightsError for what cannot be used."""
    index = config(path / INDEX)
    shape = _config(path / "transformer" / "config.json")
    stored = _stored(path / "transformer")
    check_blocks(stored, shape)
    own = not same_embedders(stored, shape)
    return Folder(
        path=path,
        name=_name(path),
        arch=shape.arch(own),
        checkpoint=renamed(stored, shape, own),
        scheduler=config(path / "scheduler" / "scheduler_config.json"),
        labels=_labels(index, path / INDEX),
    )


def _labels(index: Mapping[str, Any], where: Path) -> dict[str, int]:
    """Class names and their numbers; several names of a class are parted by commas."""
    try:
        kept = msgspec.convert(index.get("id2label") or {}, dict[int, str], strict=False)
    except msgspec.ValidationError as error:
        raise ModelError(f"{where}: id2label is damaged: {error}: download or save it again") from None
    return {name.strip(): number for number, names in kept.items() for name in names.split(",")}


def _config(path: Path) -> Config:
    found = config(path)
    if found.get("_class_name") not in MODELS:
        raise ModelError(f"{path}: {found.get('_class_name')} is not supported: only {MODELS[0]} is")
    for option, allowed in NEEDED.items():
        if option in found and found[option] not in allowed:
            raise ModelError(f"{path}: {option} = {found[option]!r} is not supported: a DiT has {allowed[0]!r}")
    try:
        shape = msgspec.convert({k: v for k, v in found.items() if k in Config.__struct_fields__}, Config)
    except msgspec.ValidationError as error:
        raise ModelError(f"{path} does not describe a DiT: {error}") from None
    if shape.out_channels not in (None, shape.in_channels, 2 * shape.in_channels):
        raise ModelError(f"{path}: out_channels = {shape.out_channels}: must be once or twice the {shape.in_channels} inputs")
    return shape


def _stored(folder: Path) -> Checkpoint:
    """The transformer's weights under their own names, from one file or several."""
    found = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if found is None:
        raise WeightsError(f"{folder} holds no weights: one of {', '.join(WEIGHTS)} must be there")
    return open_checkpoint(found)


def config(path: Path) -> Mapping[str, Any]:
    """A configuration file; diffusers writes infinity into some, which strict readers of JSON refuse."""
    try:
        found = json.loads(json_text(path, "download or save it again"))
    except NotJson as error:
        raise ModelError(f"{path} is no configuration: {error}") from None
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}: the folder is not complete: download or save it again") from None
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is damaged: {error}: download or save it again") from None
    if not isinstance(found, dict):
        raise ModelError(f"{path} is damaged: it holds no configuration: download or save it again")
    return found
