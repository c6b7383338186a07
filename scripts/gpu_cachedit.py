#!/usr/bin/env python3
"""diffusers' DiT-XL/2 with cache-dit on a GPU, random weights: a loop of DDIM with guidance, as the pipeline runs it.

    python scripts/gpu_cachedit.py --images 1 8 --how eager default --mask 10 --json cachedit.json

cache-dit (github.com/vipshop/cache-dit) reuses the stack's residual; --mask 10 of 20 steps computes every second one, and
without --mask it decides from how much the residual changed, which for random weights says nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from gpu_check import LABEL, SCALE, log, timed_pytorch

DIT_XL = {"num_layers": 28, "num_attention_heads": 16, "attention_head_dim": 72, "in_channels": 4, "out_channels": 8,
          "patch_size": 2, "sample_size": 32, "num_embeds_ada_norm": 1000, "norm_type": "ada_norm_zero",
          "activation_fn": "gelu-approximate", "attention_bias": True}  # fmt: skip


def transformer(config: dict, device: str, dtype: torch.dtype):
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(0)
    return DiTTransformer2DModel(**config).to(device, dtype).eval()


def caching(model, steps: int, computed: int):
    """cache-dit over the model's blocks: `computed` of the steps, evenly spread, all others reuse the residual."""
    import cache_dit
    from cache_dit.caching.patch_functors import DiTPatchFunctor

    mask = [int(n * computed // steps != (n - 1) * computed // steps) for n in range(steps)]
    adapter = cache_dit.BlockAdapter(
        pipe=None, transformer=model, blocks=model.transformer_blocks, forward_pattern=cache_dit.ForwardPattern.Pattern_3,
        patch_functor=DiTPatchFunctor(),
    )  # fmt: skip
    config = cache_dit.DBCacheConfig(
        Fn_compute_blocks=1, Bn_compute_blocks=0, max_warmup_steps=1, num_inference_steps=steps, steps_computation_mask=mask,
        steps_computation_policy="static",
        enable_separate_cfg=False,
    )  # fmt: skip
    cache_dit.enable_cache(adapter, cache_config=config)
    return mask


def image(model, images: int, steps: int, mask: list[int] | None, device: str, dtype: torch.dtype):
    """A function that makes some latents."""
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(clip_sample=False)
    side = model.config.sample_size
    x0 = torch.randn(images, 4, side, side, device=device, dtype=dtype)
    labels = torch.tensor([LABEL % model.config.num_embeds_ada_norm] * images + [model.config.num_embeds_ada_norm] * images,
                          device=device)  # fmt: skip

    @torch.no_grad()
    def run():
        if mask:
            import cache_dit

            cache_dit.refresh_context(model, num_inference_steps=steps, verbose=False)
        scheduler.set_timesteps(steps, device=device)
        x = x0
        for t in scheduler.timesteps:
            rows = torch.cat([x, x])
            prediction = model(rows, timestep=t.expand(len(rows)), class_labels=labels).sample[:, :4]
            asked, without = prediction.chunk(2)
            x = scheduler.step(without + SCALE * (asked - without), t, x).prev_sample
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--images", type=int, nargs="+", default=[1, 8])
    ap.add_argument("--how", nargs="+", default=["eager", "default"])
    ap.add_argument("--steps", type=int, default=20)
    ap.add_argument("--mask", type=int, help="steps that are computed; without it nothing is cached")
    ap.add_argument("--rounds", type=int, default=10)
    ap.add_argument("--tiny", action="store_true", help="two narrow blocks on the CPU: whether it runs at all")
    ap.add_argument("--json", type=Path)
    args = ap.parse_args()
    device, dtype = ("cpu", torch.float32) if args.tiny else ("cuda", torch.float16)
    config = DIT_XL | ({"num_layers": 3, "num_attention_heads": 2, "attention_head_dim": 8} if args.tiny else {})
    results: dict[str, object] = {}
    for how in args.how:
        torch.compiler.reset()
        model = transformer(config, device, dtype)
        mask = caching(model, args.steps, args.mask) if args.mask else None
        if how != "eager":
            model.compile(mode=None if how == "default" else how)
        for images in args.images:
            name = f"{'cache-dit' if mask else 'diffusers'} {how} {images}"
            try:
                run = image(model, images, args.steps, mask, device, dtype)
                results[name] = timed_pytorch(run, args.rounds)
            except Exception as error:
                results[name] = f"{type(error).__name__}: {error}"[:300]
            log(f"{name}: {results[name]}")
    if args.json:
        command = "python scripts/gpu_cachedit.py " + " ".join(sys.argv[1:])
        args.json.write_text(json.dumps({"command": command, "mask": mask, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
