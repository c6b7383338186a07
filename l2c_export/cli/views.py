"""A `View`, call by call: drawn, and as JSON or as a table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .console import in_words, print_json, say
from .tables import print_table

if TYPE_CHECKING:
    from ..inspection.view import View


def check_plot(plot: Path | None) -> None:
    """Raises UsageError for a picture that could not be written, before the view costs anything."""
    if plot:
        from ..support.figure import check_picture

        check_picture(plot, "plot")


def show_view(view: View, plot: Path | None, as_json: bool) -> None:
    if plot:
        from ..inspection.plot import schedule_heatmap

        schedule_heatmap(view, plot)
        say(f"{plot}: drawn")
    if as_json:
        print_json(view)
        return
    print_table(in_words(view.title), view.table())
    for line in view.notes():
        click.echo(line)
