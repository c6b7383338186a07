"""Options as all commands have them: their types, their headings, and those that several share."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import click

from .choices import BACKENDS, LINKS
from .console import warnings_said

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)


class Engines(click.Path):
    """The folder of an artefact, or the name of one that comes with the package."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from ..artefact import shipped

        with warnings_said():  # no command runs yet
            return super().convert(shipped.place(value), param, ctx)


ENGINES = Engines(file_okay=False, path_type=Path)


class Option(click.Option):
    """An option that stands under a heading of the help."""

    heading = "Options"


option = functools.partial(click.option, cls=Option)


class Choice(click.Choice):  # type: ignore[type-arg]  # generic from click 8.2 on
    """One of some names; a wrong one is refused in the words of all other errors."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value not in self.choices:
            name = param.opts[0] if param else ""
            raise click.UsageError(f"{name} {value}: use one of {', '.join(map(str, self.choices))}", ctx)
        return value


class Counts(click.ParamType):  # type: ignore[type-arg]  # as above
    """Whole numbers with commas between: "20,50"."""

    name = "N,.."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not re.fullmatch(r"\d{1,6}(,\d{1,6})*", value, re.ASCII):
            raise click.UsageError(f"{param.opts[0] if param else ''} {value}: use a whole number, or several as in 20,50", ctx)
        return [int(count) for count in value.split(",")]


class Sizes(click.ParamType):  # type: ignore[type-arg]  # as above
    """Several of `Size` with commas between: "1024x768,768x1024"."""

    name = "HEIGHTxWIDTH,.."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return [Size().convert(size, param, ctx) for size in value.split(",")]


class Size(click.ParamType):  # type: ignore[type-arg]  # as above
    """Height and width in pixels: "1024x768"."""

    name = "HEIGHTxWIDTH"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not re.fullmatch(r"\d{1,6}x\d{1,6}", value, re.ASCII):
            raise click.UsageError(f"{param.opts[0] if param else ''} {value}: use height and width as in 1024x768", ctx)
        height, width = value.split("x")
        return int(height), int(width)


def group(heading: str, *options: Decorator) -> Decorator:
    """Options under one heading, in this order."""

    def attach(function: Any) -> Any:
        for add in reversed(options):
            function = add(function)
            function.__click_params__[-1].heading = heading
        return function

    return attach


def samplers(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Completion for an option that takes the name of a sampler, or a file."""
    from ..samplers.reference import SAMPLERS
    from ..samplers.scheduler_config import FLOWS, KINDS

    return [name for name in dict.fromkeys((*SAMPLERS, *KINDS, *FLOWS)) if name.startswith(incomplete)]


class_labels = functools.partial(option, "--class-label", "labels", multiple=True, metavar="LABEL,..")
prompt = option("--prompt", "prompt", multiple=True, metavar="TEXT", help="An image of what this says; may be repeated.")
negative_prompt = option("--negative-prompt", metavar="TEXT", help="What no image should be like. [default: the empty text]")
guidance_scale = option("--guidance-scale", type=float, help="1 turns guidance off. [default: the artefact's]")
lora = option(
    "--lora", multiple=True, metavar="FILE[:SCALE]", help="Merge a LoRA of peft, diffusers or kohya into them; several add up."
)
backend = option(
    "--backend",
    type=Choice(BACKENDS),
    metavar="NAME",
    help=f"One of {', '.join(BACKENDS)}. [default: what the artefact was compiled for]",
)
device = option("--device", help="cpu, or cuda:N for a GPU. [default: cpu]")
threads = option("--threads", type=int, help="[default: all cores]")
shipped = option(
    "--model", metavar="NAME", help="A model that ships with this package: emoji, or demo, which is compiled on its first use."
)
size = option("--size", type=Size(), help="Of the artefact's sizes of pictures, this one. [default: the first]")
steps = option("--steps", type=int, help="Of the artefact's numbers of steps, this one. [default: the first]")
link = option("--link", type=Choice(LINKS), help="Engines per segment or per call. [default: the artefact's]")

TOLERANCE = click.FloatRange(min=0, max=1e9)
atol = option("--atol", type=TOLERANCE, help="[default: 3e-5 fp32, 2e-2 fp16, 5e-2 bf16, 0.5 fp8]")
rtol = option("--rtol", type=TOLERANCE, help="The same, times the largest value.")


def split_labels(texts: Iterable[str], known: Collection[str]) -> list[str]:
    """The labels of "1,2,3"; a class name with a comma in it stays whole."""
    labels: list[str] = []
    for label in texts:
        labels += [label] if label in known or "," not in label else [part.strip() for part in label.split(",")]
    return labels
