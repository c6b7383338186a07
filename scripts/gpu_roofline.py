#!/usr/bin/env python3
"""What a GPU can do at best, as PyTorch reaches it: products of 8,192 x 8,192 matrices, and copies of 2 GB.

python scripts/gpu_roofline.py --json roofline.json
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import torch

SIDE, BYTES = 8192, 2 * 2**30


def milliseconds(run: Callable[[], object], rounds: int = 20) -> float:
    """The median of the device's own times."""
    for _ in range(3):
        run()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(rounds + 1)]
    for mark in marks[:-1]:
        mark.record()
        run()
    marks[-1].record()
    torch.cuda.synchronize()
    return statistics.median(a.elapsed_time(b) for a, b in itertools.pairwise(marks))


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--json", type=Path)
    args = ap.parse_args()
    half = torch.randn(SIDE, SIDE, device="cuda", dtype=torch.float16)
    one = torch.ones((), device="cuda")
    eighth = half.to(torch.float8_e4m3fn)
    products = {
        "fp16": lambda: half @ half.T,
        "fp8": lambda: torch._scaled_mm(eighth, eighth.T, one, one, out_dtype=torch.float16),
    }
    results = {f"{name}_tflops": 2 * SIDE**3 / milliseconds(run) / 1e9 for name, run in products.items()}
    source = torch.empty(BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    results["memory_tb_per_s"] = 2 * BYTES / milliseconds(lambda: target.copy_(source)) / 1e9
    print(json.dumps(results))
    if args.json:
        args.json.write_text(json.dumps(results) + "\n")


if __name__ == "__main__":
    main()
