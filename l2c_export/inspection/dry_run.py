"""What an artefact would cost, before anything is written."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..backends.choose import open_backend
from ..backends.contract import Request
from ..compiler.foreign import options_with
from ..compiler.request import Options, PathOrSchedule
from ..support.extras import needs_compiler
from ..support.files import Report
from ..support.log import logged
from ..weights.layout import Layout
from .calibrate import segment_times
from .forms import forms
from .predict import Prediction, predict

if TYPE_CHECKING:
    from ..compiler.compile import Lowered
    from ..compiler.source import Source


class Predictions(NamedTuple):
    """What an artefact would cost, and what without its schedule."""

    schedule: Prediction
    uncached: Prediction


def dry_run(
    schedule: PathOrSchedule | Sequence[PathOrSchedule] | None = None,
    *,
    steps: int | Sequence[int] | None = None,
    device: str = "cpu",
    calibrate: bool = False,
    report: Report = logged,
    **options: Any,
) -> Predictions:
    """What `compile` with the same arguments would make, and its uncached twin: bytes, operations and seconds, predicted.

    Nothing is written.  `device` is "cpu", "h100", "rtx4090" or "orin"; `calibrate` exports
    the segments to a temporary folder and times them on this machine instead.  Raises what `compile` does.
    """
    needs_compiler()
    return predict_both(options_with(schedule, steps, report, **options), device, calibrate, report)


def predict_both(options: Options, device: str, calibrated: bool, report: Report = id) -> Predictions:
    from ..compiler.compile import lower
    from ..compiler.source import resolve

    source = resolve(options)
    for line in source.describe():
        report(line)
    twin = dataclasses.replace(source, schedules=tuple(schedule.uncached() for schedule in source.schedules))
    costs = []
    for variant, how in ((source, options), (twin, dataclasses.replace(options, max_graphs=None))):
        lowered = lower(how, variant)
        for line in forms(lowered.manifest.program()):
            report(line)
        times = _calibrate(how, variant, lowered) if calibrated else None
        costs.append(predict(lowered.manifest.program(), device, options.batch, times))
    return Predictions(*costs)


def _calibrate(options: Options, source: Source, lowered: Lowered) -> dict[str, float]:
    from ..compiler import emit
    from ..compiler.onnx.export import export_bodies

    bodies = export_bodies(lowered.bodies)
    backend = open_backend(options.backend, Request(precision=options.precision)).backend
    with tempfile.TemporaryDirectory() as folder:
        layout = Layout(lowered.manifest.denoiser.tensors)
        emit.write_models(Path(folder), lowered.linked, bodies, {}, layout)
        return segment_times(Path(folder), lowered.manifest, backend, options.batch)
