#!/usr/bin/env python3
"""Draws the same digits with several artefacts of the demo model, a row for each, and the seconds that each takes per image.

    python scripts/draw_demo.py engines/demo-uncached engines/demo --out digits.png

The artefacts are compiled with --batch 10 at least.  All draw from the same noise.  The seconds are medians of interleaved
rounds; under the picture stands what they were measured on, which should have nothing else to do meanwhile.
"""

from __future__ import annotations

import argparse
import platform
import re
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

import l2c_export

CLASSES = range(10)
ROUNDS = 9


def seconds(draws: Sequence[Callable[[int], object]], rounds: int = ROUNDS) -> list[float]:
    """Of each, which draws one image of a round, the median of interleaved rounds after a warm-up."""
    times: list[list[float]] = [[] for _ in draws]
    for n in range(rounds + 1):
        for draw_one, kept in zip(draws, times, strict=True):
            started = time.perf_counter()
            draw_one(n)
            kept.append(time.perf_counter() - started)
    return [statistics.median(kept[1:]) for kept in times]


def strip(pipe: l2c_export.Pipeline, seed: int) -> np.ndarray:
    """A digit of every class side by side, (H, 10 W) from 0 (ink) to 1."""
    ink = pipe(list(CLASSES), seed=seed, output_type="np").images[..., 0]
    return 1 - np.concatenate(list(ink), axis=1)


def processor() -> str:
    """Its name, as the system gives it."""
    try:
        match = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        match = None
    return match[1] if match else platform.processor() or platform.machine()


def draw(file: Path, strips: list[np.ndarray], captions: list[str], below: str) -> None:
    """A row for each strip, its caption at the left."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 0.72 * len(strips) + 0.3), dpi=200)
    rows = figure.subplots(len(strips), 1, squeeze=False)[:, 0]
    figure.subplots_adjust(left=0.22, right=1, top=1, bottom=0.3 / figure.get_figheight(), hspace=0.02)
    for axes, pixels, caption in zip(rows, strips, captions, strict=True):
        axes.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation="lanczos")
        axes.set_axis_off()
        axes.text(-0.015, 0.5, caption, transform=axes.transAxes, ha="right", va="center", fontsize=10, linespacing=1.4)
    figure.text(1 - 0.01, 0.03, below, ha="right", va="bottom", fontsize=7.5, color="#666666")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("engines", type=Path, nargs="+", help="artefacts; the others are compared with the first")
    ap.add_argument("--seed", type=int, default=40, help="of the first digit's noise [default: 40]")
    ap.add_argument("--out", type=Path, default=Path("digits.png"))
    args = ap.parse_args()
    pipes = [l2c_export.load(folder) for folder in args.engines]
    times = seconds([lambda n, pipe=pipe: pipe([CLASSES[n % 10]], seed=n) for pipe in pipes])
    strips = [strip(pipe, args.seed) for pipe in pipes]
    shares = [pipe.manifest.program().computed_share for pipe in pipes]
    captions = [
        f"{'uncached' if share == 1 else f'cached, {share:.0%} computed'}\n{t:.3f} s an image"
        for share, t in zip(shares, times, strict=True)
    ]
    library = pipes[0].backend.partition("),")[0] + ")"
    draw(args.out, strips, captions, f"{library} on {processor()}")
    for folder, share, t, pixels in zip(args.engines, shares, times, strips, strict=True):
        against = f", {times[0] / t:.2f}x as fast as {args.engines[0]}" if folder != args.engines[0] else ""
        apart = f", pixels differ by {np.abs(pixels - strips[0]).mean():.3f} on average (of 1)" if against else ""
        print(f"{folder}: {share:.0%} of the sublayers computed, {t:.3f} s per image{against}{apart}")
    print(f"{args.out}: drawn by {pipes[0].backend}")


if __name__ == "__main__":
    main()
