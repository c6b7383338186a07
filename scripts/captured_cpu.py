#!/usr/bin/env python3
"""Is a captured transformer as fast as the same one written by hand?  DiT-S/2 of diffusers, compiled both ways, on a CPU.

    python scripts/captured_cpu.py --rounds 60 --steps 2 --json scripts/results/captured_cpu.json

Random weights from one folder, one image with guidance (batch 2), DDIM.  Each way has a process of its own; in each round both
make an image, in a new order, while the other sleeps on a pipe.  Reported: captured / by hand, the median over rounds and its
quartiles, once of the seconds that an image takes and once of the processor seconds that the process uses for it, which others
on the machine disturb less; and the ratio of the fastest images.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import l2c_export
from l2c_export.models import families

WAYS = ("by hand", "captured")
DIT = "DiTTransformer2DModel"
SMALL_2 = {"num_attention_heads": 6, "attention_head_dim": 64, "num_layers": 12, "in_channels": 4, "out_channels": 8}


def pipeline_folder(folder: Path, sample: int) -> None:
    """A DiTPipeline of random weights, without a decoder."""
    import diffusers
    import torch

    torch.manual_seed(0)
    model = diffusers.DiTTransformer2DModel(**SMALL_2, sample_size=sample, patch_size=2)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    parts: dict[str, Any] = {"transformer": model, "scheduler": diffusers.DDIMScheduler(clip_sample=False)}
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    index = {name: ["diffusers", type(part).__name__] for name, part in parts.items()}
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "DiTPipeline", **index}))


@contextlib.contextmanager
def as_if_unknown() -> Iterator[None]:
    """The class is taken for one that nobody has written by hand: by the names of its arguments."""
    known = families.FAMILIES["transformer"]
    families.FAMILIES["transformer"] = dataclasses.replace(known, captured=DIT)
    try:
        yield
    finally:
        families.FAMILIES["transformer"] = known


def compiled(root: Path, args: argparse.Namespace) -> None:
    for way in WAYS:
        with as_if_unknown() if way == "captured" else contextlib.nullcontext():
            artefact = l2c_export.compile(
                args.schedule, model=root / "model", steps=args.steps, guidance="all", link=args.link, out=root / way
            )
        assert (artefact.manifest.denoiser.family == "dit") == (way == "by hand")


class Image(NamedTuple):
    """What it took."""

    seconds: float
    processor: float


def work(folder: str, backend: str, threads: int) -> None:
    """Make an image for every line that comes in."""
    with l2c_export.load(folder, backend=backend, threads=threads) as pipe:
        for _ in sys.stdin:
            began, used = time.perf_counter(), time.process_time()
            pipe([207], guidance_scale=4.0, seed=0)
            print(json.dumps(Image(time.perf_counter() - began, time.process_time() - used)), flush=True)


class Worker:
    """A process that makes images."""

    def __init__(self, folder: Path, backend: str, threads: int) -> None:
        command = [sys.executable, __file__, "--work", str(folder), backend, str(threads)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def image(self) -> Image:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return Image(*json.loads(self._process.stdout.readline()))

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()


def measured(root: Path, backend: str, args: argparse.Namespace) -> dict[str, Any]:
    """Rounds of both ways on a backend."""
    workers = {way: Worker(root / way, backend, args.threads) for way in WAYS}
    images: dict[str, list[Image]] = {way: [] for way in WAYS}
    try:
        for worker in workers.values():
            worker.image()
            worker.image()
        for _ in range(args.rounds):
            for way in random.sample(WAYS, 2):
                images[way].append(workers[way].image())
    finally:
        for worker in workers.values():
            worker.stop()
    result: dict[str, Any] = {"backend": backend, "link": args.link, "rounds": args.rounds, "load": os.getloadavg()[0]}
    for what in Image._fields:
        by_hand, captured = ([getattr(image, what) for image in images[way]] for way in WAYS)
        ratios = [ours / theirs for theirs, ours in zip(by_hand, captured, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        fastest = min(captured) / min(by_hand)
        result[what] = {"ratio": middle, "quartiles": [low, high], "of the medians":
                        statistics.median(captured) / statistics.median(by_hand), "of the fastest": fastest,
                        "by hand, fastest": min(by_hand)}  # fmt: skip
    return result


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--rounds", type=int, default=40)
    ap.add_argument("--threads", type=int, default=1)
    ap.add_argument("--steps", type=int, default=4)
    ap.add_argument("--sample", type=int, default=32, help="side of the latents")
    ap.add_argument("--schedule", default="every:1")
    ap.add_argument("--backends", nargs="*", default=["onnxruntime", "openvino"])
    ap.add_argument("--link", default="shared")
    ap.add_argument("--json", type=Path)
    ap.add_argument("--root", type=Path, help="keep the artefacts here")
    ap.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    args = ap.parse_args()
    if args.work:
        work(args.work[0], args.work[1], int(args.work[2]))
        return
    with tempfile.TemporaryDirectory() as tmp:
        root = args.root or Path(tmp)
        if not (root / "model").exists():
            pipeline_folder(root / "model", args.sample)
        if not (root / "captured").exists():
            compiled(root, args)
        results = []
        for backend in args.backends:
            results.append(measured(root, backend, args))
            print(json.dumps(results[-1], indent=1), flush=True)
    if args.json:
        args.json.write_text(json.dumps({"command": " ".join(sys.argv), "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
