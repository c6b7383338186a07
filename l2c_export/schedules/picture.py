"""What every call computes, and how the rest follows, as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..support.figure import DARK, LIGHT, RIVAL, check_picture, new_figure, write
from .forecast import Rule, is_reuse
from .values import Cacheable

SKIPPED, REUSED, COMPUTED, FORECAST = range(4)
SHOWN = (
    (COMPUTED, DARK, "computed"),
    (REUSED, LIGHT, "reused"),
    (FORECAST, RIVAL, "forecast"),
    (SKIPPED, "white", "jumped over"),
)


class DrawnCall(NamedTuple):
    """A call with the rule of every value that it derives; those of sublayers that it reuses may be left out."""

    timestep: float
    computed: Sequence[int]
    reused: Sequence[int]
    rules: Mapping[str, Rule]


class Picture(NamedTuple):
    """Rows, the timesteps of the columns, and what each cell is."""

    names: tuple[str, ...]  # sublayers, and below them the levels that some call derives
    sublayers: int
    timesteps: tuple[float, ...]
    cells: np.ndarray  # (rows, calls)

    @property
    def size(self) -> tuple[float, float]:
        """Inches: width, height."""
        rows, calls = self.cells.shape
        return min(16, 2.5 + 0.28 * calls), min(14, 1.6 + 0.14 * rows + 0.3 * self.has_legend)

    @property
    def has_legend(self) -> bool:
        return bool((self.cells == FORECAST).any() or (self.cells == SKIPPED).any() or len(self.names) > self.sublayers)


def picture_of(values: Cacheable, calls: Sequence[DrawnCall]) -> Picture:
    """What every cell is.  A level is a row where some call derives it."""
    levels = tuple(level for level in values.levels if any(level in call.rules for call in calls))
    names = values.sublayers + levels
    cells = np.full((len(names), len(calls)), SKIPPED)
    for n, call in enumerate(calls):
        derived = [level for level in levels if level in call.rules]
        cells[list(call.computed), n] = COMPUTED
        cells[list(call.reused), n] = REUSED
        for row, name in enumerate(names):
            if name in call.rules:
                cells[row, n] = REUSED if is_reuse(call.rules[name]) else FORECAST
            elif name in levels and values.is_whole(name, derived):
                cells[row, n] = COMPUTED
    return Picture(names, len(values.sublayers), tuple(call.timestep for call in calls), cells)


def draw(path: Path, picture: Picture) -> None:
    """Write values (rows) x calls (columns) as .png, .svg or .pdf.  Raises UsageError or RunError."""
    check_picture(path)
    figure = new_figure(*picture.size)
    heatmap(figure.subplots(), picture)
    write(figure, path)


def heatmap(axes: Any, picture: Picture) -> None:
    """Dark is computed, light is reused from the cache; forecasts have a colour of their own."""
    from matplotlib.colors import ListedColormap

    colours = [colour for _, colour, _ in sorted(SHOWN)]
    axes.pcolormesh(
        picture.cells, cmap=ListedColormap(colours), vmin=0, vmax=len(colours) - 1, edgecolors="white", linewidth=0.3
    )
    axes.invert_yaxis()
    label_calls(axes, picture.timesteps)
    _label_rows(axes, picture)
    own = picture.cells[: picture.sublayers]
    share = f"{1 - (own == COMPUTED).mean():.1%}"
    if picture.has_legend:
        axes.set_title(f"{share} of {own.size} sublayers not computed", fontsize=10, pad=20)
        _legend(axes, picture)
    else:
        axes.set_title(f"dark: computed, light: reused ({share} of {own.size} sublayers)", fontsize=10)


def _label_rows(axes: Any, picture: Picture) -> None:
    step = max(1, round(picture.sublayers / 28))
    rows = [*range(0, picture.sublayers, step), *range(picture.sublayers, len(picture.names))]
    axes.set_yticks([row + 0.5 for row in rows])
    axes.set_yticklabels([picture.names[row] for row in rows], fontsize=7)
    if len(picture.names) > picture.sublayers:
        axes.axhline(picture.sublayers, color="black", linewidth=0.8)


def _legend(axes: Any, picture: Picture) -> None:
    from matplotlib.patches import Patch

    kinds = set(picture.cells.flat)
    patches = [Patch(facecolor=colour, edgecolor="grey", label=label) for kind, colour, label in SHOWN if kind in kinds]
    axes.legend(handles=patches, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=4, fontsize=8, frameon=False, borderpad=0.2)


def label_calls(axes: Any, timesteps: Sequence[float]) -> None:
    every = max(1, round(len(timesteps) / 20))
    axes.set_xticks([n + 0.5 for n in range(0, len(timesteps), every)])
    axes.set_xticklabels([f"{timestep:.0f}" for timestep in timesteps[::every]], rotation=90, fontsize=8)
    axes.set_xlabel("timestep of the call, in sampling order")
