"""Which sublayers run in which call, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..support.figure import DARK, LIGHT, check_picture, new_figure, write


def draw(path: Path, names: Sequence[str], timesteps: Sequence[float], computed: Sequence[Sequence[int]]) -> None:
    """Write sublayers (rows) x calls (columns) as .png, .svg or .pdf.  Raises UsageError or RunError."""
    check_picture(path)
    figure = new_figure(*size(len(names), len(timesteps)))
    heatmap(figure.subplots(), names, timesteps, computed)
    write(figure, path)


def size(sublayers: int, calls: int) -> tuple[float, float]:
    """Inches: width, height."""
    return min(16, 2.5 + 0.28 * calls), min(14, 1.6 + 0.14 * sublayers)


def heatmap(axes: Any, names: Sequence[str], timesteps: Sequence[float], computed: Sequence[Sequence[int]]) -> None:
    """Dark is computed, light is reused from the cache."""
    from matplotlib.colors import ListedColormap

    grid = np.zeros((len(names), len(timesteps)))
    for n, columns in enumerate(computed):
        grid[list(columns), n] = 1
    axes.pcolormesh(grid, cmap=ListedColormap([LIGHT, DARK]), vmin=0, vmax=1, edgecolors="white", linewidth=0.3)
    axes.invert_yaxis()
    label_calls(axes, timesteps)
    step = max(1, round(len(names) / 28))
    axes.set_yticks([j + 0.5 for j in range(0, len(names), step)])
    axes.set_yticklabels(names[::step], fontsize=7)
    share = 1 - grid.mean()
    axes.set_title(f"dark: computed, light: reused ({share:.1%} of {grid.size} sublayers)", fontsize=10)


def label_calls(axes: Any, timesteps: Sequence[float]) -> None:
    every = max(1, round(len(timesteps) / 20))
    axes.set_xticks([n + 0.5 for n in range(0, len(timesteps), every)])
    axes.set_xticklabels([f"{timestep:.0f}" for timestep in timesteps[::every]], rotation=90, fontsize=8)
    axes.set_xlabel("timestep of the call, in sampling order")
