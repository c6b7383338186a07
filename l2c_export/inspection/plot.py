"""A schedule as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .view import View

if TYPE_CHECKING:
    pass
from ..support.figure import DARK, LIGHT, new_figure, write


def schedule_heatmap(view: View, path: Path) -> None:
    """Sublayers (rows) x calls (columns): dark is computed, light is reused from the cache."""
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


def heatmap_size(view: View) -> tuple[float, float]:
    return min(16, 2.5 + 0.28 * len(view.calls)), min(14, 1.6 + 0.14 * len(view.sublayers))


def heatmap(axes: Any, view: View) -> None:
    from matplotlib.colors import ListedColormap

    grid = np.zeros((len(view.sublayers), len(view.calls)))
    for call in view.calls:
        grid[call.computed, call.index] = 1
    axes.pcolormesh(grid, cmap=ListedColormap([LIGHT, DARK]), vmin=0, vmax=1, edgecolors="white", linewidth=0.3)
    axes.invert_yaxis()
    label_calls(axes, view)
    step = max(1, round(len(view.sublayers) / 28))
    axes.set_yticks([j + 0.5 for j in range(0, len(view.sublayers), step)])
    axes.set_yticklabels(view.sublayers[::step], fontsize=7)
    share = 1 - grid.mean()
    axes.set_title(f"dark: computed, light: reused ({share:.1%} of {grid.size} sublayers)", fontsize=10)


def label_calls(axes: Any, view: View) -> None:
    step = max(1, round(len(view.calls) / 20))
    axes.set_xticks([n + 0.5 for n in range(0, len(view.calls), step)])
    axes.set_xticklabels([f"{c.timestep:.0f}" for c in view.calls[::step]], rotation=90, fontsize=8)
    axes.set_xlabel("timestep of the call, in sampling order")
