"""Pictures of schedules and of benchmarks."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import files
from .contenders import OURS
from .errors import UsageError
from .extras import needs
from .inspecting import View
from .measured import times
from .words import counted

if TYPE_CHECKING:
    from .measured import Measured, Result
    from .training.tradeoff import Tradeoff

PICTURES = (".png", ".svg", ".pdf")
DARK, LIGHT, OTHER, RIVAL, GREY = "#27527d", "#e6ebf2", "#a9bace", "#d9822b", "#5b6875"


def new_figure(width: float, height: float) -> Any:
    """An empty figure of so many inches that belongs to no window."""
    needs("matplotlib", "export").use("Agg")
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def write(figure: Any, path: Path) -> None:
    """Save a picture.  Raises RunError where that is not possible."""
    data = io.BytesIO()
    figure.savefig(data, dpi=140, format=path.suffix[1:])
    files.write(path, data.getvalue())


def check_picture(path: Path) -> None:
    """Refuse what `write` could not do, before a long measurement."""
    if path.suffix not in PICTURES:
        raise UsageError(f"--plot {path}: use one of {', '.join(PICTURES)}")
    files.check_place(path, "--plot")


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
    every = max(1, round(len(view.calls) / 20))
    axes.set_xticks([n + 0.5 for n in range(0, len(view.calls), every)])
    axes.set_xticklabels([f"{c.timestep:.0f}" for c in view.calls[::every]], rotation=90, fontsize=8)
    axes.set_xlabel("timestep of the call, in sampling order")


def bench_picture(result: Result, view: View, path: Path) -> None:
    """The contenders as bars, and below them the loop call by call."""
    figure = new_figure(9, 4.3 + 0.42 * len(result.contenders))
    above, below = figure.subplots(2, 1, height_ratios=(0.6 + 0.42 * len(result.contenders), 3.0))
    bars(above, result)
    timeline(below, result)
    label_calls(below, view)
    ours = result.contenders[0].settings
    work, where = counted(ours.calls, "call"), f"{result.machine.cpu}, {counted(ours.threads, 'thread')}"
    figure.suptitle(f"{ours.model}, {ours.precision}, {work}, {where}", fontsize=10)
    write(figure, path)


def contenders_svg(result: Result) -> str:
    figure = new_figure(9, 0.8 + 0.42 * len(result.contenders))
    bars(figure.subplots(), result)
    return svg(figure)


def loop_svg(result: Result, view: View) -> str:
    """The time of every call, and below it what it computes."""
    _, height = heatmap_size(view)
    figure = new_figure(9, 2.0 + height)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2.0, height))
    timeline(above, result)
    heatmap(below, view)
    return svg(figure)


def bars(axes: Any, result: Result) -> None:
    """Seconds per image: on a quiet machine as a bar, a line to the median, and what ours is against it."""
    ratios = {ratio.slow: ratio for ratio in result.ratios}
    found = sorted(result.contenders, key=lambda each: each.quiet)
    longest = max(max(each.per_image.median, each.quiet) for each in found)
    for row, each in enumerate(found):
        seconds, ours = each.per_image, each.name == OURS
        axes.barh(row, each.quiet, height=0.68, color=DARK if ours else OTHER)
        axes.plot([each.quiet, seconds.median], [row, row], color=GREY, linewidth=1.2, solid_capstyle="butt")
        compared = "" if ours or result.disturbed else f"   ours is {times(ratios[each.name])}"
        text = f"{each.quiet:.3g} s{compared}"
        right = max(seconds.median, each.quiet) + 0.012 * longest
        weight, color = ("bold", DARK) if ours else ("normal", "#333333")
        axes.text(right, row, text, va="center", fontsize=9, fontweight=weight, color=color)
    axes.set_yticks(range(len(found)), [each.name for each in found], fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.38 * longest)
    state = "disturbed: not those of a quiet machine" if result.disturbed else "on the quiet machine"
    title = f"seconds per image {state}, with a line to the median of all"
    axes.set_title(title, fontsize=10, loc="left", color=RIVAL if result.disturbed else "black")
    clean(axes)


def timeline(axes: Any, result: Result) -> None:
    """Milliseconds of every call of ours, and of the contender that follows the same schedule in PyTorch."""
    ours, other = result.contenders[0], rival(result)
    axes.stairs(1e3 * np.array(ours.timeline), fill=True, color=DARK, alpha=0.9, label=legend(ours))
    if other:
        axes.stairs(1e3 * np.array(other.timeline), color=RIVAL, linewidth=1.8, label=legend(other))
    axes.set_xlim(0, len(ours.timeline))
    axes.set_ylim(bottom=0)
    axes.set_ylabel("ms per call, median", fontsize=9)
    axes.legend(fontsize=8, frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(0, 1.0), borderaxespad=0.2)
    clean(axes)


def legend(each: Measured) -> str:
    return f"{each.name}, {1e3 * sum(each.timeline):.4g} ms in all"


def rival(result: Result) -> Measured | None:
    """Whom the timeline shows beside ours: cached PyTorch, or else the first other contender."""
    return result.of("pytorch-cached") or next(iter(result.contenders[1:]), None)


def tradeoff_picture(curve: Tradeoff, path: Path) -> None:
    """The share of sublayers removed against the error of the final latents, with the chosen threshold."""
    figure = new_figure(6.4, 4.0)
    axes, chosen = figure.subplots(), curve.chosen
    removed, error = [[100 * getattr(p, name) for p in curve.points] for name in ("removed", "error")]
    axes.plot(removed, error, color=DARK, marker="o", markersize=3.5, linewidth=1.4)
    axes.plot(100 * chosen.removed, 100 * chosen.error, "o", color=RIVAL, markersize=9)
    text = f"threshold {chosen.threshold:.3g}: {chosen.removed:.1%} removed, error {chosen.error:.2%}"
    axes.annotate(text, (100 * chosen.removed, 100 * chosen.error), (0.03, 0.9), textcoords="axes fraction", fontsize=9,
                  color=RIVAL, arrowprops={"arrowstyle": "-", "color": RIVAL, "linewidth": 0.8})  # fmt: skip
    axes.set_xlabel("% of the cached calls' sublayers removed", fontsize=9)
    axes.set_ylabel("root mean square error of the final latents, %", fontsize=9)
    axes.set_title(f"{curve.family}, {curve.steps} steps, lambda {curve.lambda_:.3g}", fontsize=10, loc="left")
    axes.set_ylim(bottom=0)
    clean(axes)
    write(figure, path)


def clean(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def svg(figure: Any) -> str:
    """A figure as an <svg> element for a page: without the prologue and the namespaces, which only a file of its own needs."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    found = text.getvalue()
    return re.sub(r' xmlns(:\w+)?="[^"]*"', "", found[found.index("<svg") :])
