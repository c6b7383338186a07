"""The trade-off of a training as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .tradeoff import Tradeoff
from ..support.figure import DARK, RIVAL, clean, new_figure, write


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
