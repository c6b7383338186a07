#!/usr/bin/env python3
"""DiT-S/2 on a CPU: PyTorch, torch.compile and our engines, side by side.

    python scripts/bench_cpu.py --threads 2 --rounds 5 --json scripts/results/cpu.json

One image with guidance (batch 2), 20 DDIM steps, float32, random weights, and a fixed schedule with the profile
of the released DDIM-20 router.  Every contender has its own process; in every round each makes one image, in a new order, while
the others sleep on a pipe.  Reported: the median over the rounds, and the median of the ratios within a round.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

# computed sublayers, of 24, in the ten cached calls, by ascending timestep
PROFILE = (24, 24, 24, 24, 23, 11, 3, 2, 0, 0)
STEPS, COLUMNS, LABEL, SCALE = 20, 24, 207, 4.0

# what is compiled: folder -> options that differ from the default
ARTEFACTS = {
    "ours": {},
    "ours-uncached": {"cache": False},
    "ours-no-fold": {"fold": False},
    "ours-no-hoist": {"hoist": False},
    "ours-static": {"link": "static"},
}
# contender -> (the artefact that it runs or takes its weights from, how)
CONTENDERS = {
    "pytorch": ("ours-uncached", "eager"),
    "pytorch-cached": ("ours", "eager"),
    "torch-compile": ("ours-uncached", "compile"),
    "torch-compile-cached": ("ours", "compile"),
    **{name: (name, "engine") for name in ARTEFACTS},
}


def ddim20_like():
    """The fixed schedule: evenly spread sublayers, as many as PROFILE says."""
    from l2c_export.schedule import Source, make

    computed = [range(COLUMNS)] * STEPS
    for row, count in zip(range(0, STEPS, 2), PROFILE, strict=True):
        computed[STEPS - 1 - row] = [int((j + 0.5) * COLUMNS / count) for j in range(count)]
    return make("dit", "ddim", STEPS, COLUMNS, computed, source=Source(rule="ddim20-profile"))


def compile_all(root: Path, names: set[str]) -> None:
    from l2c_export.compile import compile_artefact
    from l2c_export.options import Options

    (root / "schedule.json").write_bytes(ddim20_like().to_json())
    for name in sorted(names):
        options = {"schedule": str(root / "schedule.json"), "out": root / name, "model": "DiT-S/2", "weights": "random:0"}
        compile_artefact(Options(**options, **ARTEFACTS[name]))


def worker(name: str, root: Path, threads: int) -> None:
    """Make one image for every line on stdin, and print its seconds."""
    artefact, how = CONTENDERS[name]
    image = (engine if how == "engine" else pytorch)(root / artefact, threads, how == "compile")
    for _ in range(2):
        image()
    print("ready", flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        image()
        print(time.perf_counter() - started, flush=True)


def engine(folder: Path, threads: int, _compiled: bool):
    import l2c_export

    pipe = l2c_export.load(folder, threads=threads)
    return lambda: pipe(class_labels=[LABEL], guidance_scale=SCALE, seed=0)


def pytorch(folder: Path, threads: int, compiled: bool):
    import torch

    import l2c_export
    from l2c_export import artefact, models
    from l2c_export.models.eager import Denoiser
    from l2c_export.weights import FILE, Layout

    torch.set_num_threads(threads)
    manifest = artefact.read(folder, verify=False)
    family = models.build(manifest.model.family, manifest.model.arch)
    layout, memory = Layout(manifest.tensors), np.fromfile(folder / FILE, np.uint8)
    weights = {name: torch.from_numpy(layout.view(memory, name)) for name in manifest.tensors}
    noise = torch.from_numpy(l2c_export.load(folder, threads=1).noise(1, 0))
    labels = torch.tensor([LABEL, family.null_label], dtype=torch.int32)
    guidance = (SCALE - 1) * torch.tensor(manifest.guidance.channels(4)).reshape(1, -1, 1, 1)
    denoiser = Denoiser(family, weights, compiled)
    return lambda: denoiser(manifest.calls, noise, labels, guidance)


def measure(names: list[str], root: Path, threads: int, rounds: int) -> dict[str, list[float]]:
    """Interleaved rounds; the processes stay alive and sleep while others run."""
    processes = {}
    for name in names:
        words = [sys.executable, __file__, "--worker", name, "--root", str(root), "--threads", str(threads)]
        processes[name] = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if processes[name].stdout.readline().strip() != "ready":
            raise SystemExit(f"{name} did not start")
        print(f"{name} is ready", file=sys.stderr)
    times = {name: [] for name in names}
    for _ in range(rounds):
        for name in random.sample(names, len(names)):
            time.sleep(0.2)  # let the last contender's threads stop spinning
            processes[name].stdin.write("go\n")
            processes[name].stdin.flush()
            times[name].append(float(processes[name].stdout.readline()))
    for process in processes.values():
        process.stdin.close()
        process.wait()
    return times


def summary(times: dict[str, list[float]], base: str) -> list[dict]:
    rows = []
    for name, values in times.items():
        ratios = [b / v for b, v in zip(times[base], values, strict=True)]
        cached = [b / v for b, v in zip(times.get("pytorch-cached", values), values, strict=True)]
        row = {"contender": name, "median_s": statistics.median(values), "min_s": min(values), "max_s": max(values)}
        rows.append({**row, f"times_{base}": statistics.median(ratios), "times_pytorch-cached": statistics.median(cached)})
    return rows


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    return model + "".join(f", {f}" for f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f in flags)


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--rounds", type=int, default=5)
    ap.add_argument("--only", nargs="*", default=list(CONTENDERS), choices=list(CONTENDERS))
    ap.add_argument("--json", type=Path)
    ap.add_argument("--root", type=Path, help="keep the artefacts here")
    ap.add_argument("--worker", help=argparse.SUPPRESS)
    args = ap.parse_args()
    if args.worker:
        return worker(args.worker, args.root, args.threads)
    names = list(dict.fromkeys(["pytorch", "pytorch-cached", *args.only]))
    with tempfile.TemporaryDirectory() as tmp:
        root = args.root or Path(tmp)
        root.mkdir(parents=True, exist_ok=True)
        compile_all(root, {CONTENDERS[n][0] for n in names})
        times = measure(names, root, args.threads, args.rounds)
    rows = summary(times, "pytorch")
    result = {
        "command": "python scripts/bench_cpu.py " + " ".join(sys.argv[1:]),
        "cpu": cpu_name(),
        "threads": args.threads,
        "versions": {p: version(p) for p in ("torch", "onnxruntime", "numpy")},
        "model": "DiT-S/2, random weights, fp32, 1 image with guidance, DDIM 20",
        "results": rows,
        "seconds": times,
    }
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    from l2c_export.cli import print_table

    table = [(r["contender"], f"{r['median_s']:.3f}", f"{r['min_s']:.3f}", f"{r['times_pytorch']:.2f}x",
              f"{r['times_pytorch-cached']:.2f}x") for r in rows]  # fmt: skip
    head = ("contender", "median s", "fastest s", "vs PyTorch", "vs PyTorch cached")
    print_table(f"{result['model']}, {result['cpu']}, {args.threads} threads", [head, *table])
    return None


if __name__ == "__main__":
    main()
