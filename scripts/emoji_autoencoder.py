"""The autoencoder of the demo in colour: 128 px of colour to 16 x 16 cells of 8 numbers, and back.

An `AutoencoderKL` of diffusers. It is trained on the pictures moved and scaled a little, by the absolute error of the
colours and of their differences from neighbour to neighbour (edges); the latents are decoded with some noise in them, as
a transformer's will be.
"""

from __future__ import annotations

import time

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional

CONFIG = {
    "in_channels": 3, "out_channels": 3, "latent_channels": 8, "block_out_channels": [48, 96, 128, 128], "layers_per_block": 1,
    "norm_num_groups": 16, "sample_size": 128, "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}  # fmt: skip
RATE, WARMUP, AVERAGE, CLIP, BATCH = 4e-4, 200, 0.998, 1.0, 64
EDGES, DIVERGENCE, NOISE = 1.0, 1e-6, 0.1
LOOK_EVERY = 10


def moved(pixels: Tensor, generator: torch.Generator, scale: float = 0.15, shift: float = 0.08) -> Tensor:
    """Pictures (N, 3, H, W) in -1 .. 1 on white, each made smaller and moved a little at random."""
    n, device = len(pixels), pixels.device
    draw = torch.rand(n, 3, generator=generator, device=device)
    size = 1 / (1 - scale * draw[:, 0])
    place = torch.zeros(n, 2, 3, device=device)
    place[:, 0, 0] = place[:, 1, 1] = size
    place[:, :, 2] = (2 * draw[:, 1:] - 1) * shift
    grid = functional.affine_grid(place, list(pixels.shape), align_corners=False)
    return functional.grid_sample(pixels - 1, grid, mode="bilinear", padding_mode="zeros", align_corners=False) + 1


def edges(pixels: Tensor) -> tuple[Tensor, Tensor]:
    return pixels[..., 1:] - pixels[..., :-1], pixels[..., 1:, :] - pixels[..., :-1, :]


def error(model: AutoencoderKL, pixels: Tensor) -> Tensor:
    seen = model.encode(pixels).latent_dist
    latents = seen.sample()
    latents = latents + NOISE * latents.std().detach() * torch.rand(
        len(latents), 1, 1, 1, device=latents.device
    ) * torch.randn_like(latents)
    picture = model.decode(latents).sample.float()
    loss = (picture - pixels).abs().mean() + DIVERGENCE * seen.kl().mean()
    for a, b in zip(edges(picture), edges(pixels), strict=True):
        loss = loss + EDGES * (a - b).abs().mean()
    return loss


def train(images: Tensor, seconds: float, device: torch.device, batch: int = BATCH) -> tuple[AutoencoderKL, dict[str, float]]:
    """Of images (N, H, W, 3) of uint8: an autoencoder (averaged) whose scaling_factor makes the latents' deviation 1."""
    torch.manual_seed(0)
    half = device.type == "cuda"
    model = AutoencoderKL(**CONFIG).to(device, memory_format=torch.channels_last)
    average = {n: w.detach().clone() for n, w in model.state_dict().items()}
    optimiser = torch.optim.AdamW(model.parameters(), RATE, betas=(0.9, 0.99), weight_decay=0.0, fused=half or None)
    generator = torch.Generator(device).manual_seed(0)
    started, step, recent, done = time.perf_counter(), 0, 0.0, 0.0
    while done < 1:
        rows = torch.randint(len(images), (batch,), generator=generator, device=device)
        pixels = moved(as_float(images[rows]), generator).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            loss = error(model, pixels)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimiser.step()
        step += 1
        rate = min(AVERAGE, (1 + step) / (10 + step))
        now = model.state_dict()
        torch._foreach_lerp_(list(average.values()), [now[n] for n in average], 1 - rate)
        if step % LOOK_EVERY == 0:
            recent = loss.item()
            done = (time.perf_counter() - started) / seconds
            for group in optimiser.param_groups:
                group["lr"] = RATE * min(1.0, step / WARMUP) * max(0.02, 1 - done**2)
            if step % (50 * LOOK_EVERY) == 0:
                print(f"autoencoder: step {step}, {done:.0%}, loss {recent:.4f}", flush=True)
    model.load_state_dict(average)
    model.eval()
    latents = encode(model, images[:: max(1, len(images) // 1000)])
    model.register_to_config(scaling_factor=float(1 / latents.std()))
    return model, {"steps": step, "images": step * batch, "loss": recent, "error": reconstruction(model, images[::16])}


def as_float(images: Tensor) -> Tensor:
    """(N, H, W, 3) of uint8 to (N, 3, H, W) in -1 .. 1."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def encode(model: AutoencoderKL, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """The latents' means (N, 8, 16, 16), unscaled, of the pictures as they are, or moved."""
    parts = map(as_float, images.split(128))
    return torch.cat([model.encode(moved(p, generator) if generator else p).latent_dist.mean for p in parts])


@torch.no_grad()
def reconstruction(model: AutoencoderKL, images: Tensor) -> float:
    """The root of the mean squared error of what comes back, of a range of 2."""
    return float((model.decode(encode(model, images)).sample - as_float(images)).square().mean().sqrt())
