"""The trade-offs of a training and of a search as pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..support.figure import DARK, GREY, RIVAL, clean, new_figure, write

if TYPE_CHECKING:
    from .search import Frontier
    from .tradeoff import Tradeoff


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


def frontier_picture(frontier: Frontier, path: Path) -> None:
    """The error of the final latents over the predicted time: everything that was tried, and the frontier."""
    figure = new_figure(6.4, 4.0)
    axes = figure.subplots()
    for level, color in (("sublayer", DARK), ("stack", RIVAL), ("output", GREY)):
        tried = [one for one in frontier.tried if one.candidate.level == level]
        axes.plot([1e3 * one.seconds for one in tried], [100 * one.error for one in tried], "o", color=color, alpha=0.35,
                  markersize=3, label=level)  # fmt: skip
    times, errors = [1e3 * p.seconds for p in frontier.points], [100 * p.error for p in frontier.points]
    axes.step(times, errors, where="post", color=DARK, linewidth=1.2, marker="s", markersize=4, label="the frontier")
    axes.set_xlabel(f"ms per image, predicted ({frontier.device}); uncached {1e3 * frontier.uncached_seconds:.1f}", fontsize=9)
    axes.set_ylabel("root mean square error of the final latents, %", fontsize=9)
    axes.set_title(f"{frontier.family}, {frontier.sampler}, {frontier.steps} steps", fontsize=10, loc="left")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8, frameon=False)
    clean(axes)
    write(figure, path)
