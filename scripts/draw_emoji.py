#!/usr/bin/env python3
"""Draws the same things with several artefacts or programs of the demo in colour, a row for each, and the seconds of a picture.

    python scripts/draw_emoji.py engines/emoji-uncached:50 emoji:50 emoji:40 --out emoji.png

An artefact is followed by the steps of one of its programs. All draw from the same noise. The seconds are medians of
interleaved rounds, for one picture from its prompt; under the picture stands what they were measured on.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from draw_demo import draw, processor, seconds

import l2c_export

PROMPTS = ("a red apple", "a cat", "a rocket", "a slice of pizza", "a frog", "a birthday cake", "a ghost", "a guitar",
           "a blue heart", "a purple car")  # fmt: skip


def drawing(pipe: l2c_export.Pipeline, steps: int) -> Callable[[int], object]:
    """Draws one picture of a round, from its prompt."""
    return lambda n: pipe(prompt=[PROMPTS[n % len(PROMPTS)]], seed=n, steps=steps)


def strip(pipe: l2c_export.Pipeline, steps: int, seed: int) -> np.ndarray:
    """All prompts side by side, (H, N W, 3) from 0 to 1; every picture has a noise of its own, whatever the batch."""
    images = []
    for start in range(0, len(PROMPTS), pipe.manifest.batch):
        part = PROMPTS[start : start + pipe.manifest.batch]
        numbers = [seed + start + n for n in range(len(part))]
        images.extend(pipe(prompt=list(part), seed=numbers, steps=steps, output_type="np").images)
    return np.concatenate(images, axis=1)


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("programs", nargs="+", help="ARTEFACT:STEPS; the others are compared with the first")
    ap.add_argument("--seed", type=int, default=0, help="of the first picture's noise [default: 0]")
    ap.add_argument("--out", type=Path, default=Path("emoji.png"))
    args = ap.parse_args()
    named = [(text.rpartition(":")[0], int(text.rpartition(":")[2])) for text in args.programs]
    pipes = {folder: l2c_export.load(folder) for folder, _ in named}
    runs = [(pipes[folder], steps) for folder, steps in named]
    times = seconds([drawing(*run) for run in runs])
    captions = []
    for (pipe, steps), t in zip(runs, times, strict=True):
        full = sum(bool(call.computed) for call in pipe.manifest.program(steps=steps).calls)
        what = f"{steps} steps, uncached" if full == steps else f"{steps} steps, {full} full"
        captions.append(f"{what}\n{t:.2f} s a picture")
    library = pipes[named[0][0]].backend.partition("),")[0] + ")"
    draw(args.out, [strip(pipe, steps, args.seed) for pipe, steps in runs], captions, f"{library} on {processor()}")
    for program, t in zip(args.programs, times, strict=True):
        print(f"{program}: {t:.3f} s a picture, {times[0] / t:.2f}x as fast as {args.programs[0]}")


if __name__ == "__main__":
    main()
