#!/usr/bin/env python3
"""DiT-S/2 on a CPU: PyTorch, torch.compile and our engines, side by side.

    python scripts/bench_cpu.py --threads 2 --rounds 5 --json scripts/results/cpu.json
    python scripts/bench_cpu.py --model DiT-XL/2 --profile 11 --only 'onnxruntime*' --rounds 3     # one cached call of XL/2

One image with guidance (batch 2), DDIM, random weights, and a fixed schedule: --profile says how many of 24 sublayers the
cached calls compute, by ascending timestep; the default is that of the released DDIM-20 router.  Every contender has its
own process; in every round each makes one image, in a new order, while the others sleep on a pipe.  Reported: the
fastest image and the median, and ratios as `l2c bench` has them.
"""

from __future__ import annotations

import argparse
import fnmatch
import functools
import json
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import l2c_export
from l2c_export import L2CError, Schedule
from l2c_export.backends.descriptors import packages
from l2c_export.benchmarks import bench
from l2c_export.benchmarks.contenders import BenchRequest, Contender
from l2c_export.benchmarks.measured import Measured
from l2c_export.benchmarks.process import Process
from l2c_export.support import machine

PROFILE = (24, 24, 24, 24, 23, 11, 3, 2, 0, 0)
SCALE = 4.0


class Recipe(NamedTuple):
    """A contender: the artefact that it works from, as options of l2c-export, and who makes the images."""

    artefact: str
    options: dict
    runtime: str = "engines"
    cached: bool = True

    def contender(self, name: str, root: Path) -> Contender:
        return Contender(name=name, folder=str(root / self.artefact), runtime=self.runtime, cached=self.cached)


def recipes() -> dict[str, Recipe]:
    contenders = {}
    for precision, end in (("fp32", ""), ("bf16", "-bf16")):
        for runtime in ("pytorch", "torch-compile"):
            recipe = Recipe(f"weights-{precision}", {"precision": precision}, runtime)
            contenders[f"{runtime}{end}"] = recipe._replace(cached=False)
            contenders[f"{runtime}{end}-cached"] = recipe
    variants = {"": {}, "-static": {"link": "static"}, "-uncached": {"cache": False}}
    passes = {"-no-fold": {"fold": False}, "-no-hoist": {"hoist": False}}
    for end, options in {**variants, **passes}.items():
        name = f"onnxruntime{end}"
        contenders[name] = Recipe(name, {"backend": "onnxruntime", **options})
    for precision, middle in (("fp32", ""), ("bf16", "-bf16")):
        for end, options in {**variants, **passes}.items():
            name = f"openvino{middle}{end}"
            contenders[name] = Recipe(name, {"backend": "openvino", "precision": precision, **options})
    return contenders


CONTENDERS = recipes()


def fixed_schedule(profile: tuple[int, ...], columns: int) -> Schedule:
    """A full call, then a cached one, and so on; the cached calls' sublayers are evenly spread."""
    steps = 2 * len(profile)
    computed = [range(columns)] * steps
    for row, of24 in zip(range(0, steps, 2), profile, strict=True):
        count = round(of24 * columns / 24)
        computed[steps - 1 - row] = [int((j + 0.5) * columns / count) for j in range(count)]
    return Schedule.make("dit", "ddim", steps, columns, computed)


def compile_all(root: Path, names: list[str], model: str, profile: tuple[int, ...]) -> None:
    """An artefact for every contender; PyTorch takes its weights and its schedule from there."""
    first = l2c_export.compile("every:2", model=model, steps=2 * len(profile), weights="random:0", out=root / "weights")
    schedule = fixed_schedule(profile, len(first.manifest.denoiser.sublayers))
    common = {"model": model, "weights": first.path / "weights.safetensors"}
    wanted = {CONTENDERS[name].artefact: CONTENDERS[name].options for name in names}
    with ProcessPoolExecutor(min(8, os.cpu_count() or 1), multiprocessing.get_context("spawn")) as pool:
        running = [pool.submit(l2c_export.compile, schedule, out=root / folder, **common, **options)
                   for folder, options in wanted.items()]  # fmt: skip
        for future in running:
            future.result()


