"""What an artefact would cost, before anything is written."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

from ..backends.choose import open_backend
from ..backends.contract import Request
from ..compiler import emit
from ..compiler.compile import Lowered, lower
from ..compiler.onnx.export import export_bodies
from ..compiler.request import Options
from ..compiler.source import Source, resolve
from ..support.files import Report
from ..weights.layout import Layout
from .calibrate import segment_times
from .predict import Prediction, predict


def dry_run(options: Options, device: str, calibrated: bool, report: Report = id) -> tuple[Prediction, Prediction]:
    """What the artefact would cost, and its uncached twin; nothing is written but the cache of exported segments.

    `calibrated` exports the segments to a temporary folder and times them on this machine.
    """
    source = resolve(options)
    for line in source.describe():
        report(line)
    twin = dataclasses.replace(source, schedule=source.schedule.uncached())
    found = []
    for each, how in ((source, options), (twin, dataclasses.replace(options, max_graphs=None))):
        lowered = lower(how, each)
        times = _calibrate(how, each, lowered) if calibrated else None
        found.append(predict(lowered.manifest, device, options.batch, times))
    return found[0], found[1]


def _calibrate(options: Options, source: Source, lowered: Lowered) -> dict[str, float]:
    bodies = export_bodies(source.family, lowered.whole)
    backend = open_backend(options.backend, Request(precision=options.precision)).backend
    with tempfile.TemporaryDirectory() as folder:
        layout = Layout(source.family.tensors(), lowered.manifest.weight_types)
        emit.write_models(Path(folder), lowered.linked, bodies, layout)
        return segment_times(Path(folder), lowered.manifest, backend, options.batch)
