"""The end of the compiler: the files of an artefact but its manifest."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..artefact import autoencoder
from ..artefact.manifest import Manifest
from ..artefact.merged_lora import FittedLora, merged
from ..backends.contract import FUSED
from ..errors import UsageError
from ..support.files import Report
from ..support.progress import Progress
from ..weights import origin
from ..weights.layout import WEIGHTS, Layout, Tensors, write
from ..weights.recipe import Narrowing
from ..weights.stored import said
from .onnx import decoder, models

if TYPE_CHECKING:
    from .describe import Planned
    from .passes.segment import Linked
    from .source import Source


def bind_weights(
    folder: Path, source: Source, loras: Sequence[FittedLora], layout: Layout, report: Report, progress: Progress
) -> Narrowing | None:
    """Write the weights, if there are any yet, with LoRAs merged into them; what it has cost to store some of them narrower.

    Raises UsageError for a LoRA without weights.
    """
    tensors = tensors_of(source, loras, layout)
    if tensors is None:
        if loras:
            raise UsageError(f"lora={loras[0].lora.called!r}: there are no weights to merge it into: give them as weights=..")
        report("no weights yet: bind them with l2c_export.link('ENGINES', weights='PATH')")
        return None
    random = f"RANDOM weights, seed {source.seed}: good for latency, the images mean nothing"
    report(f"weights from {source.checkpoint.path}" if source.checkpoint else random)
    for line in (line for lora in loras for line in lora.said):
        report(line)
    narrowing = write(folder / WEIGHTS, layout, tensors, progress("writing weights", layout.bytes))
    if narrowing:
        report(f"weights: {said(layout.tensors, narrowing)}")
    return narrowing


def tensors_of(source: Source, loras: Sequence[FittedLora], layout: Layout) -> Tensors | None:
    """The model's tensors with LoRAs merged into them, as they are before they are stored, if there are any yet."""
    shapes = {name: tensor.shape for name, tensor in layout.tensors.items() if not tensor.scale}
    tensors = origin.tensors(shapes, source.checkpoint, source.seed)
    return None if tensors is None else merged(tensors, loras)


def write_decoder(folder: Path, source: Source, record: Manifest, report: Report) -> None:
    """Export the autoencoder's decoder, if that is asked for."""
    if source.vae and record.decoder:
        report(autoencoder.said(source.vae, record.decoder))
        decoder.write(source.vae, record.decoder, source.family.latent[0], folder / record.decoder.file)


def write_models(folder: Path, linked: Linked, bodies: models.Bodies, fused: models.Bodies, layout: Layout) -> None:
    """One ONNX file per segment and per distinct graph, and a second one of the segments with `fused` operations."""
    (folder / "segments").mkdir(exist_ok=True)
    for name, segment in linked.segments.items():
        model = models.segment_model(name, segment, bodies)
        (folder / "segments" / f"{name}.onnx").write_bytes(model.SerializeToString())
        if any(node.op in fused for node in segment.nodes):
            second = models.segment_model(name, segment, {**bodies, **fused})
            (folder / "segments" / f"{name}{FUSED}").write_bytes(second.SerializeToString())
    for name, graph in linked.whole.items():
        step = models.step_model(name, graph, bodies, layout)
        (folder / f"{name}.onnx").write_bytes(step.SerializeToString())


def write_schedules(folder: Path, programs: Sequence[Planned]) -> None:
    for program in programs:
        (folder / program.file).write_bytes(program.schedule.to_json())
