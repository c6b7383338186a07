"""`l2c inspect`: an artefact, a schedule or a router, call by call."""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import UsageError
from . import options
from .choices import DEVICES
from .console import Command
from .options import FILE, Choice, option
from .views import check_plot, show_view


@click.command(cls=Command, example="l2c inspect engines --measure --plot schedule.png")
@click.argument("path", type=options.Engines(path_type=Path))
@option("--threshold", type=float, help="For a router. [default: the released ones]")
@options.steps
@option("--device", type=Choice(DEVICES), help="Predict the time of every call there.")
@option("--measure", is_flag=True, help="Run the artefact and show the time of every call.")
@option("--plot", type=FILE, help="Draw sublayers x calls into this picture.")
def inspect(path: Path, threshold: float | None, steps: int | None, device: str | None, measure: bool, plot: Path | None,
            as_json: bool) -> None:  # fmt: skip
    """Show an artefact, a schedule or a router, call by call."""
    from ..inspection.view import inspect as look

    if measure and device:
        raise UsageError(f"--device {device}: is for predicted times, --measure for those of this machine: use one of the two")
    check_plot(plot)
    view = look(path, threshold, steps)
    if (device or measure) and view.artefact is None:
        raise UsageError(f"{path}: only an artefact has times: give the folder that l2c-export wrote")
    if measure:
        from ..inspection.measure import measured_calls

        view = view.timed(measured_calls(path, steps), "measured")
    elif device:
        from ..artefact import store
        from ..inspection.predict import predict

        costs = predict(store.read(path, verify=False).program(steps), device).calls
        view = view.timed([cost.seconds for cost in costs], f"predicted for {device}")
    show_view(view, plot, as_json)
