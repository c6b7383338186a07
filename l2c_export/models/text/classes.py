"""The classes of transformers that can be exported, and their folders: a configuration and weights under our names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from ...errors import ModelError, WeightsError
from ...weights import finder
from ...weights.checkpoint import Checkpoint, open_checkpoint
from .clip import Clip, ClipConfig
from .encoder import TextEncoder, read
from .t5 import T5, T5Config

PREFIX = "text_model."  # of CLIP's tensors, in older checkpoints and beside a projection
ALSO = {"encoder.embed_tokens.weight": "shared.weight"}  # T5's embedding has two names, of which files have one or both
POSITIONS = "position_ids"  # ends the name of 0, 1, 2, .., which older checkpoints hold


class TextClass(NamedTuple):
    """One class of transformers."""

    config: type[msgspec.Struct]
    build: Callable[[Any, int], TextEncoder]  # of its configuration and a number of tokens


CLASSES: Mapping[str, TextClass] = {
    "CLIPTextModel": TextClass(ClipConfig, Clip),
    "CLIPTextModelWithProjection": TextClass(ClipConfig, lambda config, tokens: Clip(config, tokens, projected=True)),
    "T5EncoderModel": TextClass(T5Config, T5),
}


def build(kind: str, folder: Path, tokens: int) -> TextEncoder:
    """The encoder that a folder describes, for so many tokens.  Raises ModelError."""
    if kind not in CLASSES:
        raise ModelError(f"{folder} is a {kind}: supported are {', '.join(CLASSES)}: compile without with_text=True")
    known = CLASSES[kind]
    try:
        return known.build(read(folder, known.config), tokens)
    except ModelError as error:
        raise ModelError(f"{folder}: {error}" if str(folder) not in str(error) else str(error)) from None


def checkpoint(folder: Path, encoder: TextEncoder) -> Checkpoint:
    """Its weights, safetensors or pickled, with what follows from the configuration.  Raises WeightsError."""
    opened = open_checkpoint(finder.path(folder), passed_over=POSITIONS)
    derived = encoder.derived()
    wanted = encoder.tensors().keys() - derived.keys()
    stored = {_ours(name): name for name in sorted(opened.shapes)}
    if missing := sorted(wanted - stored.keys()):
        raise WeightsError(f"{opened.path} does not fit its config.json: {missing[0]} is missing: download or save it again")
    shapes = {name: opened.shapes[stored[name]] for name in wanted} | {name: value.shape for name, value in derived.items()}
    return opened._replace(shapes=shapes, read=lambda name: derived[name] if name in derived else opened.read(stored[name]))


def _ours(name: str) -> str:
    short = name.removeprefix(PREFIX)
    return ALSO.get(short, short)
