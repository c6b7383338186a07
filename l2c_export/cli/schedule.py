"""`l2c schedule`: schedules of any tool, converted to ours, shown, and compared."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import UsageError
from . import importing
from .console import Command, Commands, print_json, say
from .options import FILE, Choice, Decorator, Size, group, option, samplers
from .tables import print_table
from .views import check_plot, show_view

if TYPE_CHECKING:
    from ..schedules.schedule import Schedule

FAMILIES = ("dit", "uvit")
SOURCE = click.argument("path", metavar="FILE", type=FILE)


def asking(function: Any) -> Any:
    """The options that say what a schedule is for, where its file does not."""
    model: tuple[Decorator, ...] = (
        option("--model", help="As for l2c-export."),
        option("--family", type=Choice(FAMILIES), help="In place of --model: the published model of dit or uvit."),
        option("--weights", help="As for l2c-export."),
        option("--steps", type=int, help="[default: the file's]"),
        option("--sampler", shell_complete=samplers, help="[default: the folder's or the family's]"),
        option("--size", type=Size(), help="Height and width of the pictures in pixels, of a captured transformer."),
        option("--tokens", type=int, help="The tokens of a prompt, of such a transformer."),
    )
    file: tuple[Decorator, ...] = (
        option("--threshold", type=float, help="For a router. [default: the released ones]"),
        option("--level", type=Choice(("sublayer", "stack")), help="What a steps mask is of. [default: sublayer]"),
        *importing.OPTIONS,
    )
    return group("What it is for", *model)(group("What the file leaves open", *file)(function))


@click.group(cls=Commands, name="schedule", example="l2c schedule convert cache.yaml --model DiT-XL/2 --out schedule.json")
def schedule() -> None:
    """Convert, show and compare schedules, of this and of other tools."""


@schedule.command(cls=Command, example="l2c schedule convert smooth.json --family dit --sampler ddim --out schedule.json")
@SOURCE
@option("--out", type=FILE, required=True, help="The schedule.json that is written.")
@asking
def convert(path: Path, out: Path, as_json: bool, **asked: Any) -> None:
    """Write a schedule of any form as our JSON."""
    from ..support.files import check_place, write

    check_place(out, "out")
    source = read(path, asked)
    write(out, source.to_json(), "out")
    say(f"{out}: written")
    if as_json:
        print_json({"out": str(out), "schedule": source})


@schedule.command(cls=Command, example="l2c schedule show mask.json --model DiT-XL/2 --level stack")
@SOURCE
@option("--plot", type=FILE, help="Draw values x calls into this picture.")
@asking
def show(path: Path, plot: Path | None, as_json: bool, **asked: Any) -> None:
    """Show a schedule of any form, call by call."""
    from ..inspection.view import of_schedule

    check_plot(plot)
    show_view(of_schedule(read(path, asked), str(path)), plot, as_json)


@schedule.command(cls=Command, example="l2c schedule diff schedule.json smooth.json --family dit --out both.png")
@click.argument("a", type=FILE)
@click.argument("b", type=FILE)
@option("--out", type=FILE, help="Draw both side by side into this picture. [default: a table]")
@asking
def diff(a: Path, b: Path, out: Path | None, as_json: bool, **asked: Any) -> None:
    """Compare two schedules of any form; whether they differ or not, it is no error."""
    from ..inspection.difference import compare
    from ..inspection.plot import side_by_side
    from ..inspection.view import of_schedule

    if out:
        from ..support.figure import check_picture

        check_picture(out, "out")
    left, right = read(a, asked), read(b, asked)
    difference = compare(left, right)
    if out:
        side_by_side(of_schedule(left, str(a)), of_schedule(right, str(b)), out)
        say(f"{out}: drawn")
    if as_json:
        print_json(difference)
        return
    if not out:
        print_table(f"{a} and {b}", difference.table())
    click.echo(difference.summary())


def read(path: Path, asked: dict[str, Any]) -> Schedule:
    """The schedule of a file, for the model that the options say."""
    from ..inspection.convert import convert, published
    from ..schedules.importers.imported import Selection

    options = dict(asked)
    family, model = options.pop("family"), options["model"]
    if family and model:
        raise UsageError(f"family={family!r}: model={model!r} says it: use one of the two")
    if family:
        options["model"] = published(family)
        say(f"assumed: the model is {options['model']}")
    names = ("router_kind", "budget", "full_calls", "level", "threshold")
    chosen = Selection(**{name: options.pop(name) for name in names})
    return convert(path, chosen, report=say, **options)
