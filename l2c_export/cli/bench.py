"""`l2c bench`: how fast is it, and why?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..support.files import write
from . import options
from .choices import LOADED
from .console import Command, check_places, print_json, save_json, say
from .options import ENGINES, FILE, group, option
from .progress import bars
from .tables import print_table


@click.command(cls=Command, example="l2c bench engines --against pytorch,uncached --save times.json")
@click.argument("engines", type=ENGINES)
@group(
    "What is compared",
    option(
        "--against",
        metavar="NAME,..",
        help=f"pytorch, pytorch-cached, torch-compile, torch-compile-cached, {', '.join(LOADED)}, uncached. "
        "[default: all that are installed]",
    ),
    option("--passes", is_flag=True, help="Measure what each compiler pass adds, with twins that lack it."),
    option("--rounds", type=int, help="In each, every contender makes images for a second. [default: 3 to 15, by the model]"),
)
@group(
    "What they are asked",
    option("--images", type=int, default=1, help="At a time."),
    options.guidance_scale,
    option("--seed", type=int, default=0, help="Of the noise, and of the order of the rounds."),
    options.threads,
    options.device,
)
@group(
    "Where the results go",
    option("--save", type=FILE, help="Write everything into this file, as JSON."),
    option("--plot", type=FILE, help="Draw the contenders, and the loop call by call."),
    option("--html", type=FILE, help="Write a report: one file with everything in it."),
)
def bench(engines: Path, against: str | None, passes: bool, rounds: int | None, images: int, guidance_scale: float | None,
          seed: int, threads: int | None, device: str | None, save: Path | None, plot: Path | None, html: Path | None,
          as_json: bool) -> None:  # fmt: skip
    """Measure an artefact beside PyTorch, other backends, and itself without its schedule."""
    from ..benchmarks import report
    from ..benchmarks.bench import bench as measure
    from ..support.figure import check_picture

    check_places(save=save, html=html)
    if plot:
        check_picture(plot, "plot")
    with bars() as shown:
        result = measure(engines, against=against, passes=passes, rounds=rounds, images=images, guidance_scale=guidance_scale,
                         seed=seed, threads=threads, device=device, report=say, progress=shown.progress)  # fmt: skip
    if save:
        save_json(save, result)
    if plot or html:
        draw_bench(engines, result, plot, html)
    for line in report.warnings(result):
        click.echo(line, err=as_json)
    if as_json:
        print_json(result)
        return
    print_table(report.settings_line(result), report.speed_table(result))
    print_table("what it takes", report.cost_table(result))
    for line in report.sentences(result):
        click.echo(line)


def draw_bench(engines: Path, result: Any, picture: Path | None, html: Path | None) -> None:
    from ..benchmarks import plot, report
    from ..inspection.view import inspect

    view = inspect(engines)
    if picture:
        plot.bench_picture(result, view, picture)
        say(f"{picture}: drawn")
    if html:
        write(html, report.page(result, view).encode(), "html")
        say(f"{html}: written")
