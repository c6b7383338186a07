#!/usr/bin/env python3
"""Everything that needs a GPU, in one go: golden cases through a backend, and full-size models against PyTorch.

    python scripts/gpu_check.py export OUT --model DiT-XL/2 --router ROUTER.pt      where torch and onnx are
    python scripts/gpu_check.py parity ROOT --cases CASES --json parity.json        where the backend is
    python scripts/gpu_check.py builds OUT/cached --batch 1:1:8 --json builds.json  where the backend is
    python scripts/gpu_check.py engines OUT --images 1 8 --json engines.json        where the backend is
    python scripts/gpu_check.py pytorch OUT --images 1 8 --json pytorch.json        where torch is

ROOT holds an artefact of every recorded case, compiled from its router, model and weights: CASE/cached and, with --no-cache,
CASE/full; CASES the cases (tests/cases).  `export` writes OUT/cached and OUT/uncached with random weights; `builds` needs none.
Each command prints what it found and writes it as JSON.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import numpy as np

import l2c_export
from l2c_export.backends.descriptors import built

LABEL, SCALE = 207, 4.0
TWO_RUNS = 1e-4  # how far two launches of one graph may be apart: some kernels add in any order


def export(args: argparse.Namespace) -> dict:
    """A model of full size with random weights, and its uncached twin."""
    common = {"model": args.model, "precision": args.precision, "bf16": args.bf16, "batch": max(args.images), "report": log}
    cached = l2c_export.compile(args.router, weights="random:0", out=args.folder / "cached", **common)
    # what is stored in e4m3 is no checkpoint
    weights = "random:0" if args.precision == "fp8" else cached.path / "weights.safetensors"
    l2c_export.compile(args.router, weights=weights, out=args.folder / "uncached", cache=False, **common)
    return {}


def parity(args: argparse.Namespace) -> dict:
    """Every step of the recorded runs, fed the recorded latents; the largest error as a share of max(1, max|x|)."""
    outcomes: dict[str, object] = {}
    started = time.perf_counter()
    part, parts = map(int, args.shard.split("/"))
    for folder in sorted(args.folder.glob("*/*/"))[part::parts]:
        name = f"{folder.parent.name}/{folder.name}"
        if time.perf_counter() - started > args.seconds:
            log(f"{name}: not reached in {args.seconds} s")
            continue
        try:
            if args.backend in built():
                build(folder, args)
            outcomes[name] = worst_step(folder, args.cases / folder.parent.name, args.backend)
        except Exception as error:  # every case is reported
            outcomes[name] = f"{type(error).__name__}: {error}"
            if args.verbose:
                traceback.print_exc()
        log(f"{name}: {outcomes[name]}")
    errors = [e for e in outcomes.values() if isinstance(e, float)]
    log(f"{len(errors)} of {len(outcomes)} ran, worst {max(errors, default=float('nan')):.1e}")
    return outcomes


def worst_step(folder: Path, case: Path, backend: str) -> float:
    config, golden = json.loads((case / "config.json").read_text()), np.load(case / "golden.npz")
    count, scale = config["batch"], config["cfg"]["scale"]
    scale = 1.0 if scale is None else 1.0 + scale if config["family"] == "uvit" else scale
    want = golden["cached_x" if folder.name == "cached" else "full_x"][:, :count]
    errors = []

    def fed(pipe, step, timestep, values):
        errors.append(float(np.abs(values["latents"] - want[step]).max() / max(1.0, np.abs(want[step]).max())))
        return {"latents": want[step]}

    pipe = l2c_export.load(folder, backend=backend, device="cuda")
    pipe(golden["y"][:count].tolist(), scale, latents=golden["x_T"][:count], callback_on_step_end=fed)
    free = pipe(golden["y"][:count].tolist(), scale, latents=golden["x_T"][:count])
    again = pipe(golden["y"][:count].tolist(), scale, latents=golden["x_T"][:count])
    repeats = float(np.abs(free.latents - again.latents).max())
    if not repeats <= TWO_RUNS:
        raise AssertionError(f"two runs of one CUDA graph differ by {repeats:.1e}, fed errors {errors}")
    return max(errors)


def engines(args: argparse.Namespace) -> dict:
    """Build, load and time the cached artefact and its uncached twin."""
    results: dict[str, object] = {}
    if args.backend == "torch":
        from torch_backend import use_torch

        use_torch()
    for name in args.twins:
        folder = args.folder / name
        result: dict[str, object] = {}
        results[name] = result
        try:
            if args.backend in built():
                manifest = build(folder, args).manifest
                record = next(b for b in manifest.builds.values() if b.backend == args.backend)
                result["engines"] = len(record.engines)
                result["plan_bytes"] = sum(manifest.files[f].bytes for f in record.engines.values())
            load = functools.partial(l2c_export.load, folder, backend=args.backend, device="cuda", link=args.link)
            pipe = None  # of the twin before
            result["first_load_s"] = seconds(load)
            gc.collect()
            before = free_memory()
            started = time.perf_counter()
            pipe = load()
            result["load_s"] = time.perf_counter() - started
            pipe([LABEL], SCALE)
            result["load_to_first_latents_s"] = time.perf_counter() - started
            result["backend"] = pipe.backend
            result["weight_bytes"] = pipe.manifest.files["weights.safetensors"].bytes
            for images in args.images:
                result[f"{images} images"] = timed_images(pipe, images, args.rounds, before)
            if args.generations:
                result["memory_grew_by"] = growth(pipe, args.images[0], args.generations)
        except Exception as error:
            result["error"] = f"{type(error).__name__}: {error}"
            traceback.print_exc()
        log(json.dumps(result))
    return results


def build(folder: Path, args: argparse.Namespace) -> l2c_export.Artefact:
    return l2c_export.build(folder, args.backend, level=args.level, batch=args.batch, report=log)


def builds(args: argparse.Namespace) -> dict:
    """Seconds of the command `l2c build`, its start included: with nothing kept, with a timing cache, with everything."""
    words = [sys.executable, "-m", "l2c_export", "build", str(args.folder), "--backend", args.backend]
    words += ["--batch", args.batch] if args.batch else []
    words += ["--optimization-level", str(args.level)] if args.level is not None else []
    with tempfile.TemporaryDirectory() as cache:
        run = functools.partial(subprocess.run, words, check=True, env={**os.environ, "L2C_CACHE": cache})
        times = {"cold_s": seconds(run)}
        shutil.rmtree(Path(cache) / "plans")
        times["with_timing_cache_s"] = seconds(run)
        times["with_plans_s"] = seconds(run)
    return times


def timed_images(pipe, images: int, rounds: int, before: int) -> dict:
    labels, noise = [(LABEL + i) % 1000 for i in range(images)], pipe.noise(images, 0)
    first = seconds(lambda: pipe(labels, SCALE, latents=noise))
    whole = [seconds(lambda: pipe(labels, SCALE, latents=noise)) for _ in range(rounds)]
    generation = pipe.generation(pipe.inputs(labels), SCALE, images)
    loop = generation.loop
    return {
        "first_s": first,
        "median_ms": 1e3 * statistics.median(whole),
        "min_ms": 1e3 * min(whole),
        "device_bytes": before - free_memory(),
        "calls_ms": [1e3 * s for s in loop.timed(noise, generation.inputs, generation.guidance)],
    }


def growth(pipe, images: int, generations: int) -> dict:
    """Bytes of the device and of this process that so many generations took, after ten to begin with."""
    from resource import RUSAGE_SELF, getrusage

    labels = [LABEL] * images
    for n in range(10):
        pipe(labels, SCALE, seed=n)
    device, process = free_memory(), getrusage(RUSAGE_SELF).ru_maxrss
    for n in range(generations):
        pipe(labels, SCALE, seed=n)
    return {"generations": generations, "images": images, "device_bytes": device - free_memory(),
            "process_bytes": 1024 * (getrusage(RUSAGE_SELF).ru_maxrss - process)}  # fmt: skip


def free_memory() -> int:
    from cuda.bindings import runtime as cudart

    return int(cudart.cudaMemGetInfo()[1])


def pytorch(args: argparse.Namespace) -> dict:
    """The same weights, calls and images in PyTorch: eager, and torch.compile in one mode or another."""
    import torch

    from l2c_export.models import families
    from l2c_export.pytorch.stored import stored

    results: dict[str, object] = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
    for name in args.twins:
        folder = args.folder / name
        manifest = l2c_export.Artefact.read(folder).manifest
        family = families.build(manifest.denoiser.family, manifest.denoiser.arch)
        weights = {n: w.cuda() for n, w in stored(folder, manifest).items()}
        calls = manifest.program().calls
        for how in args.how:
            denoiser = pytorch_loop(family, weights, how, keeps=name == "cached")
            for images in args.images:
                x = torch.randn((images, *family.latent), device="cuda")
                labels = torch.tensor(
                    [LABEL] * images + [family.inputs[0].unconditional] * images, dtype=torch.int32, device="cuda"
                )
                strength = torch.tensor(manifest.guidance.channels(family.latent[0]), device="cuda").reshape(1, -1, 1, 1)

                def image(d=denoiser, x=x, labels=labels, guidance=(SCALE - 1) * strength, calls=calls):
                    d(calls, x, {"class_labels": labels}, guidance)
                    torch.cuda.synchronize()

                key = f"{name} {how} {images}"
                try:
                    results[key] = timed_pytorch(image, args.rounds)
                except Exception as error:
                    results[key] = f"{type(error).__name__}: {error}"[:300]
                log(f"{key}: {results[key]}")
    return results


def pytorch_loop(family, weights, how: str, keeps: bool):
    """A loop in eager PyTorch, or in a mode of torch.compile; CUDA graphs overwrite what they returned before."""
    import torch

    from l2c_export.pytorch.eager import Denoiser, tensorwise

    class Cloned(Denoiser):
        def _evaluate(self, *inputs):
            torch.compiler.cudagraph_mark_step_begin()
            noise, values = super()._evaluate(*inputs)
            return noise.clone(), {name: tensorwise(torch.clone, value) for name, value in values.items()}

    if how == "eager":
        return Denoiser(family, weights)
    graphs = how in ("reduce-overhead", "max-autotune")
    return (Cloned if graphs and keeps else Denoiser)(family, weights, True, None if how == "default" else how)


def timed_pytorch(image, rounds: int) -> dict:
    """Wall time of an image, and how long the GPU computed for one."""
    first = seconds(image)
    image()
    times = [seconds(image) for _ in range(rounds)]
    return {"first_s": first, "median_ms": 1e3 * statistics.median(times), "min_ms": 1e3 * min(times), "gpu_ms": busy(image)}


def busy(image) -> float | None:
    """Milliseconds of all kernels of an image; None where the profiler sees none."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        image()
    return sum(event.self_device_time_total for event in seen.key_averages()) / 1e3 or None


