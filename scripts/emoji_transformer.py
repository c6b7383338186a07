"""The transformer of the demo in colour: a small PixArt of diffusers that reads the tokens of a small BERT.

It predicts v (arXiv 2202.00512) of latents in the noise schedule that the sampler uses; one caption in ten is empty, for
guidance. All captions' tokens are encoded beforehand; the encoder is not trained.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import DDIMScheduler, PixArtTransformer2DModel
from torch import Tensor

TOKENS = 32
CONFIG = {
    "num_attention_heads": 5, "attention_head_dim": 64, "in_channels": 8, "out_channels": 8, "num_layers": 8,
    "cross_attention_dim": 320, "sample_size": 16, "patch_size": 2, "caption_channels": 384, "use_additional_conditions": False,
    "interpolation_scale": 1,
}  # fmt: skip
SCHEDULER = {
    "num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear",
    "prediction_type": "v_prediction",
}  # fmt: skip
RATE, WARMUP, AVERAGE, CLIP, BATCH, DROPPED = 6e-4, 1000, 0.9995, 1.0, 1024, 0.1
LOOK_EVERY = 10


class Texts(NamedTuple):
    """Captions by their numbers; number 0 is the empty one."""

    states: Tensor  # (captions, TOKENS, 384) in half precision
    masks: Tensor  # (captions, TOKENS) of bool


class Subjects(NamedTuple):
    """What is drawn: latents of every picture in some placements, and the captions that it has."""

    latents: Tensor  # (pictures, placements, 8, 16, 16), scaled
    captions: Tensor  # (pictures, most captions) of numbers, repeated to the width
    weights: Tensor  # (pictures,)


@torch.no_grad()
def encode(captions: list[str], tokenizer: Any, encoder: torch.nn.Module, device: torch.device) -> Texts:
    """The last hidden states of all captions, padding included."""
    states, masks = [], []
    for start in range(0, len(captions), 4096):
        part = captions[start : start + 4096]
        ids = tokenizer(part, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt").to(device)
        seen = encoder(ids["input_ids"], attention_mask=ids["attention_mask"]).last_hidden_state
        states.append(seen.half())
        masks.append(ids["attention_mask"].bool())
    return Texts(torch.cat(states), torch.cat(masks))


class Trainer:
    """AdamW on v, with an average of the weights; what it has learned is kept in a file, from which it goes on."""

    def __init__(self, subjects: Subjects, texts: Texts, device: torch.device, batch: int = BATCH) -> None:
        torch.manual_seed(0)
        self.subjects, self.texts, self.device, self.batch = subjects, texts, device, batch
        self.alpha = DDIMScheduler(**SCHEDULER).alphas_cumprod.to(device)
        self.model = PixArtTransformer2DModel(**CONFIG).to(device)
        self.average = {n: w.detach().clone() for n, w in self.model.state_dict().items()}
        self.half = device.type == "cuda"
        self.optimiser = torch.optim.AdamW(
            self.model.parameters(), RATE, betas=(0.9, 0.99), weight_decay=0.01, fused=self.half or None
        )
        self.generator = torch.Generator(device).manual_seed(1)
        self.steps, self.spent = 0, 0.0

    def drawn(self) -> tuple[Tensor, Tensor]:
        """Scaled latents (B, 8, 16, 16), and the numbers of their captions."""
        pick = torch.multinomial(self.subjects.weights, self.batch, replacement=True, generator=self.generator)
        draw = torch.rand(self.batch, 3, generator=self.generator, device=self.device)
        _, placements = self.subjects.latents.shape[:2]
        latents = self.subjects.latents[pick, (draw[:, 0] * placements).long()].float()
        captions = self.subjects.captions[pick, (draw[:, 1] * self.subjects.captions.shape[1]).long()]
        return latents, torch.where(draw[:, 2] < DROPPED, 0, captions)

    def error(self) -> Tensor:
        latents, captions = self.drawn()
        # a timestep in every slice of the range: the loss varies less
        even = torch.rand(self.batch, generator=self.generator, device=self.device) + torch.arange(
            self.batch, device=self.device
        )
        t = (even * (len(self.alpha) / self.batch)).long().clamp(max=len(self.alpha) - 1)
        signal, noise_share = (part.sqrt()[:, None, None, None] for part in (self.alpha[t], 1 - self.alpha[t]))
        noise = torch.randn(latents.shape, generator=self.generator, device=self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            seen = call(self.model, signal * latents + noise_share * noise, t, self.texts, captions)
        return (seen.float() - (signal * noise - noise_share * latents)).square().mean()

    def step(self) -> Tensor:
        loss = self.error()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimiser.step()
        self.steps += 1
        rate = min(AVERAGE, (1 + self.steps) / (10 + self.steps))
        now = self.model.state_dict()
        torch._foreach_lerp_(list(self.average.values()), [now[n] for n in self.average], 1 - rate)
        return loss

    def train(self, seconds: float, until: float) -> float:
        """Goes on to `until` of the `seconds` that the whole takes.  The last loss, a mean over some steps."""
        begun, recent = time.perf_counter() - self.spent, 0.0
        while self.spent < until:
            loss = self.step().detach()
            recent = loss if self.steps % LOOK_EVERY == 1 else 0.9 * recent + 0.1 * loss
            if self.steps % LOOK_EVERY == 0:
                self.spent = time.perf_counter() - begun
                done = min(1.0, self.spent / seconds)
                for group in self.optimiser.param_groups:
                    group["lr"] = RATE * min(1.0, self.steps / WARMUP) * max(0.01, 0.5 + 0.5 * math.cos(math.pi * done))
                if self.steps % (100 * LOOK_EVERY) == 0:
                    print(f"transformer: step {self.steps}, {done:.0%}, loss {float(recent):.4f}", flush=True)
        return float(recent)

    def save(self, file: Path) -> None:
        state = {"model": self.model.state_dict(), "average": self.average, "optimiser": self.optimiser.state_dict()}
        torch.save({**state, "steps": self.steps, "spent": self.spent}, file)

    def go_on(self, file: Path) -> None:
        state = torch.load(file, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.average, self.steps, self.spent = state["average"], state["steps"], state["spent"]
        self.generator.manual_seed(self.steps)

    def averaged(self) -> PixArtTransformer2DModel:
        model = PixArtTransformer2DModel(**CONFIG).to(self.device)
        model.load_state_dict(self.average)
        return model.eval()


def call(model: PixArtTransformer2DModel, x: Tensor, t: Tensor, texts: Texts, captions: Tensor) -> Tensor:
    sizes = {"resolution": None, "aspect_ratio": None}
    return model(
        x, encoder_hidden_states=texts.states[captions].to(x.dtype), encoder_attention_mask=texts.masks[captions].to(x.dtype),
        timestep=t, added_cond_kwargs=sizes, return_dict=False,
    )[0]  # fmt: skip


@torch.no_grad()
def draw(model: PixArtTransformer2DModel, texts: Texts, captions: Tensor, scale: float, steps: int, seed: int = 0) -> Tensor:
    """Scaled latents of some captions, by DDIM with guidance."""
    device = texts.states.device
    scheduler = DDIMScheduler(**SCHEDULER, timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=True)
    scheduler.set_timesteps(steps)
    x = torch.randn(len(captions), 8, 16, 16, generator=torch.Generator().manual_seed(seed)).to(device)
    both = torch.cat([captions, torch.zeros_like(captions)])
    for t in scheduler.timesteps:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            seen, plain = call(model, torch.cat([x, x]), t.expand(len(both)).to(device), texts, both).float().chunk(2)
        x = scheduler.step(plain + scale * (seen - plain), t, x).prev_sample
    return x
