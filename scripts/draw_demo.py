#!/usr/bin/env python3
"""Draws the same digits with several artefacts of the demo model, side by side, and prints how long each took.

python scripts/draw_demo.py engines/demo-uncached engines/demo --out digits.png
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np

import l2c_export
from l2c_export.runtime.pipeline import Pipeline

ROWS, COLUMNS = 10, 6  # a row per class
ROUNDS = 9


def computed(pipe: Pipeline) -> float:
    """The share of sublayers that are computed."""
    calls = pipe.manifest.calls
    return sum(len(call.computed) for call in calls) / (len(calls) * len(pipe.manifest.model.sublayers))


def milliseconds(pipes: list[Pipeline]) -> list[float]:
    """For one image, the median of interleaved rounds after a warm-up."""
    times: list[list[float]] = [[] for _ in pipes]
    for n in range(ROUNDS + 1):
        for pipe, kept in zip(pipes, times, strict=True):
            started = time.perf_counter()
            pipe([n % ROWS], seed=n)
            kept.append(1e3 * (time.perf_counter() - started))
    return [statistics.median(kept[1:]) for kept in times]


def picture(pipe: Pipeline) -> np.ndarray:
    """Digits in rows and columns, (H, W) from 0 (ink) to 1."""
    labels = np.repeat(np.arange(ROWS), COLUMNS).tolist()
    ink = pipe(labels, output_type="np").images[..., 0]
    _, height, width = ink.shape
    return 1 - ink.reshape(ROWS, COLUMNS, height, width).transpose(0, 2, 1, 3).reshape(ROWS * height, COLUMNS * width)


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("engines", type=Path, nargs="+", help=f"artefacts compiled with --batch {ROWS * COLUMNS}")
    ap.add_argument("--out", type=Path, default=Path("digits.png"))
    args = ap.parse_args()
    pipes = [l2c_export.load(folder) for folder in args.engines]
    times = milliseconds(pipes)
    grids = [picture(pipe) for pipe in pipes]
    from l2c_export.support.figure import new_figure, write  # after the measurement

    figure = new_figure(3.3 * len(pipes), 5.9)
    for axes, pipe, ms, grid in zip(np.atleast_1d(figure.subplots(1, len(pipes))), pipes, times, grids, strict=True):
        axes.imshow(grid, cmap="gray", vmin=0, vmax=1)
        axes.set_title(f"{computed(pipe):.0%} computed: {ms:.0f} ms per image", fontsize=10, pad=8)
        axes.set_axis_off()
    write(figure, args.out)
    for folder, pipe, ms, grid in zip(args.engines, pipes, times, grids, strict=True):
        against = f", {times[0] / ms:.2f}x as fast as {args.engines[0]}" if folder != args.engines[0] else ""
        apart = f", pixels differ by {np.abs(grid - grids[0]).mean():.3f} on average (of 1)" if against else ""
        print(f"{folder}: {computed(pipe):.0%} of the sublayers computed, {ms:.1f} ms per image{against}{apart}")
    print(f"{args.out}: drawn by {pipes[0].backend}")


if __name__ == "__main__":
    main()
