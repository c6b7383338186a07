"""The commands `l2c-export` and `l2c`, each in a file of its own."""

from __future__ import annotations

import click

from ..version import __version__
from . import (
    bench,
    build,
    cache,
    check,
    compare,
    compile,
    doctor,
    encode,
    inspect,
    link,
    profile,
    push,
    run,
    sample,
    schedule,
    serve,
    train,
    verify,
)
from .calibrate import calibrate
from .console import Commands
from .triton import triton

EXAMPLE = "l2c-export --model demo --out engines/demo\nl2c run engines/demo --class-label 3 --out three.png"


@click.group(cls=Commands, example=EXAMPLE)
@click.version_option(__version__, prog_name="l2c-export")
def l2c() -> None:
    """Compile diffusion transformers cached by a learned schedule, and run, verify and measure them."""


for command in (compile.export, run.run, serve.serve, sample.sample, compare.compare, encode.encode, inspect.inspect,
                verify.verify, check.check, bench.bench, profile.profile, link.link, build.build, build.remove, triton,
                push.push, push.pull, train.train, schedule.schedule, cache.cache, doctor.doctor):  # fmt: skip
    l2c.add_command(command)
schedule.schedule.add_command(calibrate)


def main() -> None:
    l2c(prog_name="l2c")


def main_export() -> None:
    compile.export(prog_name="l2c-export")
