"""`model_index.json`: which pipeline of diffusers a folder holds, and of which classes its parts are.

A part's own configuration names a class, too, which counts only where there is no index: diffusers makes of a part what the
index says, from whatever its configuration holds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from ...errors import ModelError
from ...support.file_kind import NotJson, json_text
from .. import unsupported

INDEX = "model_index.json"
CONFIG = "config.json"  # of a part
PIPELINE = "DiTPipeline"
TRANSFORMER = "DiTTransformer2DModel"
TRANSFORMERS = (TRANSFORMER, "Transformer2DModel")  # the second is its name in older folders
AUTOENCODER, TINY_AUTOENCODER, DEEP_AUTOENCODER = "AutoencoderKL", "AutoencoderTiny", "AutoencoderDC"
AUTOENCODERS = (AUTOENCODER, TINY_AUTOENCODER, DEEP_AUTOENCODER)
SUPPORTED = f"{AUTOENCODER}, {TINY_AUTOENCODER} and {DEEP_AUTOENCODER}"
KNOWN = (
    f"l2c-export knows DiT and U-ViT; give a {PIPELINE} or its {TRANSFORMER}, a checkpoint of the references, or PixArt, "
    "Stable Diffusion 3, FLUX.1, AuraFlow, Sana or Qwen-Image"
)


def config(path: Path) -> Mapping[str, Any]:
    """A configuration file; diffusers writes infinity into some, which strict readers of JSON refuse.  Raises ModelError."""
    try:
        content = json.loads(json_text(path, "download or save it again"))
    except NotJson as error:
        raise ModelError(f"{path} is no configuration: {error}") from None
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}: the folder is not complete: download or save it again") from None
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is damaged: {error}: download or save it again") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path} is damaged: it holds no configuration: download or save it again")
    return content


def autoencoder_kind(folder: Path) -> str:
    """The class of an autoencoder's folder, of those that are known.  Raises ModelError for a damaged configuration."""
    kind = str(config(folder / CONFIG).get("_class_name"))
    return kind if kind in AUTOENCODERS else AUTOENCODER


@dataclass(frozen=True)
class PipelineIndex:
    """What a pipeline folder is made of."""

    path: Path
    pipeline: str | None  # its class; of the folder's own code if `custom`
    custom: bool
    parts: Mapping[str, tuple[str, str]]  # name -> library and class, of those that are there
    labels: dict[str, int]  # class names

    def kind(self, name: str) -> str:
        """The class that is named for a part, whoever has it; nothing where there is none."""
        return self.parts.get(name, ("", ""))[1]

    def part(self, name: str) -> str:
        """The class of a part.  Raises ModelError where there is none, or one of the folder's own code."""
        if name not in self.parts:
            raise ModelError(f"{self.path} names no {name}: the pipeline has none")
        library, kind = self.parts[name]
        if library.partition(".")[0] != "diffusers":
            raise ModelError(f"{self.path}: its {name} is {kind} of {library}, which is not part of diffusers: not supported")
        return kind


def read(path: Path) -> PipelineIndex:
    """The index of a pipeline folder.  Raises ModelError if it is damaged."""
    content = config(path)
    name = content.get("_class_name")
    custom = isinstance(name, list)
    names = [n for n in (name if isinstance(name, list) else [name]) if isinstance(n, str)]
    pairs = {k: v for k, v in content.items() if isinstance(v, list) and len(v) == 2 and not k.startswith("_")}
    parts = {k: (v[0], v[1]) for k, v in pairs.items() if isinstance(v[0], str) and isinstance(v[1], str)}
    return PipelineIndex(path, names[-1] if names else None, custom, parts, _labels(content, path))


def check_is_dit(index: PipelineIndex) -> None:
    """Refuse a pipeline that is known by its index to be of another model.  Raises ModelError."""
    kind = index.parts.get("transformer", ("", "no transformer"))[1]
    if kind not in TRANSFORMERS:
        reason = unsupported.why(kind) or KNOWN
        raise ModelError(f"{called(index.path.parent)} is a {index.pipeline or 'pipeline'} with {_a(kind)}: {reason}")
    index.part("transformer")


def called(folder: Path) -> str:
    """A folder as people call it: in the hub's cache, models--OWNER--NAME/snapshots/REVISION, by its id."""
    in_cache = folder.parent.name == "snapshots"
    return folder.parents[1].name.removeprefix("models--").replace("--", "/", 1) if in_cache else str(folder)


def _a(kind: str) -> str:
    return kind if kind.startswith("no ") else f"a {kind}"


def _labels(index: Mapping[str, Any], path: Path) -> dict[str, int]:
    """Class names and their numbers; several names of a class are parted by commas."""
    try:
        names_of = msgspec.convert(index.get("id2label") or {}, dict[int, str], strict=False)
    except msgspec.ValidationError as error:
        raise ModelError(f"{path}: id2label is damaged: {error}: download or save it again") from None
    return {name.strip(): number for number, names in names_of.items() for name in names.split(",")}
