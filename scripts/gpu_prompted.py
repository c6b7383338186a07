#!/usr/bin/env python3
"""Text-to-image transformers of full size, with random weights, beside diffusers on a GPU.

    python scripts/gpu_prompted.py compile OUT --model pixart-sigma            where torch and diffusers are
    python scripts/gpu_prompted.py fill OUT
    python scripts/gpu_prompted.py ours OUT/every2 --backend tensorrt          where the backend is
    python scripts/gpu_prompted.py diffusers OUT/model --schedule OUT/every2/schedule.json --compile     where torch is

`compile` writes OUT/model, a folder that holds configurations alone, and OUT/every1 and OUT/every2 without weights; `fill`
gives these random ones.  A generation is timed from embeddings to latents, the loop alone, as diffusers' pipelines run it;
every command prints lines of JSON.  `device_mib` is all that a process has taken of the GPU when its last generation is done.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

    from l2c_export.weights.layout import Layout

RUNS, WARM = 5, 2
SECONDS = 20.0  # of all of these, where a generation is slow; it is run twice at least
BLOCK = 2**22 + 1  # random numbers that follow each other in every weight, so that 24 GB are written as fast as a disk is
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15,
        "base_image_seq_len": 256, "max_image_seq_len": 4096, "shift": 3.0}  # fmt: skip
# name: pipeline, transformer, its configuration, scheduler, steps, pixels, latents' channels, guidance
MODELS = {
    "pixart-sigma": (
        "PixArtSigmaPipeline", "PixArtTransformer2DModel",
        {"sample_size": 128, "num_layers": 28, "num_attention_heads": 16, "attention_head_dim": 72, "in_channels": 4,
         "out_channels": 8, "cross_attention_dim": 1152, "caption_channels": 4096, "patch_size": 2, "interpolation_scale": 2,
         "use_additional_conditions": False},
        {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver++", "solver_order": 2}, 20, 1024, 4, 4.5,
    ),
    "flux": (
        "FluxPipeline", "FluxTransformer2DModel",
        {"in_channels": 64, "num_layers": 19, "num_single_layers": 38, "attention_head_dim": 128, "num_attention_heads": 24,
         "joint_attention_dim": 4096, "pooled_projection_dim": 768, "guidance_embeds": True, "axes_dims_rope": [16, 56, 56]},
        FLOW, 28, 1024, 16, 3.5,
    ),
}  # fmt: skip


def compile_(args: argparse.Namespace) -> None:
    import l2c_export

    pipeline, kind, config, scheduler, steps, pixels, *_ = MODELS[args.model]
    folder = args.folder / "model"
    parts = {
        "transformer/config.json": {"_class_name": kind, **config},
        "scheduler/scheduler_config.json": scheduler,
        "model_index.json": {
            "_class_name": pipeline,
            "transformer": ["diffusers", kind],
            "scheduler": ["diffusers", scheduler["_class_name"]],
        },
    }
    for name, part in parts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(part))
    for schedule in args.schedules:
        started = time.perf_counter()
        asked = {"steps": steps, "size": (pixels, pixels), "precision": args.precision, "weights": "none"}
        artefact = l2c_export.compile(f"every:{schedule}", model=folder, **asked,
                                      out=args.folder / f"every{schedule}")  # fmt: skip
        print(json.dumps({"compiled": str(artefact.path), "seconds": round(time.perf_counter() - started, 1)}))


def fill(args: argparse.Namespace) -> None:
    """Random weights for every artefact of a folder: one file for those whose weights lie in the same places."""
    import msgspec

    from l2c_export.artefact import integrity, store
    from l2c_export.artefact.records import FILE, FileInfo, WeightsRecord
    from l2c_export.weights.layout import WEIGHTS, Layout

    numbers = np.random.default_rng(0).standard_normal(BLOCK, np.float32) * np.float32(0.02)
    written: dict[bytes, tuple[Path, FileInfo]] = {}
    for folder in sorted(args.folder.glob("every*")):
        said: dict[str, object] = {"filled": str(folder)}
        manifest = store.read(folder, verify=False)
        layout, path = Layout(manifest.denoiser.tensors), folder / WEIGHTS
        with timed(said, "seconds"):
            path.unlink(missing_ok=True)
            if layout.header in written:
                os.link(written[layout.header][0], path)
            else:
                scatter(path, layout, numbers)
                written[layout.header] = path, integrity.info(path)
            weights, files = WeightsRecord(source="random"), {**manifest.files, WEIGHTS: written[layout.header][1]}
            denoiser = msgspec.structs.replace(manifest.denoiser, weights=weights)
            store.write_json(folder / FILE, msgspec.structs.replace(manifest, denoiser=denoiser, files=files))
        print(json.dumps(said))


def scatter(path: Path, layout: Layout, numbers: np.ndarray) -> None:
    """The file of a layout, of these numbers again and again; norms are around 1."""
    blocks: dict[tuple[str, bool], memoryview] = {}
    with open(path, "wb") as file:
        file.write(layout.header)
        for name, entry in layout.entries.items():
            is_norm = "norm" in name and name.endswith(".weight")
            if (entry.dtype, is_norm) not in blocks:
                blocks[entry.dtype, is_norm] = memoryview((numbers + is_norm).astype(entry.dtype).view(np.uint8))
            block = blocks[entry.dtype, is_norm]
            for first in range(0, entry.bytes, len(block)):
                file.write(block[: entry.bytes - first])


def ours(args: argparse.Namespace) -> None:
    import l2c_export
    from l2c_export.artefact import store
    from l2c_export.backends.descriptors import built

    said: dict[str, object] = {"engines": str(args.engines), "backend": args.backend}
    before, manifest = used(), store.read(args.engines, verify=False)
    if args.backend in built() and not any(build.backend == args.backend for build in manifest.builds.values()):
        with timed(said, "build_s"):  # in a process of its own, whose memory is not counted
            words = [sys.executable, "-m", "l2c_export", "build", str(args.engines), "--backend", args.backend]
            subprocess.run(words, check=True, stdout=sys.stderr)
    with timed(said, "load_s"):
        pipe = l2c_export.load(args.engines, backend=args.backend, device="cuda", verify=False)
    request = numbers(pipe)
    first = time.perf_counter()
    latents = pipe(**request).latents
    said["first_ms"] = round(1000 * (time.perf_counter() - first))
    said["finite"] = bool(np.isfinite(latents).all())
    said |= spread(lambda: pipe(**request))
    said["weights_mib"] = round((args.engines / "weights.safetensors").stat().st_size / 2**20)
    said["device_mib"] = used() - before
    print(json.dumps(said))


def numbers(pipe: object) -> dict[str, np.ndarray]:
    """A request of one image whose embeddings are random."""
    generator, request = np.random.default_rng(0), {}
    for declared in (field for field in pipe.manifest.inputs if field.known == "request"):
        shape = (1, *declared.shape)
        whole = declared.dtype == "int32"
        for name in [declared.name, *([f"negative_{declared.name}"] if declared.guides else [])]:
            request[name] = np.ones(shape, np.int32) if whole else generator.standard_normal(shape).astype(np.float32)
    return request | {"seed": 0}


def diffusers_(args: argparse.Namespace) -> None:
    import diffusers
    import torch

    from l2c_export.schedules.schedule import Schedule

    index = json.loads((args.folder / "model_index.json").read_text())
    model_name = next(name for name, of in MODELS.items() if of[0] == index["_class_name"])
    _, kind, config, _, steps, pixels, channels, scale = MODELS[model_name]
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[args.precision]
    said: dict[str, object] = {
        "diffusers": kind,
        "compile": args.compile,
        "schedule": str(args.schedule),
        "precision": args.precision,
    }
    before = used()
    with timed(said, "load_s"), torch.device("cuda"):
        torch.set_default_dtype(dtype)
        model = getattr(diffusers, kind)(**config).eval()
        torch.set_default_dtype(torch.float32)
    scheduler = getattr(diffusers, index["scheduler"][1]).from_pretrained(args.folder / "scheduler")
    if args.schedule:
        cached(model, Schedule.read(args.schedule))
    if args.compile == "blocks":
        model.compile_repeated_blocks(fullgraph=True)
    called = torch.compile(model, mode=args.compile) if args.compile not in ("", "blocks") else model
    side = pixels // 8
    x0 = torch.randn(1, channels, side, side, device="cuda", dtype=dtype)
    if model_name == "flux":
        places = torch.zeros(side // 2, side // 2, 3, device="cuda", dtype=dtype)
        places[..., 1] += torch.arange(side // 2, device="cuda")[:, None]
        places[..., 2] += torch.arange(side // 2, device="cuda")[None]
        fixed = {"encoder_hidden_states": torch.randn(1, 512, 4096, device="cuda", dtype=dtype),
                 "img_ids": places.reshape(-1, 3),
                 "pooled_projections": torch.randn(1, 768, device="cuda", dtype=dtype), "return_dict": False,
                 "txt_ids": torch.zeros(512, 3, device="cuda", dtype=dtype),
                 "guidance": torch.full((1,), scale, device="cuda", dtype=torch.float32)}  # fmt: skip
        x0 = torch.randn(1, (side // 2) ** 2, 4 * channels, device="cuda", dtype=dtype)
    else:
        fixed = {"encoder_hidden_states": torch.randn(2, 300, 4096, device="cuda", dtype=dtype), "return_dict": False,
                 "encoder_attention_mask": torch.ones(2, 300, device="cuda", dtype=dtype),
                 "added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}  # fmt: skip

    def loop() -> torch.Tensor:
        model.calls = -1
        if model_name == "flux":
            scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=1.15, device="cuda")
        else:
            scheduler.set_timesteps(steps, device="cuda")
        x = x0
        for t in scheduler.timesteps:
            model.calls += 1
            if model_name == "flux":
                prediction = called(hidden_states=x, timestep=t.expand(1).to(dtype) / 1000, **fixed)[0]
            else:
                prediction = called(torch.cat([x, x]), timestep=t.expand(2), **fixed)[0].chunk(2, dim=1)[0]
                without, asked = prediction.chunk(2)
                prediction = without + scale * (asked - without)
            x = scheduler.step(prediction, t, x, return_dict=False)[0].clone()
        torch.cuda.synchronize()
        return x

    first = time.perf_counter()
    with torch.no_grad():
        latents = loop()
        said["first_ms"] = round(1000 * (time.perf_counter() - first))
        said["finite"] = bool(latents.isfinite().all())
        said |= spread(loop)
    said["torch_mib"] = round(torch.cuda.max_memory_allocated() / 2**20)
    said["device_mib"] = used() - before
    print(json.dumps(said))


def cached(model: object, schedule: object) -> None:
    """Hooks as eager implementations have them: what a call reuses is not run."""
    modules, kept = dict(model.named_modules()), {}
    for column, name in enumerate(schedule.sublayers):
        computed = [column in call.computed for call in schedule.calls]

        def run(*positional: object, forward=modules[name].forward, name=name, computed=computed, **named: object) -> object:
            if computed[model.calls]:
                kept[name] = forward(*positional, **named)
            return kept[name]

        modules[name].forward = run


@contextlib.contextmanager
def timed(said: dict[str, object], name: str) -> Iterator[None]:
    """Seconds of a block, noted under a name."""
    started = time.perf_counter()
    yield
    said[name] = round(time.perf_counter() - started, 1)


def spread(run: Callable[[], object]) -> dict[str, float]:
    """Milliseconds of several runs; how many of them counted."""
    seconds: list[float] = []
    began = time.perf_counter()
    while len(seconds) < WARM + RUNS and (len(seconds) < WARM or time.perf_counter() - began < SECONDS):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    counted = seconds[WARM:] or seconds[1:]  # one that is as long as these is warm after the first, which came before
    return {"median_ms": round(1000 * statistics.median(counted), 1), "min_ms": round(1000 * min(counted), 1),
            "runs": len(counted)}  # fmt: skip


def used() -> int:
    """MiB of the first GPU."""
    asked = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"]
    return int(subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("compile")
    one.add_argument("folder", type=Path)
    one.add_argument("--model", choices=MODELS, required=True)
    one.add_argument("--schedules", type=int, nargs="+", default=[1, 2])
    one.set_defaults(run=compile_)
    two = commands.add_parser("ours")
    two.add_argument("engines", type=Path)
    two.add_argument("--backend", required=True)
    two.set_defaults(run=ours)
    four = commands.add_parser("fill")
    four.add_argument("folder", type=Path)
    four.set_defaults(run=fill)
    three = commands.add_parser("diffusers")
    three.add_argument("folder", type=Path)
    three.add_argument("--schedule", type=Path)
    three.add_argument("--compile", nargs="?", const="default", default="", help="a mode, or blocks: one by one")
    three.set_defaults(run=diffusers_)
    for command in (one, three):
        command.add_argument("--precision", default="fp16", choices=["fp16", "bf16"])
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
