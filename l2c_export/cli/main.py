"""The commands `l2c-export` and `l2c`, each in a file of its own."""

from __future__ import annotations

import click

from ..version import __version__
from . import bench, build, cache, compile, doctor, inspect, link, profile, run, train, verify
from .console import Commands


@click.group(cls=Commands, context_settings={"show_default": True})
@click.version_option(__version__, prog_name="l2c-export")
def l2c() -> None:
    """Run, link and inspect what l2c-export compiled."""


for command in (compile.export, run.run, inspect.inspect, verify.verify, bench.bench, profile.profile, link.link, build.build,
                build.remove, train.train, cache.cache, doctor.doctor):  # fmt: skip
    l2c.add_command(command)


def main() -> None:
    l2c(prog_name="l2c")


def main_export() -> None:
    compile.export(prog_name="l2c-export")
