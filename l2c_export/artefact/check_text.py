"""Whether a manifest's text encoders agree with themselves and with what the model is told."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..ir.inputs import RequestInput, asked
from ..weights import stored
from ..weights.layout import CODES, Layout
from . import text
from .manifest import Manifest
from .records import FileInfo
from .text import EncoderRecord, TextBlock, TextRecord, TextSource

LARGEST = 2**31
MOST_TOKENS = 2**16


def files(record: TextRecord) -> set[str]:
    """The files that its encoders use; their names follow from the encoders' alone."""
    return {file for name in record.encoders if name in text.NAMES for file in text.files_of(name)}


def problems(manifest: Manifest) -> Iterator[str]:
    """What is wrong with the text encoders of a manifest, and with its recipe."""
    record = manifest.text
    if not record:
        return
    if not record.encoders:
        yield "texts, and no text encoder"
    yield from (f"a text encoder is called {name[:100]!r}" for name in record.encoders if name not in text.NAMES)
    for name, encoder in record.encoders.items():
        yield from (f"{name[:100]}: {wrong}" for wrong in _encoder(encoder, manifest.files.get(text.weights_file(name))))
    yield from recipe_problems(record, manifest.inputs)


def recipe_problems(record: TextRecord, declared: Sequence[RequestInput]) -> Iterator[str]:
    """Where a recipe does not make what a model is told."""
    inputs = {field.name: field for field in asked(declared)}
    if record.recipe.keys() != inputs.keys():
        yield f"texts make {', '.join(sorted(record.recipe))[:200]} of {', '.join(sorted(inputs))}"
    for name, blocks in record.recipe.items():
        if name in inputs:
            yield from (f"{name} of a text: {wrong}" for wrong in _input(record, inputs[name], blocks))


def _encoder(encoder: EncoderRecord, weights: FileInfo | None) -> Iterator[str]:
    if not 0 < encoder.tokens <= MOST_TOKENS:
        yield f"{encoder.tokens} tokens"
    if not 0 <= encoder.padding < LARGEST or not 0 <= (encoder.end or 0) < LARGEST:
        yield f"it pads with {encoder.padding}, and ends with {encoder.end or 'the largest id'}"
    wrong = [name for name, width in encoder.outputs.items() if not 0 < width < LARGEST or name == "mask"]
    if wrong or not encoder.outputs:
        yield f"it makes {wrong or 'nothing'}"
    usable = True
    for name, tensor in encoder.tensors.items():
        if tensor.dtype not in CODES or not tensor.shape or not all(0 < n < LARGEST for n in tensor.shape):
            usable = False
            yield f"the weight {name!r} has no usable type: {tensor.dtype} of shape {tensor.shape}"
    if usable:
        yield from stored.problems(encoder.tensors)
    if encoder.narrowing and (unlike := encoder.narrowing.problem(encoder.tensors)):
        yield unlike
    if usable and encoder.padding >= encoder.vocabulary:
        yield f"it pads with {encoder.padding} of {encoder.vocabulary} tokens"
    if len({*encoder.inputs, *encoder.outputs}) < len(encoder.inputs) + len(encoder.outputs):
        yield "a weight is called as an input or an output"
    if usable and weights and Layout(encoder.tensors).bytes != weights.bytes:
        yield f"its tensors make {Layout(encoder.tensors).bytes} bytes, its file has {weights.bytes}"


def _input(record: TextRecord, declared: RequestInput, blocks: tuple[TextBlock, ...]) -> Iterator[str]:
    for block in blocks:
        yield from (wrong for source in block.sources if (wrong := _source(record, source, block, declared)))
    if len(declared.shape) not in (1, 2):
        yield f"shape {declared.shape}"
        return
    tokens = declared.shape[0] if len(declared.shape) == 2 or declared.dtype == "int32" else 1
    if any(not 0 < block.tokens <= MOST_TOKENS for block in blocks) or sum(block.tokens for block in blocks) != tokens:
        yield f"its blocks are not its {tokens} tokens"
    for block in blocks:
        widths = [width(record, source) for source in block.sources]
        least = declared.shape[-1] if len(declared.shape) == 1 and declared.dtype == "float32" else 0
        most = 1 if declared.dtype == "int32" else declared.shape[-1]
        if not least <= sum(widths) <= most:
            yield f"what is side by side is {sum(widths)} wide, not {most}"


def _source(record: TextRecord, source: TextSource, block: TextBlock, declared: RequestInput) -> str | None:
    encoder = record.encoders.get(source.encoder)
    if encoder is None or (source.output != "mask" and source.output not in encoder.outputs):
        return f"there is no {source.output} of {source.encoder[:100]!r}"
    if (source.output == "mask") != (declared.dtype == "int32"):
        return f"{source.output} as {declared.dtype}"
    if (source.output == "pooled") != (len(declared.shape) == 1 and declared.dtype == "float32"):
        return f"{source.output} in the shape {declared.shape}"
    if source.output != "pooled" and block.tokens != encoder.tokens:
        return f"{block.tokens} tokens of {source.encoder}, which has {encoder.tokens}"
    return None


def width(record: TextRecord, source: TextSource) -> int:
    """How wide a source is; a mask is one number a token."""
    encoder = record.encoders.get(source.encoder)
    return encoder.outputs.get(source.output, 1) if encoder else 0
