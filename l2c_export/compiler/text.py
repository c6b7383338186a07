"""The text encoders of a pipeline folder: read, checked against the transformer, and written as components of the artefact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ..artefact import check_text, text
from ..artefact.text import IDS, MASK, EncoderRecord, TextRecord
from ..errors import ModelError, UsageError
from ..ir.dtypes import Types
from ..ir.graph import REQUEST, WEIGHT, Graph, check, live
from ..ir.precisions import DTYPES
from ..models.diffusers.model_index import PipelineIndex
from ..models.text import classes
from ..support.files import Report
from ..support.progress import Progress
from ..weights import recipe
from ..weights.layout import Layout, write
from ..weights.stored import said, stored_as
from . import tokenizer
from .onnx import models
from .onnx.export import export_bodies
from .recipes import RECIPES, TextPart
from .record import Recorder
from .tokenizer import Tokenizer

if TYPE_CHECKING:
    from ..models.text.encoder import TextEncoder
    from ..weights.checkpoint import Checkpoint
    from .request import Options
    from .source import Source

LIBRARY = "transformers"  # that the encoders' and tokenizers' classes are of, in an index


@dataclass(frozen=True)
class PipelineEncoder:
    """One encoder before it is written."""

    folder: Path
    record: EncoderRecord
    graph: Graph
    checkpoint: Checkpoint
    tokenizer: Tokenizer


@dataclass(frozen=True)
class PipelineTexts:
    """All of a pipeline's."""

    encoders: Mapping[str, PipelineEncoder]
    record: TextRecord


def planned(options: Options, source: Source) -> PipelineTexts | None:
    """What is to be exported of a pipeline's encoders, if it is asked for.  Raises L2CError for what cannot be used."""
    if not options.with_text:
        return None
    folder, family = source.folder, source.family
    recipes = RECIPES.get(family.name)
    if folder is None or folder.index is None or recipes is None:
        raise UsageError("with_text=True: only a pipeline folder of PixArt, SD3 or FLUX.1 has any: give it as model=..")
    index = folder.index
    tokens = next(field.shape[0] for field in family.inputs if field.name == "prompt_embeds")
    recipe = recipes(tokens, _tokenizer(index, text.NAMES[0]).longest, {name: kind for name, (_, kind) in index.parts.items()})
    dtype, stored = DTYPES[options.text_precision], options.stored.text
    encoders = {name: _encoder(index, name, part, dtype, stored) for name, part in recipe.parts.items()}
    record = TextRecord(
        encoders={name: encoder.record for name, encoder in encoders.items()},
        recipe=dict(recipe.blocks),
        lowercase=recipe.lowercase or msgspec.UNSET,
    )
    if wrong := next(check_text.recipe_problems(record, family.inputs), None):
        raise ModelError(f"{folder.path}: its text encoders are not its transformer's: {wrong}: download or save it again")
    return PipelineTexts(encoders, record)


def _tokenizer(index: PipelineIndex, encoder: str) -> Tokenizer:
    name = encoder.replace("text_encoder", "tokenizer")
    return tokenizer.read(index.path.parent / name, _class_of(index, name))


def _class_of(index: PipelineIndex, name: str) -> str:
    if name not in index.parts:
        raise ModelError(f"{index.path} names no {name}, which its pipeline needs: download or save it again")
    library, kind = index.parts[name]
    if library.partition(".")[0] != LIBRARY:
        raise ModelError(f"{index.path}: its {name} is {kind} of {library}, which is not part of {LIBRARY}: not supported")
    return kind


def _encoder(index: PipelineIndex, name: str, part: TextPart, dtype: str, stored: str | None) -> PipelineEncoder:
    kind, folder = _class_of(index, name), index.path.parent / name
    if kind != part.kind:
        raise ModelError(f"{folder} is a {kind}, where the pipeline has a {part.kind}: not supported")
    told = _tokenizer(index, name)
    encoder = classes.build(kind, folder, part.tokens)
    types = Types(dtype, encoder.wide)
    graph = record_graph(encoder, part, types)
    opened = classes.checkpoint(folder, encoder)
    shapes = {i: encoder.tensors()[i] for i in graph.inputs if graph.kind(i) == WEIGHT}
    record = EncoderRecord(
        kind=kind,
        tensors=stored_as(recipe.records(shapes, types, {}), stored, encoder.kept),
        tokens=part.tokens,
        padding=told.padding,
        masked=part.masked or msgspec.UNSET,
        end=msgspec.UNSET if encoder.end is None or "pooled" not in part.outputs else encoder.end,
        outputs=encoder.widths(part.outputs),  # type: ignore[arg-type]
    )
    if told.size > record.vocabulary:
        wrong = f"has {record.vocabulary} tokens, and its tokenizer {told.size}"
        raise ModelError(f"{folder} {wrong}: download or save it again")
    return PipelineEncoder(folder, record, graph, opened, told)


def record_graph(encoder: TextEncoder, part: TextPart, types: Types) -> Graph:
    """What an encoder computes, with its weights as inputs."""
    run = Recorder(encoder, types)  # type: ignore[arg-type]  # of a family it reads what an encoder has, too
    ids = run.input(IDS, REQUEST, ("R", part.tokens), "int32")
    mask = run.input(MASK, REQUEST, ("R", part.tokens), "int32") if part.masked else None
    encoder.call(run, ids, mask, part.outputs)
    graph = live(Graph(tuple(run.nodes), run.values, part.outputs, bodies=run.bodies))
    used = {node.op for node in graph.nodes}
    return check(msgspec.structs.replace(graph, bodies={op: body for op, body in run.bodies.items() if op in used}), "text")


def write_texts(folder: Path, texts: PipelineTexts | None, report: Report, progress: Progress) -> TextRecord | None:
    """Each, if there are any, as an ONNX model without weights, its weights, and its tokenizer; what is noted of them."""
    if texts is None:
        return None
    (folder / text.FOLDER).mkdir()
    records = {}
    for name, encoder in texts.encoders.items():
        report(f"{name}: {encoder.record.kind} of {encoder.record.tokens} tokens from {encoder.checkpoint.path}")
        bodies = export_bodies(encoder.graph.bodies)
        model = in_order(models.segment_model(name, encoder.graph, bodies), encoder.record)
        (folder / text.onnx_file(name)).write_bytes(model.SerializeToString())
        (folder / text.tokenizer_file(name)).write_bytes(encoder.tokenizer.json)
        layout = Layout(encoder.record.tensors)
        step = progress(f"writing {name}", layout.bytes)
        narrowing = write(
            folder / text.weights_file(name),
            layout,
            ((n, encoder.checkpoint.read(n)) for n in sorted(encoder.record.tensors)),
            step,
        )
        if narrowing:
            report(f"{name}: {said(layout.tensors, narrowing)}")
        records[name] = msgspec.structs.replace(encoder.record, narrowing=narrowing or msgspec.UNSET)
    return msgspec.structs.replace(texts.record, encoders=records)


def in_order(model: Any, record: EncoderRecord) -> Any:
    """With its inputs as the record lists them: some libraries know them by their place."""
    inputs = {port.name: port for port in model.graph.input}
    del model.graph.input[:]
    model.graph.input.extend(inputs[name] for name in record.inputs)
    return model
