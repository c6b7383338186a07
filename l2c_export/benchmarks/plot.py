"""A benchmark as pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..inspection.plot import heatmap, heatmap_size, label_calls
from ..inspection.view import View
from ..support.figure import DARK, GREY, OTHER, RIVAL, clean, new_figure, svg, write
from ..support.words import counted
from .contenders import OURS
from .measured import times

if TYPE_CHECKING:
    from .measured import Measured, Result


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
    contenders = sorted(result.contenders, key=lambda contender: contender.quiet)
    longest = max(max(contender.per_image.median, contender.quiet) for contender in contenders)
    for row, contender in enumerate(contenders):
        seconds, ours = contender.per_image, contender.name == OURS
        axes.barh(row, contender.quiet, height=0.68, color=DARK if ours else OTHER)
        axes.plot([contender.quiet, seconds.median], [row, row], color=GREY, linewidth=1.2, solid_capstyle="butt")
        words = "" if ours or result.disturbed else f"   ours is {times(ratios[contender.name])}"
        text = f"{contender.quiet:.3g} s{words}"
        right = max(seconds.median, contender.quiet) + 0.012 * longest
        weight, color = ("bold", DARK) if ours else ("normal", "#333333")
        axes.text(right, row, text, va="center", fontsize=9, fontweight=weight, color=color)
    axes.set_yticks(range(len(contenders)), [contender.name for contender in contenders], fontsize=9)
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


def legend(contender: Measured) -> str:
    return f"{contender.name}, {1e3 * sum(contender.timeline):.4g} ms in all"


def rival(result: Result) -> Measured | None:
    """Whom the timeline shows beside ours: cached PyTorch, or else the first other contender."""
    return result.of("pytorch-cached") or next(iter(result.contenders[1:]), None)
