"""A schedule as a picture, with the times of its calls above it where they are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..schedules import picture
from ..support.figure import DARK, new_figure, write
from .view import View

LEAST_WIDTH = 5.5  # inches, in which a picture's title fits


def schedule_heatmap(view: View, path: Path) -> None:
    """Values (rows) x calls (columns): dark is computed, light is reused from the cache."""
    times = [call.milliseconds for call in view.calls if call.milliseconds is not None]
    width, height = heatmap_size(view)
    figure = new_figure(width, height + (1.2 if times else 0))
    if times:
        above, axes = figure.subplots(2, 1, sharex=True, height_ratios=(1, 4))
        above.bar([n + 0.5 for n in range(len(times))], times, width=0.8, color=DARK)
        above.set_ylabel("ms", fontsize=8)
        above.set_title(f"{view.timing}: {sum(times):.1f} ms in all", fontsize=9)
    else:
        axes = figure.subplots()
    heatmap(axes, view)
    write(figure, path)


def side_by_side(left: View, right: View, path: Path) -> None:
    """Two schedules as one picture."""
    sizes = [heatmap_size(view) for view in (left, right)]
    widths = [max(LEAST_WIDTH, width) for width, _ in sizes]
    figure = new_figure(sum(widths), max(height for _, height in sizes) + 0.3)
    for part, view in zip(figure.subfigures(1, 2, width_ratios=widths), (left, right), strict=True):
        part.suptitle(view.title, fontsize=10)
        heatmap(part.subplots(), view)
    write(figure, path)


def heatmap_size(view: View) -> tuple[float, float]:
    return view.picture.size


def heatmap(axes: Any, view: View) -> None:
    picture.heatmap(axes, view.picture)


def label_calls(axes: Any, view: View) -> None:
    picture.label_calls(axes, view.timesteps)
