#!/usr/bin/env python3
"""DiT-S/2 on a CPU: PyTorch, torch.compile and our engines, side by side.

    python scripts/bench_cpu.py --threads 2 --rounds 5 --json scripts/results/cpu.json
    python scripts/bench_cpu.py --model DiT-XL/2 --profile 11 --only 'onnxruntime*' --rounds 3     # one cached call of XL/2

One image with guidance (batch 2), DDIM, random weights, and a fixed schedule: --profile says how many of 24 sublayers the
cached calls compute, by ascending timestep; the default is that of the released DDIM-20 router.  Every contender has its
own process; in every round each makes one image, in a new order, while the others sleep on a pipe.  Reported: the
median over the rounds, and the median of the ratios within a round.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import multiprocessing
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np

PROFILE = (24, 24, 24, 24, 23, 11, 3, 2, 0, 0)
LABEL, SCALE = 207, 4.0
Image = Callable[[], Iterator[object]]  # makes one image, call by call


class Contender(NamedTuple):
    """How the image is made (`engine`, `eager`, `compile`), and with which options of l2c-export."""

    how: str
    options: dict


def contenders() -> dict[str, Contender]:
    found = {}
    for precision, end in (("fp32", ""), ("bf16", "-bf16")):
        for name, how in (("pytorch", "eager"), ("torch-compile", "compile")):
            found[f"{name}{end}"] = Contender(how, {"precision": precision, "cache": False})
            found[f"{name}{end}-cached"] = Contender(how, {"precision": precision})
    variants = {"": {}, "-static": {"link": "static"}, "-uncached": {"cache": False}}
    passes = {"-no-fold": {"fold": False}, "-no-hoist": {"hoist": False}}
    for end, options in {**variants, **passes}.items():
        found[f"onnxruntime{end}"] = Contender("engine", {"backend": "onnxruntime", **options})
    for precision, middle in (("fp32", ""), ("bf16", "-bf16")):
        for end, options in {**variants, **passes}.items():
            found[f"openvino{middle}{end}"] = Contender("engine", {"backend": "openvino", "precision": precision, **options})
    return found


CONTENDERS = contenders()


def fixed_schedule(profile: tuple[int, ...], columns: int):
    """A full call, then a cached one, and so on; the cached calls' sublayers are evenly spread."""
    from l2c_export.schedule import Source, make

    steps = 2 * len(profile)
    computed = [range(columns)] * steps
    for row, of24 in zip(range(0, steps, 2), profile, strict=True):
        count = round(of24 * columns / 24)
        computed[steps - 1 - row] = [int((j + 0.5) * columns / count) for j in range(count)]
    return make("dit", "ddim", steps, columns, computed, source=Source(rule="bench-profile"))


def compile_all(root: Path, names: list[str], model: str, profile: tuple[int, ...]) -> None:
    """An artefact for every contender; PyTorch takes its weights and its schedule from there."""
    from l2c_export.compile import compile_artefact
    from l2c_export.models import resolve
    from l2c_export.options import Options

    family, _ = resolve(model, None, None, None)
    (root / "schedule.json").write_bytes(fixed_schedule(profile, len(family.sublayers)).to_json())
    first = root / "weights" / "weights.safetensors"
    common = {"schedule": str(root / "schedule.json"), "model": model}
    compile_artefact(Options(**common, weights="random:0", out=first.parent))
    wanted = []
    for name in names:
        how, options = CONTENDERS[name]
        options = options if how == "engine" else {k: options[k] for k in options if k != "precision"}
        wanted.append(Options(**common, weights=str(first), out=root / name, **options))
    with ProcessPoolExecutor(min(8, os.cpu_count() or 1), multiprocessing.get_context("spawn")) as pool:
        list(pool.map(compile_artefact, wanted))