def measure(names: list[str], root: Path, args: argparse.Namespace) -> tuple[dict, dict]:
    """Interleaved rounds: the seconds of every call, by contender and image; and the loops' overheads."""
    started = time.perf_counter()
    request = BenchRequest(guidance_scale=SCALE, threads=args.threads)
    processes = []
    for name in names:  # one by one: compilers side by side would only wait for each other
        process = Process(CONTENDERS[name].contender(name, root), request)
        try:
            process.wait()
            processes.append(process)
            print(f"{process.name} is ready after {time.perf_counter() - started:.0f} s", file=sys.stderr)
        except L2CError as error:
            print(f"{process.name} did not start, and is left out: {error}", file=sys.stderr)
            process.stop()
    for process in processes:
        if args.cores:
            process.ask(f"pin {' '.join(map(str, args.cores))}", Any)
        process.image()
    tell = functools.partial(print, "a round is done", file=sys.stderr)
    visits = bench.interleave(processes, args.rounds, random.Random(), tell).visits
    times = {name: [list(timed.calls) for visit in rounds for timed in visit] for name, rounds in visits.items()}
    overheads = {}
    for process in processes:
        time.sleep(bench.PAUSE)
        overheads[process.name] = process.ask("overhead", float | None)
        process.stop()
    return times, {name: value for name, value in overheads.items() if value is not None}


def summary(times: dict[str, list[list[float]]], base: str) -> list[dict]:
    """Per contender: seconds per image and of its cached calls, and ratios to the two PyTorch loops."""
    total = {name: [sum(calls) for calls in rounds] for name, rounds in times.items()}
    cached = {name: [calls[1::2] for calls in rounds] for name, rounds in times.items()}

    def quiet(calls: list[list[float]]) -> float:
        return Measured.quietest([[sum(image)] for image in calls])

    def ratio(to: str, name: str, of: dict[str, list[list[float]]]) -> float | None:
        """Across precisions too: a contender's name says which it has."""
        if to not in of:
            return None
        return quiet(of[to]) / quiet(of[name])

    return [
        {
            "contender": name,
            "median_s": statistics.median(total[name]),
            "min_s": min(total[name]),
            "max_s": max(total[name]),
            "cached_calls_s": statistics.median(map(sum, cached[name])),
            f"times_{base}": ratio(base, name, times),
            f"times_{base}-cached": ratio(f"{base}-cached", name, times),
            "cached_calls_times_onnxruntime": ratio("onnxruntime", name, cached),
        }
        for name in times
    ]


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split(","))


def parse() -> argparse.Namespace:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--cores", type=numbers, help="pin every contender to these, once it has compiled: 0,1")
    ap.add_argument("--rounds", type=int, default=5)
    ap.add_argument("--only", nargs="*", default=["*"], metavar="PATTERN", help=", ".join(CONTENDERS))
    ap.add_argument("--model", default="DiT-S/2")
    ap.add_argument("--profile", type=numbers, default=PROFILE, help="11: one full and one cached call")
    ap.add_argument("--json", type=Path)
    ap.add_argument("--root", type=Path, help="keep the artefacts here")
    return ap.parse_args()


def main() -> None:
    args = parse()
    names = [name for name in CONTENDERS if any(fnmatch.fnmatch(name, pattern) for pattern in args.only)]
    with tempfile.TemporaryDirectory() as tmp:
        root = args.root or Path(tmp)
        root.mkdir(parents=True, exist_ok=True)
        compile_all(root, names, args.model, args.profile)
        times, overheads = measure(names, root, args)
    rows, here = summary(times, "pytorch"), machine.examine(packages())
    result = {
        "command": "python scripts/bench_cpu.py " + " ".join(sys.argv[1:]),
        "cpu": ", ".join((here.cpu, *here.flags)),
        "threads": args.threads,
        "versions": here.versions,
        "model": f"{args.model}, random weights, 1 image with guidance, DDIM {2 * len(args.profile)}",
        "results": rows,
        "loop_overhead": overheads,
        "seconds_per_call": times,
    }
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    print_results(result)


def print_results(result: dict) -> None:
    def times(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}x"

    table = [("contender", "median s", "fastest s", "vs PyTorch", "vs PyTorch cached", "cached calls s", "vs ONNX Runtime")]
    for row in result["results"]:
        name, median, fastest, _, vs, vs_cached, cached, vs_ort = (row[k] for k in (
            "contender", "median_s", "min_s", "max_s", "times_pytorch", "times_pytorch-cached", "cached_calls_s",
            "cached_calls_times_onnxruntime"))  # fmt: skip
        table.append((name, f"{median:.3f}", f"{fastest:.3f}", times(vs), times(vs_cached), f"{cached:.3f}", times(vs_ort)))
    print(f"{result['model']}, {result['cpu']}, {result['threads']} threads")
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        first, *rest = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join((row[0].ljust(len(first)), *rest)))
    for name, value in result["loop_overhead"].items():
        print(f"{name}: the loop adds {value:.1%} to its engine runs")


if __name__ == "__main__":
    main()
