#!/usr/bin/env python3
"""What do products in e4m3 cost in quality?  The demo in fp32 and in fp8, by the same noise and labels.

    python scripts/quality_fp8.py --data digits.npz       digits.npz is from scripts/digits.py

The artefact in fp8 is compiled here; its products are emulated in PyTorch, to the rounding of e4m3, the rest is float32.
Measured as in quality.py, over several seeds; intervals are 95 % t-intervals, of the difference paired.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import classifier
import digits
import torch
from metrics import frechet
from quality import summary
from sampling import noise_of, sample

import l2c_export
from l2c_export import Schedule, demo
from l2c_export.artefact.products import input_scales, own_biases
from l2c_export.models import families
from l2c_export.models.primitives import quantise
from l2c_export.pytorch.calibrate import InE4m3
from l2c_export.pytorch.eager import Denoiser
from l2c_export.pytorch.stored import stored
from l2c_export.verification.products import lossy
from l2c_export.weights import e4m3

HERE = Path(__file__).parent
NEAREST = "fp8, weights to the nearest"
LOSSY = "fp8, those in bf16 that verify finds"
KEPT = {  # the sublayers that stay in bf16, of every contender
    "fp8": ("-",),
    LOSSY: ("-",),  # in an artefact of their own
    NEAREST: ("-",),
    "fp8, first block in bf16": ("blocks.0.",),
    "fp8, first and last block in bf16": ("blocks.0.", "blocks.11."),
    "fp8, first two and last two blocks in bf16": ("blocks.0.", "blocks.1.", "blocks.10.", "blocks.11."),
    "fp8, attention in bf16": tuple(f"blocks.{n}.attn." for n in range(12)),
    "fp8, MLPs in bf16": tuple(f"blocks.{n}.mlp." for n in range(12)),
}


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--data", type=Path, required=True)
    ap.add_argument("--classifier", type=Path, default=HERE / "results" / "classifier.safetensors")
    ap.add_argument("--count", type=int, default=5000, help="images of a seed")
    ap.add_argument("--seeds", type=int, default=5)
    ap.add_argument("--scale", type=float, default=1.5)
    ap.add_argument("--batch", type=int, default=250)
    ap.add_argument("--only", nargs="+", default=["fp8"], choices=KEPT, help="contenders beside fp32")
    ap.add_argument("--json", type=Path, default=HERE / "results" / "demo_fp8.json")
    args = ap.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data, judge = digits.load(args.data), classifier.load(args.classifier, device)
    real = classifier.examine(judge, classifier.scaled(torch.from_numpy(data.test_images).to(device)))[0]
    schedule = Schedule.read(demo.SCHEDULES["demo"])
    labels = torch.arange(args.count, device=device) % 10
    seeds: dict[str, list[dict[str, float]]] = {}
    models = denoisers(device, args.only)
    with torch.no_grad():
        for seed in range(args.seeds):
            noise = noise_of((1, 28, 28), range(seed * args.count, (seed + 1) * args.count), device)
            for name, model in models.items():
                started = time.perf_counter()
                features, seen = classifier.examine(judge, sample(model, schedule, noise, labels, args.scale, args.batch))
                accuracy = float((seen == labels).double().mean())
                seeds.setdefault(name, []).append({"frechet": frechet(real, features), "accuracy": accuracy})
                print(f"{name}, seed {seed}: {seeds[name][-1]}, {time.perf_counter() - started:.1f} s", flush=True)
            result = {"setting": {"images": args.count, "seeds": seed + 1, "guidance_scale": args.scale}, "contenders": {}}
            for name, entries in seeds.items():
                entry = {m: summary([one[m] for one in entries]) for m in ("frechet", "accuracy")}
                pairs = zip(entries, seeds["fp32"], strict=True)
                apart = [one["frechet"] - other["frechet"] for one, other in pairs]
                result["contenders"][name] = {**entry, "difference": summary(apart), "seeds": entries}
            args.json.write_text(json.dumps(result, indent=1) + "\n")


def denoisers(device: torch.device, only: list[str]) -> dict[str, Denoiser]:
    """The demo in fp32, and with the weights, the scales and the products of artefacts in fp8."""
    config = json.loads(demo.CONFIG.read_text())
    family = families.build(config["family"], config["arch"])
    with tempfile.TemporaryDirectory() as folder:
        exact, _, _ = compiled(Path(folder) / "fp32", device, precision="fp32")
        tensors, scales, biases = compiled(Path(folder) / "fp8", device, precision="fp8")
        losses = lossy(Path(folder) / "fp8")
        print(losses.summary, flush=True)
        apart = compiled(Path(folder) / "kept", device, precision="fp8", bf16=losses.bf16)[:2]
    models = {"fp32": Denoiser(family, exact)}
    for name, kept in KEPT.items():
        own = {n: exact.get(n, tensor) if n.startswith(kept) else tensor for n, tensor in tensors.items()}
        if name == NEAREST:
            own |= {n: nearest(exact[n]) for n in scales}
            own |= {n: exact[n].to(tensors[n].dtype) for n in biases}  # which make up for others
        narrow = {n: scale for n, scale in scales.items() if not n.startswith(kept)}
        own, narrow = apart if name == LOSSY else (own, narrow)
        models[name] = Denoiser(family, InE4m3(own, torch.float32, narrow))
    return {name: model for name, model in models.items() if name == "fp32" or not only or name in only}


def compiled(out: Path, device: torch.device, **options: Any) -> tuple[dict[str, torch.Tensor], dict[str, str], dict[str, str]]:
    """The demo's tensors as an artefact has them, by weight the scale of what is multiplied, and the biases of products."""
    artefact = l2c_export.compile(model=demo.NAME, out=out, **options)
    tensors = {name: tensor.to(device) for name, tensor in stored(artefact.path, artefact.manifest).items()}
    return tensors, input_scales(artefact.manifest), own_biases(artefact.manifest)


def nearest(weight: torch.Tensor) -> torch.Tensor:
    """A matrix as e4m3 stores every number of it by itself."""
    scale = torch.from_numpy(e4m3.scale_of(float(weight.abs().max()))).to(weight.device)
    return quantise(weight, scale).to(weight.dtype) * scale[0]


if __name__ == "__main__":
    main()