def worker(name: str, root: Path, threads: int) -> None:
    """Answer every line on stdin: `image` with the seconds of every call of one image, `overhead` with the share that the
    loop adds to its engines, and `pin CORES` after moving every thread there."""
    how, options = CONTENDERS[name]
    if how == "engine":
        image, overhead = engine(root / name, threads)
    else:
        image, overhead = pytorch(root / name, threads, options["precision"], how == "compile"), None
    list(image())
    print("ready", flush=True)
    for line in sys.stdin:
        what, *cores = line.split()
        if what == "pin":
            for thread in os.listdir("/proc/self/task"):
                os.sched_setaffinity(int(thread), map(int, cores))
        answer = overhead() if what == "overhead" and overhead else None if what == "overhead" else seconds_of(image)
        print(json.dumps(answer), flush=True)


def seconds_of(image: Image) -> list[float]:
    seconds, before = [], time.perf_counter()
    for _ in image():
        seconds.append(time.perf_counter() - before)
        before = time.perf_counter()
    return seconds


def engine(folder: Path, threads: int) -> tuple[Image, Callable[[], float]]:
    import l2c_export

    pipe = l2c_export.load(folder, threads=threads)
    noise = pipe.noise(1, 0)

    def overhead() -> float:
        """Seconds of the loop over the sum of its engine runs, less one."""
        (loop,) = pipe._loops.values()
        spent = []

        def timed(run):
            def measured():
                started = time.perf_counter()
                run()
                spent.append(time.perf_counter() - started)

            return measured

        for runs in loop.hoisted.prologue:
            runs[:] = map(timed, runs)
        for index in range(len(pipe.manifest.calls)):
            loop.bound(index)[:] = [timed(run) for run in loop.bound(index)]
        started = time.perf_counter()
        list(pipe.steps([LABEL], SCALE, noise))
        return (time.perf_counter() - started) / sum(spent) - 1

    return lambda: pipe.steps([LABEL], SCALE, noise), overhead


def pytorch(folder: Path, threads: int, precision: str, compiled: bool) -> Image:
    import torch

    import l2c_export
    from l2c_export import artefact, models
    from l2c_export.models.eager import Denoiser
    from l2c_export.weights import FILE, Layout

    torch.set_num_threads(threads)
    torch._inductor.config.freezing = True  # weights become constants, packed for the CPU
    manifest = artefact.read(folder, verify=False)
    family = models.build(manifest.model.family, manifest.model.arch)
    layout, memory = Layout(manifest.tensors), np.fromfile(folder / FILE, np.uint8)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    weights = {name: torch.from_numpy(layout.view(memory, name)).to(dtype) for name in manifest.tensors}
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal((1, *family.latent), np.float32))
    labels = torch.tensor([LABEL, family.null_label], dtype=torch.int32)
    guidance = (SCALE - 1) * torch.tensor(manifest.guidance.channels(4)).reshape(1, -1, 1, 1)
    denoiser = Denoiser(family, weights, compiled)
    del l2c_export
    return lambda: denoiser.steps(manifest.calls, noise, labels, guidance)