def seconds(work) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def log(line: object) -> None:
    print(line, file=sys.stderr, flush=True)


COMMANDS = {"export": export, "parity": parity, "builds": builds, "engines": engines, "pytorch": pytorch}


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("what", choices=COMMANDS)
    ap.add_argument("folder", type=Path)
    ap.add_argument("--model", default="DiT-XL/2")
    ap.add_argument("--router")
    ap.add_argument("--precision", default="fp16")
    ap.add_argument("--bf16", nargs="*", default=[], help="sublayers of fp8 that stay in bf16")
    ap.add_argument("--images", type=int, nargs="+", default=[1])
    ap.add_argument("--twins", nargs="+", default=["cached", "uncached"])
    ap.add_argument("--how", nargs="+", default=["eager", "default"], help="pytorch: eager, or modes of torch.compile")
    ap.add_argument("--cases", type=Path)
    ap.add_argument("--backend", default="tensorrt", help="or tensorrt-rtx, cuda, onnxruntime, torch (torch_backend.py)")
    ap.add_argument("--link", help="engines, onnxruntime: shared or static")
    ap.add_argument("--level", type=int)
    ap.add_argument("--batch", help="MIN:OPT:MAX images that the engines are built for")
    ap.add_argument("--rounds", type=int, default=10)
    ap.add_argument("--generations", type=int, default=0, help="engines: draw so often, and tell by how much memory grew")
    ap.add_argument("--shard", default="0/1", help="parity: every Nth case, from the Ith on: I/N")
    ap.add_argument("--seconds", type=float, default=1e9, help="parity: start no case after this")
    ap.add_argument("--json", type=Path)
    ap.add_argument("-v", "--verbose", action="store_true")
    args = ap.parse_args()
    results = COMMANDS[args.what](args)
    result = {"command": "python scripts/gpu_check.py " + " ".join(sys.argv[1:]), "results": results}
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
