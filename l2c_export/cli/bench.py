"""`l2c bench`: how fast is it, and why?"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import click

from ..support.files import write
from .console import FILE, FOLDER, check_places, command, print_table, progress, say, write_json


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
    from ..benchmarks import bench as measuring
    from ..benchmarks import contenders, report
    from ..support import machine
    from ..support.figure import check_picture

    check_places(as_json, html=html)
    if plot:
        check_picture(plot)
    request = contenders.BenchRequest(images=images, seed=seed, guidance_scale=guidance_scale,
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
    from ..benchmarks import plot, report
    from ..inspection.view import inspect

    view = inspect(engines)
    if picture:
        plot.bench_picture(result, view, picture)
        say(f"{picture}: drawn")
    if html:
        write(html, report.page(result, view).encode(), "--html")
        say(f"{html}: written")
