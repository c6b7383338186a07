"""The components before the loop: what makes the arrays of a request of a text, and how they are joined.

A recipe is data, of a few words that are known: nothing in a manifest is looked up by a name that it makes up.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from ..weights.recipe import Narrowing, TensorRecord
from .record import Record

FOLDER = "text"
NAMES = ("text_encoder", "text_encoder_2", "text_encoder_3")  # of encoders, as in diffusers
# embeddings, of which tokens are rows
TABLES = ("shared.weight", "embeddings.token_embedding.weight", "embeddings.word_embeddings.weight")
IDS, MASK = "ids", "mask"  # inputs of an encoder besides its weights

TextOutput = Literal["last", "penultimate", "pooled", "mask"]


def onnx_file(encoder: str) -> str:
    return f"{FOLDER}/{encoder}.onnx"


def weights_file(encoder: str) -> str:
    return f"{FOLDER}/{encoder}.safetensors"


def tokenizer_file(encoder: str) -> str:
    return f"{FOLDER}/{encoder}.tokenizer.json"


def files_of(encoder: str) -> tuple[str, str, str]:
    """All that an encoder has; its name is one of NAMES."""
    return onnx_file(encoder), weights_file(encoder), tokenizer_file(encoder)


WEIGHTS = tuple(map(weights_file, NAMES))


class EncoderRecord(Record, frozen=True, kw_only=True):
    """A text encoder: its files are called after it.  Its ONNX model takes token ids, and its weights, by their names."""

    kind: str  # its class in transformers
    tensors: dict[str, TensorRecord]  # what is stored
    narrowing: Narrowing | msgspec.UnsetType = msgspec.UNSET  # what it has cost to store some of them narrower
    tokens: int  # that it takes, always: shorter texts are padded
    padding: int  # the id of what they are padded with
    masked: bool | msgspec.UnsetType = msgspec.UNSET  # whether it is told which tokens are padding
    end: int | msgspec.UnsetType = msgspec.UNSET  # the id whose first place is pooled; left out: the largest one's
    outputs: dict[TextOutput, int]  # what its model makes at every token, and how wide that is

    @property
    def vocabulary(self) -> int:
        """Token ids are below; 0 without an embedding."""
        return next((self.tensors[name].shape[0] for name in TABLES if name in self.tensors), 0)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Of its model, the weights behind what a text gives."""
        return (IDS, *((MASK,) if self.masked else ()), *sorted(self.tensors))


class TextSource(Record, frozen=True, kw_only=True):
    """What an encoder makes of a text.

    "last" and "penultimate": of every token, after and before the last layer; "pooled": of the end token alone; "mask": 1 for
    every token of the text, 0 for padding.
    """

    encoder: str
    output: TextOutput


class TextBlock(Record, frozen=True, kw_only=True):
    """So many tokens of an input, from several sources side by side; what they do not fill is 0."""

    tokens: int
    sources: tuple[TextSource, ...]


class TextRecord(Record, frozen=True, kw_only=True):
    """How a text becomes the inputs of a request.

    An input of tokens is blocks one behind the other; one without is what one block of one token has.
    """

    encoders: dict[str, EncoderRecord]
    recipe: dict[str, tuple[TextBlock, ...]]  # by the request's input
    lowercase: bool | msgspec.UnsetType = msgspec.UNSET  # whether texts are written small, and stripped, before anything else