class Process:
    """A contender, started at once, asked later."""

    def __init__(self, name: str, args: argparse.Namespace, root: Path) -> None:
        words = [sys.executable, __file__, "--worker", name, "--root", str(root), "--threads", str(args.threads)]
        self.name = name
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def started(self) -> bool:
        return self.process.stdout.readline().strip() == "ready"

    def ask(self, what: str):
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def stop(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def measure(names: list[str], root: Path, args: argparse.Namespace) -> tuple[dict, dict]:
    """Interleaved rounds: the seconds of every call, by contender and round; and the loops' overheads."""
    started = time.perf_counter()
    processes = [Process(name, args, root) for name in names]
    for process in list(processes):
        if process.started():
            print(f"{process.name} is ready after {time.perf_counter() - started:.0f} s", file=sys.stderr)
        else:
            print(f"{process.name} did not start: left out", file=sys.stderr)
            processes.remove(process)
    for process in processes:  # one more image each, alone: the first were made side by side
        process.ask(f"pin {' '.join(map(str, args.cores))}" if args.cores else "image")
    times = {process.name: [] for process in processes}
    for _ in range(args.rounds):
        for process in random.sample(processes, len(processes)):
            time.sleep(0.2)  # let the last contender's threads stop spinning
            times[process.name].append(process.ask("image"))
    overheads = {}
    for process in processes:
        time.sleep(0.2)
        overheads[process.name] = process.ask("overhead")
        process.stop()
    return times, {name: value for name, value in overheads.items() if value is not None}


def summary(times: dict[str, list[list[float]]], base: str) -> list[dict]:
    """Per contender: seconds per image and of its cached calls, and ratios to the two PyTorch loops."""
    total = {name: [sum(calls) for calls in rounds] for name, rounds in times.items()}
    cached = {name: [sum(calls[1::2]) for calls in rounds] for name, rounds in times.items()}

    def ratio(to: str, name: str, of: dict[str, list[float]]) -> float | None:
        pairs = zip(of[to], of[name], strict=True) if to in of else ()
        return statistics.median([a / b for a, b in pairs]) if to in of else None

    return [
        {
            "contender": name,
            "median_s": statistics.median(total[name]),
            "min_s": min(total[name]),
            "max_s": max(total[name]),
            "cached_calls_s": statistics.median(cached[name]),
            f"times_{base}": ratio(base, name, total),
            f"times_{base}-cached": ratio(f"{base}-cached", name, total),
            "cached_calls_times_onnxruntime": ratio("onnxruntime", name, cached),
        }
        for name in times
    ]


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    return model + "".join(f", {f}" for f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f in flags)


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
    ap.add_argument("--worker", help=argparse.SUPPRESS)
    return ap.parse_args()


def main() -> None:
    args = parse()
    if args.worker:
        return worker(args.worker, args.root, args.threads)
    names = [name for name in CONTENDERS if any(fnmatch.fnmatch(name, pattern) for pattern in args.only)]
    with tempfile.TemporaryDirectory() as tmp:
        root = args.root or Path(tmp)
        root.mkdir(parents=True, exist_ok=True)
        compile_all(root, names, args.model, args.profile)
        times, overheads = measure(names, root, args)
    rows = summary(times, "pytorch")
    result = {
        "command": "python scripts/bench_cpu.py " + " ".join(sys.argv[1:]),
        "cpu": cpu_name(),
        "threads": args.threads,
        "versions": {p: installed(p) for p in ("torch", "onnxruntime", "openvino", "numpy")},
        "model": f"{args.model}, random weights, 1 image with guidance, DDIM {2 * len(args.profile)}",
        "results": rows,
        "loop_overhead": overheads,
        "seconds_per_call": times,
    }
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    print_results(result)
    return None


def installed(package: str) -> str | None:
    try:
        return version(package)
    except ModuleNotFoundError:
        return None


def print_results(result: dict) -> None:
    from l2c_export.console import print_table

    def times(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}x"

    table = [("contender", "median s", "fastest s", "vs PyTorch", "vs PyTorch cached", "cached calls s", "vs ONNX Runtime")]
    for row in result["results"]:
        name, median, fastest, _, vs, vs_cached, cached, vs_ort = (row[k] for k in (
            "contender", "median_s", "min_s", "max_s", "times_pytorch", "times_pytorch-cached", "cached_calls_s",
            "cached_calls_times_onnxruntime"))  # fmt: skip
        table.append((name, f"{median:.3f}", f"{fastest:.3f}", times(vs), times(vs_cached), f"{cached:.3f}", times(vs_ort)))
    print_table(f"{result['model']}, {result['cpu']}, {result['threads']} threads", table)
    for name, value in result["loop_overhead"].items():
        print(f"{name}: the loop adds {value:.1%} to its engine runs")


if __name__ == "__main__":
    main()
