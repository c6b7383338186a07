"""Prompts to the arrays that a request gives: the artefact's text encoders, loaded when they are needed."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from ..artefact import store
from ..artefact import text as component
from ..artefact.manifest import Manifest
from ..artefact.text import IDS, MASK, EncoderRecord, TextBlock, TextRecord
from ..backends.choose import open_backend, reading_onnx
from ..backends.contract import Array, Backend, Request, Run, SegmentFile
from ..backends.descriptors import AUTO, built
from ..errors import ArtefactError
from ..ir.inputs import RequestInput, asked
from ..support.log import LOG
from ..weights.layout import mapped
from .loaded import LoadedArtefact
from .tokens import TextTokenizer

KEPT = 32  # texts whose arrays are kept; those of T5 XXL and 512 tokens are 8 MB each


class Encoded(NamedTuple):
    """What a text has become: an array without a batch axis for every input, and what was cut off it, by encoder."""

    arrays: Mapping[str, np.ndarray]
    cut: Mapping[str, str]


class EncoderEngine:
    """One text encoder, ready to run: it encodes one text at a time, so that none depends on its neighbours."""

    def __init__(self, folder: Path, manifest: Manifest, record: EncoderRecord, name: str, backend: Backend) -> None:
        self._record, self._backend, self._memory = record, backend, backend.memory
        files = manifest.files
        model, weights, tokenizer = component.files_of(name)
        self._memory.enter()
        for file in (model, weights, tokenizer):
            store.check_same(folder, file, files[file])  # they are read now that they are needed
        self._tokenizer = TextTokenizer(folder / tokenizer, files[tokenizer], record.tokens)
        names = tuple(sorted(record.tensors))
        view = backend.memory.weights(mapped(folder / weights, record.tensors), names)
        outputs = tuple(sorted(record.outputs))
        engine = backend.load(SegmentFile(folder / model, record.inputs, outputs, files[model], island=True))
        inputs = (IDS, MASK) if record.masked else (IDS,)
        self._inputs = {i: self._memory.empty((1, record.tokens), "int32") for i in inputs}
        self._outputs: dict[str, Array] = {
            str(o): self._memory.empty((1, record.tokens, width), "float32") for o, width in record.outputs.items()
        }
        self._run: Run = engine.bind({**self._inputs, **{n: view(n) for n in names}}, self._outputs)

    def __call__(self, text: str) -> tuple[dict[str, np.ndarray], str]:
        """What is made of a text, (T, D), (P,) or (T,) by the name of the output; and what is cut off it."""
        ids, cut = self._tokenizer(text)
        if max(ids, default=0) >= self._record.vocabulary or len(ids) > self._record.tokens:
            raise ArtefactError("its tokenizer makes tokens that its text encoder does not have: run l2c-export again")
        padding = self._record.tokens - len(ids)
        padded = np.array([ids + [self._record.padding] * padding], np.int32)
        mask = np.array([[1] * len(ids) + [0] * padding], np.int32)
        self._memory.enter()
        for name, values in ((IDS, padded), (MASK, mask)):
            if name in self._inputs:
                self._memory.put(self._inputs[name], values)
        self._run()
        outputs = {name: np.array(self._memory.get(array)[0]) for name, array in self._outputs.items()}
        if "pooled" in outputs:
            outputs["pooled"] = outputs["pooled"][self._end(padded[0])]
        return {**outputs, "mask": mask[0]}, cut

    def _end(self, ids: np.ndarray) -> int:
        """The place at which a text is pooled."""
        return int(np.argmax(ids if self._record.end is msgspec.UNSET else ids == self._record.end))


class TextEncoders:
    """The text encoders of an artefact, and the arrays of the texts that were asked for last.  Threads take turns."""

    def __init__(self, folder: Path, manifest: Manifest, backend: Backend, threads: int | None = None) -> None:
        """Where the backend runs no text encoders, another one does with so many threads, by default all cores."""
        assert manifest.text
        self._folder, self._manifest, self._backend, self._threads = folder, manifest, backend, threads
        self._record: TextRecord = manifest.text
        self._encoders: dict[str, EncoderEngine] = {}
        self._kept: OrderedDict[str, Encoded] = OrderedDict()
        self._turn = threading.Lock()

    def free(self) -> None:
        """Release the encoders and their weights; they are loaded again when they are needed.  Arrays stay."""
        with self._turn:
            self._encoders.clear()

    def arrays(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """(B, ..) of every input, for so many texts.  Warns of what is cut off them."""
        with self._turn:
            encoded = [self._encoded(text) for text in texts]
        return {name: np.stack([encoding.arrays[name] for encoding in encoded]) for name in self._record.recipe}

    def _encoded(self, text: str) -> Encoded:
        if text not in self._kept:
            self._kept[text] = self._encode(text.lower().strip() if self._record.lowercase else text)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(text)
        for encoder, cut in self._kept[text].cut.items():
            most = self._record.encoders[encoder].tokens
            LOG.warning("a prompt is longer than the %d tokens of %s, which is not told: %r", most, encoder, cut)
        return self._kept[text]

    def _encode(self, text: str) -> Encoded:
        results = {name: self._encoder(name)(text) for name in self._record.encoders}
        outputs = {name: pair[0] for name, pair in results.items()}
        declared = {field.name: field for field in asked(self._manifest.inputs)}
        arrays = {name: joined(declared[name], blocks, outputs) for name, blocks in self._record.recipe.items()}
        return Encoded(arrays, {name: cut for name, (_, cut) in results.items() if cut})

    def _encoder(self, name: str) -> EncoderEngine:
        if name not in self._encoders:
            if self._backend.name in built():  # which runs nothing but engines that were built for it
                self._backend = open_backend(AUTO, Request(threads=self._threads)).backend
            self._backend = reading_onnx(self._backend, self._threads)
            record = self._record.encoders[name]
            self._encoders[name] = EncoderEngine(self._folder, self._manifest, record, name, self._backend)
        return self._encoders[name]


def joined(declared: RequestInput, blocks: Sequence[TextBlock], outputs: Mapping[str, Mapping[str, np.ndarray]]) -> np.ndarray:
    """The array of an input: blocks one behind the other, what they do not fill is 0."""
    array = np.zeros(declared.shape, declared.dtype)
    first = 0
    for block in blocks:
        last, start = first + block.tokens, 0
        for source in block.sources:
            values = outputs[source.encoder][source.output]
            if source.output == "mask":
                array[first:last] = values
            elif source.output == "pooled":
                array[start : start + len(values)] = values
                start += len(values)
            else:
                array[first:last, start : start + values.shape[1]] = values
                start += values.shape[1]
        first = last
    return array


def encoders_of(loaded: LoadedArtefact, threads: int | None) -> TextEncoders | None:
    """The text encoders of an artefact, if it has some."""
    return TextEncoders(loaded.folder, loaded.manifest, loaded.backend, threads) if loaded.manifest.text else None
