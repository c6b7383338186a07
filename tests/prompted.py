"""Random pipelines of diffusers that take prompts, small enough to be compiled in a test; and their caching by hooks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch

TOKENS, STEPS, SCALE = 6, 4, 4.0
SIDE = 8  # of the latents


def autoencoder() -> diffusers.AutoencoderKL:
    return diffusers.AutoencoderKL(
        block_out_channels=(8,) * 4, layers_per_block=1, norm_num_groups=4, latent_channels=4, sample_size=64,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip


def all_matter(model: torch.nn.Module) -> torch.nn.Module:
    """Norms, biases and tables of their usual values would hide errors."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def pixart(folder: Path, layers: int = 3, heads: int = 4, width: int = 12) -> Path:
    """A PixArt-Sigma, saved."""
    torch.manual_seed(0)
    transformer = diffusers.PixArtTransformer2DModel(
        num_attention_heads=heads, attention_head_dim=width, in_channels=4, out_channels=8, num_layers=layers,
        cross_attention_dim=heads * width, sample_size=SIDE, caption_channels=24, use_additional_conditions=False,
    )  # fmt: skip
    scheduler = diffusers.DPMSolverMultistepScheduler(algorithm_type="dpmsolver++", solver_order=2)
    return saved(folder, "PixArtSigmaPipeline", all_matter(transformer), scheduler)


def saved(folder: Path, kind: str, transformer: Any, scheduler: Any) -> Path:
    """The folder of a pipeline as its `save_pretrained` writes it, which needs a text encoder."""
    parts = {"transformer": transformer, "scheduler": scheduler, "vae": autoencoder()}
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    index = {name: ["diffusers", type(part).__name__] for name, part in parts.items()}
    (folder / "model_index.json").write_text(json.dumps({"_class_name": kind, **index}))
    return folder


@torch.no_grad()
def pixart_images(folder: Path, noise: torch.Tensor, request: dict[str, torch.Tensor], schedule: Any) -> np.ndarray:
    """Latents by diffusers' own modules and the loop of its pipeline."""
    model = diffusers.PixArtTransformer2DModel.from_pretrained(folder / "transformer").eval()
    scheduler = diffusers.DPMSolverMultistepScheduler.from_pretrained(folder / "scheduler")
    Cached(model, schedule)
    embeds, mask = (torch.cat([request[f"negative_{name}"], request[name]]) for name in ("prompt_embeds", "prompt_attention_mask"))
    scheduler.set_timesteps(schedule.steps)
    x = noise * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        rows = scheduler.scale_model_input(torch.cat([x, x]), t)
        made = model(rows, encoder_hidden_states=embeds, encoder_attention_mask=mask, timestep=t.expand(len(rows)),
                     added_cond_kwargs={"resolution": None, "aspect_ratio": None}, return_dict=False)[0]  # fmt: skip
        without, asked = made.chunk(2)
        guided, _ = (without + SCALE * (asked - without)).chunk(2, dim=1)  # the variance is not used
        x = scheduler.step(guided, t, x, return_dict=False)[0]
    return x.numpy()


def pixart_request(images: int) -> dict[str, torch.Tensor]:
    """Prompts of several lengths."""
    generator = torch.Generator().manual_seed(5)
    asked, without = (torch.randn(images, TOKENS, 24, generator=generator) for _ in range(2))
    mask, empty = torch.zeros(images, TOKENS, dtype=torch.int64), torch.zeros(images, TOKENS, dtype=torch.int64)
    for n in range(images):
        mask[n, : 3 + 2 * n] = 1
    empty[:, :1] = 1
    return {"prompt_embeds": asked, "prompt_attention_mask": mask, "negative_prompt_embeds": without,
            "negative_prompt_attention_mask": empty}  # fmt: skip


class Cached:
    """Forward hooks on the named modules of a transformer: a reused one does not run, its last output stands in."""

    def __init__(self, transformer: torch.nn.Module, schedule: Any) -> None:
        self.call, self.ran = -1, 0
        names = schedule.sublayers
        self._reused: list[set[str]] = [{names[n] for n in call.reused} for call in schedule.calls]
        self._kept: dict[str, Any] = {}
        modules = dict(transformer.named_modules())
        for name in names:
            modules[name].forward = self._wrapped(name, modules[name].forward)
        transformer.forward = self._counted(transformer.forward)

    def _wrapped(self, name: str, forward: Any) -> Any:
        def run(*given: Any, **named: Any) -> Any:
            if name not in self._reused[self.call]:
                self._kept[name] = forward(*given, **named)
                self.ran += 1
            return self._kept[name]

        return run

    def _counted(self, forward: Any) -> Any:
        def run(*given: Any, **named: Any) -> Any:
            self.call += 1
            return forward(*given, **named)

        return run


def error(made: np.ndarray, wanted: np.ndarray) -> float:
    """The largest difference, as a share of the largest value."""
    return float(np.abs(made - wanted).max() / np.abs(wanted).max())
