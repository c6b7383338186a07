"""The classes of transformers that can be exported, and their folders: a configuration and weights under our names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from ...errors import ModelError, WeightsError
from ...weights import finder
from ...weights.checkpoint import Checkpoint, open_checkpoint
from ..diffusers.model_index import CONFIG
from .bert import Bert, BertConfig
from .clip import Clip, ClipConfig
from .encoder import TextEncoder, read
from .t5 import T5, T5Config

PREFIXES = ("text_model.", "bert.")  # of tensors, in older checkpoints, and beside a projection or another head
OLD = {".LayerNorm.gamma": ".LayerNorm.weight", ".LayerNorm.beta": ".LayerNorm.bias"}  # ends of names in the first BERTs
ALSO = {"encoder.embed_tokens.weight": "shared.weight"}  # T5's embedding has two names, of which files have one or both
POSITIONS = "position_ids"  # ends the name of 0, 1, 2, .., which older checkpoints hold


class TextClass(NamedTuple):
    """One class of transformers."""

    config: type[msgspec.Struct]
    build: Callable[[Any, int], TextEncoder]  # of its configuration and a number of tokens


CLASSES: Mapping[str, TextClass] = {
    "BertModel": TextClass(BertConfig, Bert),
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
    wanted, names = encoder.stored(), {_ours(name): name for name in sorted(opened.shapes)}
    for name, shape in wanted.items():
        if name not in names or opened.shapes[names[name]] != shape:
            wrong = f"has shape {list(opened.shapes[names[name]])}, not {list(shape)}" if name in names else "is missing"
            raise WeightsError(f"{opened.path} does not fit its {CONFIG}: {name} {wrong}: download or save it again")

    def stored(name: str) -> np.ndarray:
        return opened.read(names[name])

    return opened._replace(
        shapes=encoder.tensors(), read=lambda name: stored(name) if name in wanted else encoder.derived(name, stored)
    )


def _ours(name: str) -> str:
    short = next((name.removeprefix(prefix) for prefix in PREFIXES if name.startswith(prefix)), name)
    ending = next((end for end in OLD if short.endswith(end)), None)
    return ALSO.get(short, short) if ending is None else short.removesuffix(ending) + OLD[ending]
