"""Text to token ids, by the tokenizer that lies in an artefact: the one home of the `tokenizers` package."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ..artefact import integrity
from ..artefact.records import FileInfo
from ..errors import ArtefactError, UsageError
from ..support.extras import needs
from ..support.words import first_line

PANIC = "PanicException"  # of Rust, which is no Exception


class Tokens(NamedTuple):
    """The ids of a text, its end token among them, and what of the text they leave out."""

    ids: list[int]
    cut: str


class TextTokenizer:
    """A tokenizer for texts of at most so many tokens."""

    def __init__(self, path: Path, info: FileInfo, most: int) -> None:
        tokenizers = needs("tokenizers", "text")
        data = integrity.verified(path, info)
        self._path = path
        with self._in_one_line():
            self._tokenizer = tokenizers.Tokenizer.from_str(data.decode())
            self._tokenizer.no_padding()
            self._tokenizer.no_truncation()
        self._most, self._turn = most, threading.Lock()

    def __call__(self, text: str) -> Tokens:
        """Raises UsageError for what is no text."""
        if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
            raise UsageError(f"prompt={text[:40]!r}: holds half a character, which no tokenizer reads: leave it out")
        with self._turn, self._in_one_line():
            try:
                whole = self._tokenizer.encode(text)
                if len(whole.ids) <= self._most:
                    return Tokens(whole.ids, "")
                self._tokenizer.enable_truncation(self._most)
                kept = self._tokenizer.encode(text)
            finally:
                self._tokenizer.no_truncation()
        count = kept.special_tokens_mask.count(0)  # of the text itself, which begins both alike
        places = [place for place, special in zip(whole.offsets, whole.special_tokens_mask, strict=True) if not special]
        return Tokens(kept.ids, text[places[count][0] :] if count < len(places) else "")

    @contextlib.contextmanager
    def _in_one_line(self) -> Iterator[None]:
        """The package has no errors of its own, and panics where a file is of no sense."""
        try:
            yield
        except BaseException as error:
            if not isinstance(error, Exception) and type(error).__name__ != PANIC:
                raise
            raise ArtefactError(f"{self._path} is no tokenizer: {first_line(error)}; run l2c-export again") from None
