#!/usr/bin/env python3
"""Trains the demo model, a small class-conditional DiT that draws digits, in minutes on one GPU.

    python scripts/train_demo.py --data digits.npz --out l2c_export/demo --minutes 4

`digits.npz` comes from scripts/digits.py.  The network is the compiler's own (l2c_export/models/dit.py); the noise
schedule is that of the DDIM sampler; the loss is the mean squared error of the predicted noise.  Written are config.json,
model.safetensors (averaged weights, float16), classifier.safetensors (scripts/classifier.py), samples.png (a row per class)
and training.json.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path

import classifier
import digits
import metrics
import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sampling import grid, noise_of, sample
from torch import Tensor

from l2c_export import Schedule
from l2c_export.models import families
from l2c_export.models.family import Family
from l2c_export.pytorch.eager import Denoiser, Eager

ARCH = {"input_size": 28, "patch_size": 4, "in_channels": 1, "hidden_size": 128, "depth": 12, "num_heads": 4,
        "mlp_ratio": 4.0, "class_dropout_prob": 0.1, "num_classes": 10, "learn_sigma": False}  # fmt: skip
ALPHA = np.cumprod(1.0 - np.linspace(1e-4, 0.02, 1000))  # of the linear schedule that samplers.ddim respaces
RATE, WARMUP, AVERAGE, CLIP = 1e-3, 500, 0.9995, 1.0
LOOK_EVERY = 50  # iterations between two looks at the clock
SCALES, EVALUATED = (1.0, 1.5, 2.0, 3.0), 5000


class Trainer:
    """AdamW on the noise prediction, with label dropout and an average of the weights.

    On a GPU one iteration, from drawing the batch to the average, is one CUDA graph; `learning` and `mixing` are the
    inputs that change.
    """

    def __init__(self, family: Family, data: digits.Digits, batch: int, device: torch.device, compiled: bool,
                 graphed: bool) -> None:  # fmt: skip
        self.family, self.batch, self.device = family, batch, device
        family.frequencies = family.frequencies.to(device)  # a graph cannot copy from the host
        self.images, self.labels = (torch.from_numpy(part).to(device) for part in data[:2])
        self.alpha = torch.from_numpy(ALPHA).float().to(device)
        self.rows = torch.arange(batch, dtype=torch.int32, device=device)
        self.weights = {n: w.to(device).requires_grad_() for n, w in initial(family.tensors()).items()}
        self.average = {n: w.detach().clone() for n, w in self.weights.items()}
        self.learning, self.mixing = (torch.zeros((), device=device) for _ in range(2))
        self.recent = torch.ones((), device=device)  # a running mean of the loss
        gpu = device.type == "cuda"
        self.optimiser = torch.optim.AdamW(
            self.weights.values(), self.learning, betas=(0.9, 0.99), weight_decay=0.0, fused=gpu or None, capturable=gpu
        )
        self.loss = torch.compile(self.error, dynamic=False) if compiled else self.error
        self.step = self.captured() if gpu and graphed else self.iterate

    def error(self, weights: dict[str, Tensor], x0: Tensor, t: Tensor, y: Tensor, noise: Tensor) -> Tensor:
        """Mean squared error of the noise that the model sees in x0 at timestep t.  The large products run in bfloat16."""
        alpha = self.alpha[t][:, None, None, None]
        cast = {n: w.bfloat16() if n.startswith("blocks.") and "adaLN" not in n else w for n, w in weights.items()}
        run = Eager(self.family, cast, frozenset(), {}, {})
        seen = self.family.call(run, alpha.sqrt() * x0 + (1 - alpha).sqrt() * noise, self.rows, t.float(), {"class_labels": y})
        return (seen[:, : x0.shape[1]] - noise).square().mean()

    def iterate(self) -> None:
        self.optimiser.zero_grad(set_to_none=True)
        loss = self.loss(self.weights, *self.drawn())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.weights.values(), CLIP)
        self.optimiser.step()
        with torch.no_grad():
            averages, now = list(self.average.values()), list(self.weights.values())
            difference = torch._foreach_sub(now, averages)
            torch._foreach_mul_(difference, self.mixing)
            torch._foreach_add_(averages, difference)
            self.recent += 0.01 * (loss.detach() - self.recent)

    def drawn(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A batch: images, timesteps, labels (some of them dropped) and noise."""
        index = torch.randint(len(self.images), (self.batch,), device=self.device)
        x0, y = classifier.scaled(self.images[index]), self.labels[index].int()
        dropped = torch.rand(self.batch, device=self.device) < self.family.arch.class_dropout_prob
        y = y.masked_fill(dropped, self.family.inputs[0].unconditional)
        t = torch.randint(len(ALPHA), (self.batch,), device=self.device)
        return x0, t, y, torch.randn_like(x0)

    def captured(self):
        """One iteration as a CUDA graph (pytorch.org: CUDA semantics, whole-network capture)."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # compiles, and makes the optimiser's state; the learning rate is still 0
            for _ in range(5):
                self.iterate()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        self.optimiser.zero_grad(set_to_none=True)
        with torch.cuda.graph(graph):
            self.iterate()
        return graph.replay

    def train(self, seconds: float, most: int, started: float) -> dict[str, float]:
        """Until `seconds` after `started`, or for `most` iterations; the learning rate falls to 0 by then (half a cosine)."""
        done, progress, first = 0, 0.0, time.perf_counter()
        while progress < 1:
            for _ in range(min(LOOK_EVERY, most - done)):
                self.learning.fill_(RATE * min(1.0, (done + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * progress)))
                self.mixing.fill_(1 - min(AVERAGE, (1 + done) / (10 + done)))
                self.step()
                done += 1
            loss = float(self.recent)  # waits for the device
            if not math.isfinite(loss):
                raise SystemExit(f"the loss is {loss} after {done} iterations: use a lower learning rate")
            now = time.perf_counter()
            progress = max(done / most, (now - first) / max(seconds - (first - started), 1.0))
            if done % (40 * LOOK_EVERY) == 0 or progress >= 1:
                log(f"{done} iterations, {done / (now - first):.1f}/s, {progress:.0%}, loss {loss:.5f}")
        return {"iterations": done, "per_second": done / (now - first), "loss": loss}


def initial(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """DiT's initialisation: Xavier for products, normal for embeddings, zero for what modulates and for the last layer."""
    tensors = {}
    for name, shape in shapes.items():
        value = torch.zeros(shape)
        if name.startswith(("t_embedder", "y_embedder", "pos_embed")) and not name.endswith("bias"):
            torch.nn.init.normal_(value, std=0.02)
        elif name.endswith("weight") and "adaLN" not in name and not name.startswith("final_layer"):
            torch.nn.init.xavier_uniform_(value.view(shape[0], -1))
        tensors[name] = value
    return tensors


