"""The commands that measure: is it right, how fast is it, and where does the time go."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any

import click
import msgspec

from .console import FILE, FOLDER, command, print_table, progress, say
from .errors import UsageError
from .files import check_place, write

TOLERANCE = click.FloatRange(min=0, max=1e9)


@click.command(context_settings={"show_default": True})
@click.argument("engines", type=FOLDER)
@click.option(
    "--class-label", "labels", multiple=True, help="A number or a name; repeat for more. [default: as many as the batch]"
)
@click.option("--guidance-scale", type=float, help="[default: the artefact's]")
@click.option("--seed", type=int, default=0)
@click.option(
    "--weights", type=click.Path(path_type=Path), help="Compare with this checkpoint. [default: the artefact's own weights]"
)
@click.option("--golden", type=FOLDER, help="A recorded run: config.json and golden.npz.")
@click.option("--atol", type=TOLERANCE, help="[default: 3e-5 fp32, 2e-2 fp16, 5e-2 bf16]")
@click.option("--rtol", type=TOLERANCE, help="The same, times the largest latent.")
@click.option("--backend", help="[default: what the artefact was compiled for]")
@click.option("--device", help="[default: cpu]")
@click.option("--threads", type=int, help="[default: all cores]")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@command
def verify(engines: Path, labels: tuple[str, ...], guidance_scale: float | None, seed: int, weights: Path | None,
           golden: Path | None, atol: float | None, rtol: float | None, backend: str | None, device: str | None,
           threads: int | None, as_json: bool) -> None:  # fmt: skip
    """Compare every call with the cached PyTorch model in float64; exit code 1 if one leaves the tolerance."""
    from . import pipeline
    from .extras import needs

    needs("torch", "export")
    from . import reference
    from . import verify as checking

    for name, value in (("atol", atol), ("rtol", rtol)):
        if value is not None and math.isnan(value):
            raise UsageError(f"--{name} {value}: must be a number of at least 0")
    pipe = pipeline.load(engines, backend, device, threads)
    model = pipe.manifest.model
    if golden:
        asked = reference.of_case(golden, engines, pipe.manifest, weights)
    else:
        chosen = pipe.labels(labels) if labels else [(207 + n) % model.labels for n in range(pipe.manifest.batch)]
        scale = pipe.manifest.guidance.scale if guidance_scale is None else guidance_scale
        asked = reference.Reference(engines, pipe.manifest, pipe.noise(len(chosen), seed), chosen, scale, weights)
    verdict = checking.verify(pipe, asked, atol, rtol)
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(verdict)))
    else:
        print_table(f"{engines} against cached PyTorch in float64, {pipe.backend}", checking.table(verdict))
    for line in checking.basis(pipe.manifest):
        say(line)
    say(checking.summary(verdict))
    if not verdict.passed:
        sys.exit(1)


@click.command(context_settings={"show_default": True})
@click.argument("engines", type=FOLDER)
@click.option(
    "--against",
    help="With commas: pytorch, pytorch-cached, torch-compile, torch-compile-cached, onnxruntime, openvino, uncached. "
    "[default: all that are installed]",
)
@click.option("--passes", is_flag=True, help="Measure what each compiler pass adds, with twins that lack it.")
@click.option("--rounds", type=int, help="In each, every contender makes images for a second. [default: 3 to 15, by the model]")
@click.option("--images", type=int, default=1, help="At a time.")
@click.option("--guidance-scale", type=float, help="[default: the artefact's]")
@click.option("--seed", type=int, default=0, help="Of the noise, and of the order of the rounds.")
@click.option("--threads", type=int, help="[default: all cores]")
@click.option("--device", help="[default: cpu]")
@click.option("--json", "as_json", metavar="FILE|-", help="Write everything as JSON, with - to stdout instead of the tables.")
@click.option("--plot", type=FILE, help="Draw the contenders, and the loop call by call.")
@click.option("--html", type=FILE, help="Write a report: one file with everything in it.")
@command
def bench(engines: Path, against: str | None, passes: bool, rounds: int | None, images: int, guidance_scale: float | None,
          seed: int, threads: int | None, device: str | None, as_json: str | None, plot: Path | None,
          html: Path | None) -> None:  # fmt: skip
    """Measure an artefact beside PyTorch, other backends, and itself without its schedule."""
    from . import bench as measuring
    from . import contenders, machine, report
    from .plot import check_picture

    check_places(as_json, html=html)
    if plot:
        check_picture(plot)
    request = contenders.Request(images=images, seed=seed, guidance_scale=guidance_scale,
                                 threads=machine.cores() if threads is None else threads, device=device)  # fmt: skip
    with contextlib.ExitStack() as shown:

        def measured(total: int) -> Any:
            return shown.enter_context(progress("measuring", total))

        names = contenders.chosen(against)
        result = measuring.bench(engines, names, request, rounds, against is None, passes, say, measured)
    for line in report.warnings(result):
        click.echo(line, err=as_json == "-")
    if as_json != "-":
        print_table(report.settings_line(result), report.speed_table(result))
        print_table("what it takes", report.cost_table(result))
        for line in report.sentences(result):
            click.echo(line)
    write_json(as_json, result)
    if plot or html:
        draw_bench(engines, result, plot, html)


def draw_bench(engines: Path, result: Any, picture: Path | None, html: Path | None) -> None:
    from . import plot, report
    from .inspecting import inspect

    view = inspect(engines)
    if picture:
        plot.bench_picture(result, view, picture)
        say(f"{picture}: drawn")
    if html:
        write(html, report.page(result, view).encode(), "--html")
        say(f"{html}: written")


def check_places(as_json: str | None, **files: Path | None) -> None:
    """Before a long measurement: whether its results can be written."""
    for option, path in {**files, "json": None if as_json in (None, "-") else Path(as_json)}.items():
        if path:
            check_place(path, f"--{option}")


def write_json(to: str | None, value: object) -> None:
    """To a file, to stdout for "-", or nowhere."""
    if to == "-":
        click.echo(msgspec.json.encode(value))
    elif to:
        write(Path(to), msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n", "--json")
        say(f"{to}: written")


@click.command(context_settings={"show_default": True})
@click.argument("engines", type=FOLDER)
@click.option("--rounds", type=int, default=5, help="Images to make; the one of median length is shown.")
@click.option("--images", type=int, default=1, help="At a time.")
@click.option("--guidance-scale", type=float, help="[default: the artefact's]")
@click.option("--seed", type=int, default=0)
@click.option("--link", help="shared or static. [default: the artefact's]")
@click.option("--backend", help="[default: what the artefact was compiled for]")
@click.option("--device", help="[default: cpu]")
@click.option("--threads", type=int, help="[default: all cores]")
@click.option("--json", "as_json", metavar="FILE|-", help="Write everything as JSON, with - to stdout instead of the tables.")
@click.option("--trace", type=FILE, help="Write every engine run for Perfetto or chrome://tracing.")
@command
def profile(engines: Path, rounds: int, images: int, guidance_scale: float | None, seed: int, link: str | None,
            backend: str | None, device: str | None, threads: int | None, as_json: str | None,
            trace: Path | None) -> None:  # fmt: skip
    """Show where the time goes: by kind of segment, and call by call."""
    from . import pipeline, profiling

    check_places(as_json, trace=trace)
    pipe = pipeline.load(engines, backend, device, threads, link=link)
    say(f"backend: {pipe.backend}")
    labels = pipe.labels([(207 + n) % pipe.manifest.model.labels for n in range(images)])
    with progress("profiling", rounds) as step:
        found = profiling.profile(engines, pipe, labels, guidance_scale, seed, rounds, step)
    write_json(as_json, found)
    if as_json != "-":
        title = f"{engines}, {found.precision}, {found.link} link: {1e3 * found.seconds:.1f} ms"
        print_table(title, profiling.kinds_table(found))
        print_table("call by call", profiling.calls_table(found))
    if found.link == "static":
        say("a static engine runs a whole call: --link shared shows what is inside, as segments")
    if trace:
        write(trace, msgspec.json.encode(profiling.trace(found)), "--trace")
        say(f"{trace}: written; open it in ui.perfetto.dev")
