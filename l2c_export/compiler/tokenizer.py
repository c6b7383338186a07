"""A tokenizer of transformers -> the file that the `tokenizers` package reads, which then needs no transformers."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import NamedTuple

from ..errors import ModelError
from ..support.extras import needs
from ..support.log import quiet
from ..support.words import first_line

KINDS = ("CLIPTokenizer", "T5Tokenizer", "BertTokenizer")  # each also with Fast behind it
UNLIMITED = 2**20  # what says that there is no longest text


class Tokenizer(NamedTuple):
    """What is stored of one, and what the runtime has to know besides."""

    json: bytes
    padding: int  # the id of what short texts are padded with
    longest: int  # tokens of a text
    size: int  # ids are below


def read(folder: Path, kind: str) -> Tokenizer:
    """The tokenizer in a folder, of a class of transformers.  Raises ModelError for one that has no fast form."""
    base = kind.removesuffix("Fast")
    if base not in KINDS:
        raise ModelError(f"{folder} is a {kind}: only {', '.join(KINDS)} are supported: compile without with_text=True")
    transformers = needs("transformers", "diffusers")
    try:
        with quiet("transformers"), contextlib.redirect_stderr(io.StringIO()):  # it warns of what it converts
            loaded = getattr(transformers, f"{base}Fast").from_pretrained(folder, local_files_only=True)
            fast = getattr(loaded, "backend_tokenizer", None)
            text = fast.to_str() if fast is not None else None
    except Exception as error:  # damaged files end in errors of all kinds
        why = first_line(_first(error))
        raise ModelError(f"{folder}: has no fast form (tokenizer.json) that can be made: {why}") from None
    if text is None or loaded.pad_token_id is None:
        raise ModelError(f"{folder}: has no fast form (tokenizer.json), or no padding: save it with a newer transformers")
    longest = loaded.model_max_length
    return Tokenizer(text.encode(), loaded.pad_token_id, longest if longest < UNLIMITED else 0, len(loaded))


def _first(error: BaseException) -> BaseException:
    """What went wrong before anything else: transformers goes on to other forms, which fail, too."""
    return _first(error.__context__) if error.__context__ else error