def evaluate(denoiser: Denoiser, judge: classifier.Classifier, data: digits.Digits, count: int, device: torch.device) -> dict:
    """Accuracy on the asked class and Frechet distance to the test images, uncached, 20 steps, by guidance scale."""
    full = Schedule.every(1, family="dit", steps=20, columns=len(denoiser.family.sublayers))
    real, _ = classifier.examine(judge, classifier.scaled(torch.from_numpy(data.test_images).to(device)))
    labels = torch.arange(count, device=device) % denoiser.family.inputs[0].choices
    noise = noise_of(denoiser.family.latent, range(count), device)
    scores = {}
    for scale in SCALES:
        samples = sample(denoiser, full, noise, labels, scale)
        features, seen = classifier.examine(judge, samples)
        scores[scale] = {"accuracy": float((seen == labels).double().mean()), "frechet": metrics.frechet(real, features)}
        log(f"guidance {scale}: {scores[scale]}")
    return scores


def draw(denoiser: Denoiser, path: Path, device: torch.device) -> None:
    """A row per class, 8 samples each for every guidance scale, side by side."""
    full = Schedule.every(1, family="dit", steps=20, columns=len(denoiser.family.sublayers))
    labels = torch.arange(denoiser.family.inputs[0].choices, device=device).repeat_interleave(8)
    noise = noise_of(denoiser.family.latent, range(len(labels)), device)
    parts = [grid(sample(denoiser, full, noise, labels, scale), 8) for scale in SCALES]
    gap = np.full((parts[0].shape[0], 8), 128, np.uint8)
    picture = np.concatenate([piece for part in parts for piece in (part, gap)][:-1], axis=1)
    Image.fromarray(picture).save(path)


def log(line: object) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--data", type=Path, required=True)
    ap.add_argument("--out", type=Path, required=True)
    ap.add_argument("--minutes", type=float, default=4.0, help="for the diffusion model, its compilation included")
    ap.add_argument("--iterations", type=int, default=10**9, help="at most")
    ap.add_argument("--batch", type=int, default=512)
    ap.add_argument("--epochs", type=int, default=12, help="of the classifier")
    ap.add_argument("--evaluate", type=int, default=EVALUATED, help="images, per guidance scale")
    ap.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True, help="the loss, by torch.compile")
    ap.add_argument("--graph", action=argparse.BooleanOptionalAction, default=True, help="a CUDA graph, on a GPU")
    args = ap.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")
    args.out.mkdir(parents=True, exist_ok=True)
    data = digits.load(args.data)
    torch.manual_seed(0)

    started = time.perf_counter()
    family = families.build("dit", ARCH)
    trainer = Trainer(family, data, args.batch, device, args.compile, args.graph)
    size = sum(w.numel() for w in trainer.weights.values())
    log(f"{size / 1e6:.2f} M weights; ready in {time.perf_counter() - started:.1f} s")
    result = trainer.train(60 * args.minutes, args.iterations, started)
    (args.out / "config.json").write_text(json.dumps({"family": "dit", "arch": ARCH}, indent=1) + "\n")
    save_file({n: w.half().contiguous().cpu() for n, w in trainer.average.items()}, args.out / "model.safetensors")

    judge = classifier.train(data, device, args.epochs)
    classifier.save(judge, args.out / "classifier.safetensors")
    judge = classifier.load(args.out / "classifier.safetensors", device)
    result["classifier_accuracy"] = classifier.accuracy(judge, data, device)
    log(f"classifier: {result['classifier_accuracy']:.2%} of the test images")
    weights = {n: w.float().to(device) for n, w in load_file(args.out / "model.safetensors").items()}
    denoiser = Denoiser(family, weights)
    draw(denoiser, args.out / "samples.png", device)
    result |= {"batch": args.batch, "minutes": (time.perf_counter() - started) / 60, "torch": torch.__version__,
               "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
               "guidance": evaluate(denoiser, judge, data, args.evaluate, device)}  # fmt: skip
    (args.out / "training.json").write_text(json.dumps(result, indent=1) + "\n")
    log(json.dumps(result))


if __name__ == "__main__":
    main()
