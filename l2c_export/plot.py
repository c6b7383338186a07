"""Pictures of schedules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .backends import needs
from .errors import RunError
from .inspecting import View


def schedule_heatmap(view: View, path: Path) -> None:
    """Sublayers (rows) x calls (columns): dark is computed, light is reused from the cache."""
    matplotlib = needs("matplotlib", "export")
    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.colors import ListedColormap

    grid = np.zeros((len(view.sublayers), len(view.calls)))
    for call in view.calls:
        grid[call.computed, call.index] = 1
    width, height = min(16, 2.5 + 0.28 * grid.shape[1]), min(14, 1.6 + 0.14 * grid.shape[0])
    times = [call.milliseconds for call in view.calls if call.milliseconds is not None]
    figure = pyplot.figure(figsize=(width, height + (1.2 if times else 0)), layout="constrained")
    if times:
        above, axes = figure.subplots(2, 1, sharex=True, height_ratios=(1, 4))
        above.bar([n + 0.5 for n in range(len(times))], times, width=0.8, color="#27527d")
        above.set_ylabel("ms", fontsize=8)
        above.set_title(f"{view.timing}: {sum(times):.1f} ms in all", fontsize=9)
    else:
        axes = figure.subplots()
    axes.pcolormesh(grid, cmap=ListedColormap(["#e6ebf2", "#27527d"]), vmin=0, vmax=1, edgecolors="white", linewidth=0.3)
    axes.invert_yaxis()
    every = max(1, round(len(view.calls) / 20))
    axes.set_xticks([n + 0.5 for n in range(0, len(view.calls), every)])
    axes.set_xticklabels([f"{c.timestep:.0f}" for c in view.calls[::every]], rotation=90, fontsize=8)
    step = max(1, round(len(view.sublayers) / 28))
    axes.set_yticks([j + 0.5 for j in range(0, len(view.sublayers), step)])
    axes.set_yticklabels(view.sublayers[::step], fontsize=7)
    axes.set_xlabel("timestep of the call, in sampling order")
    share = 1 - grid.mean()
    axes.set_title(f"dark: computed, light: reused ({share:.1%} of {grid.size} sublayers)", fontsize=10)
    write(figure, path)


def write(figure: Any, path: Path) -> None:
    """Save a picture and forget it."""
    from matplotlib import pyplot

    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise RunError(f"{path}: cannot be drawn: {reason}: choose a .png, .svg or .pdf in a folder that exists") from None
    finally:
        pyplot.close(figure)
