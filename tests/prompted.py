"""Random pipelines of diffusers that take prompts, small enough to be compiled in a test; and the same by diffusers' modules.

The loops are those of diffusers' pipelines, which cannot be called without a text encoder; models and schedulers are its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import numpy as np
import torch

from l2c_export.schedules.forecast import COMPUTED
from l2c_export.schedules.resolve import resolve
from l2c_export.schedules.schedule import Schedule

TOKENS, STEPS, SCALE = 6, 4, 4.0
HEIGHT, WIDTH = 8, 12  # of the latents
PIXELS = (8 * HEIGHT, 8 * WIDTH)
Tensors = Mapping[str, torch.Tensor]


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


def saved(folder: Path, kind: str, transformer: torch.nn.Module, scheduler: Any) -> Path:
    """The folder of a pipeline, as its `save_pretrained` writes it."""
    parts = {"transformer": all_matter(transformer), "scheduler": scheduler, "vae": autoencoder()}
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    index = {name: ["diffusers", type(part).__name__] for name, part in parts.items()}
    (folder / "model_index.json").write_text(json.dumps({"_class_name": kind, **index}))
    return folder


class Cached:
    """Hooks on the named modules of a transformer: one that is derived does not run, a sum of its outputs stands in."""

    def __init__(self, transformer: torch.nn.Module, schedule: Schedule) -> None:
        self.call = -1
        names = schedule.sublayers
        self._terms = resolve(schedule.cacheable, schedule.calls)
        self._kept: dict[tuple[str, int], Any] = {}
        modules = dict(transformer.named_modules())
        for name in names:
            modules[name].forward = self._wrapped(name, modules[name].forward)
        for level in schedule.values.levels:
            self._span(transformer, level, schedule.values.span(level))
        transformer.forward = self._counted(transformer.forward)

    def _wrapped(self, name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*positional: Any, **named: Any) -> Any:
            terms = self._terms[self.call].get(name, COMPUTED)  # inside of a level it does not matter
            if terms == COMPUTED:
                self._kept[name, self.call] = forward(*positional, **named)
                return self._kept[name, self.call]
            return summed([(c, self._kept[name, self.call - age]) for age, c in terms])

        return run

    def _span(self, transformer: torch.nn.Module, level: str, blocks: range) -> None:
        """What enters the first of the blocks, and what the block behind them or the head reads: the picture's stream, and
        between FLUX's single blocks the prompt's, too.
        """
        single = list(getattr(transformer, "single_transformer_blocks", ()))
        double = getattr(transformer, "transformer_blocks", None) or transformer.joint_transformer_blocks
        readers = [*double, *single, transformer.norm_out]
        names = ("encoder_hidden_states", "hidden_states") if readers[blocks.stop] in single else ("hidden_states",)
        begun: list[torch.Tensor] = []

        def begin(_: torch.nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
            begun[:] = [named[name] if name in named else positional[0] for name in names]

        def end(
            _: torch.nn.Module, positional: tuple[Any, ...], named: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            behind = [named[name] if name in named else positional[0] for name in names]
            terms = self._terms[self.call].get(level, COMPUTED)
            if terms == COMPUTED:
                self._kept[level, self.call] = tuple(after - before for after, before in zip(behind, begun, strict=True))
                return positional, named
            added = summed([(c, self._kept[level, self.call - age]) for age, c in terms])
            behind = [before + value for before, value in zip(begun, added, strict=True)]
            by_name = {name: value for name, value in zip(names, behind, strict=True) if name in named}
            return positional if by_name else (behind[0], *positional[1:]), named | by_name

        readers[blocks.stop].register_forward_pre_hook(end, with_kwargs=True)
        readers[blocks.start].register_forward_pre_hook(begin, with_kwargs=True)

    def _counted(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*positional: Any, **named: Any) -> Any:
            self.call += 1
            return forward(*positional, **named)

        return run


def summed(terms: list[tuple[float, Any]]) -> Any:
    """Coefficient x output, each output a tensor or a tuple of several."""
    if isinstance(terms[0][1], tuple):
        return tuple(summed([(c, outputs[n]) for c, outputs in terms]) for n in range(len(terms[0][1])))
    return sum(c * output for c, output in terms)


def opened(folder: Path, schedule: Schedule) -> tuple[Any, Any]:
    """Diffusers' own model, which caches by hooks, and scheduler of a folder."""
    index = json.loads((folder / "model_index.json").read_text())
    model, scheduler = (
        getattr(diffusers, index[part][1]).from_pretrained(folder / part) for part in ("transformer", "scheduler")
    )
    Cached(model.eval(), schedule)
    return model, scheduler


def both(request: Tensors, name: str) -> torch.Tensor:
    """What is not asked for, then what is, as diffusers has them."""
    return torch.cat([request[f"negative_{name}"], request[name]])


def guided(prediction: torch.Tensor) -> torch.Tensor:
    without, asked = prediction.chunk(2)
    return without + SCALE * (asked - without)


def numbers(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# PixArt


def pixart(folder: Path, layers: int = 3, heads: int = 4, size: int = 12, alpha: bool = False) -> Path:
    torch.manual_seed(0)
    transformer = diffusers.PixArtTransformer2DModel(
        num_attention_heads=heads, attention_head_dim=size, in_channels=4, out_channels=8, num_layers=layers,
        cross_attention_dim=heads * size, sample_size=128 if alpha else 8, caption_channels=24, use_additional_conditions=alpha,
    )  # fmt: skip
    scheduler = diffusers.DPMSolverMultistepScheduler(algorithm_type="dpmsolver++", solver_order=2)
    return saved(folder, "PixArtAlphaPipeline" if alpha else "PixArtSigmaPipeline", transformer, scheduler)


def pixart_alpha(folder: Path) -> Path:
    """That of 1024 px, which is told the size of its pictures."""
    return pixart(folder, alpha=True)


def pixart_request(images: int) -> dict[str, torch.Tensor]:
    """Prompts of several lengths."""
    mask = torch.arange(TOKENS)[None] < torch.tensor([3 + 2 * n for n in range(images)])[:, None]
    empty = torch.arange(TOKENS)[None].repeat(images, 1) < 1
    asked = {"prompt_embeds": numbers(5, images, TOKENS, 24), "prompt_attention_mask": mask.long()}
    without = {"prompt_embeds": numbers(6, images, TOKENS, 24), "prompt_attention_mask": empty.long()}
    return asked | {f"negative_{name}": values for name, values in without.items()}


def pixart_latents(folder: Path, noise: torch.Tensor, request: Tensors, schedule: Schedule) -> torch.Tensor:
    model, scheduler = opened(folder, schedule)
    scheduler.set_timesteps(schedule.steps)
    size: dict[str, Any] = {"resolution": None, "aspect_ratio": None}
    if model.config.sample_size == 128:
        size = {"resolution": torch.tensor([PIXELS] * 2 * len(noise)).float(),
                "aspect_ratio": torch.tensor([[HEIGHT / WIDTH]] * 2 * len(noise))}  # fmt: skip
    x = noise
    for t in scheduler.timesteps:
        prediction = model(torch.cat([x, x]), encoder_hidden_states=both(request, "prompt_embeds"),
                           timestep=t.expand(2 * len(x)), encoder_attention_mask=both(request, "prompt_attention_mask"),
                           added_cond_kwargs=size, return_dict=False)[0]  # fmt: skip
        x = scheduler.step(guided(prediction).chunk(2, dim=1)[0], t, x, return_dict=False)[0]
    return x


# Stable Diffusion 3 and 3.5


def sd3(folder: Path, dual: tuple[int, ...] = (), norm: str | None = None, layers: int = 3, dynamic: bool = False) -> Path:
    torch.manual_seed(0)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8, in_channels=4, out_channels=4, num_layers=layers, attention_head_dim=8, num_attention_heads=3,
        joint_attention_dim=16, caption_projection_dim=24, pooled_projection_dim=20, pos_embed_max_size=12,
        dual_attention_layers=dual, qk_norm=norm,
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=dynamic)
    return saved(folder, "StableDiffusion3Pipeline", transformer, scheduler)


def sd35(folder: Path) -> Path:
    """Two attentions in the first blocks, and norms of queries and keys."""
    return sd3(folder, (0, 1), "rms_norm", dynamic=True)


def sd3_request(images: int) -> dict[str, torch.Tensor]:
    return {"prompt_embeds": numbers(5, images, TOKENS, 16), "pooled_prompt_embeds": numbers(6, images, 20),
            "negative_prompt_embeds": numbers(7, images, TOKENS, 16),
            "negative_pooled_prompt_embeds": numbers(8, images, 20)}  # fmt: skip


def moved(scheduler: Any, tokens: int) -> dict[str, float]:
    """What pipelines tell a scheduler that shifts by the picture's size."""
    c = scheduler.config
    slope = (c.max_shift - c.base_shift) / (c.max_image_seq_len - c.base_image_seq_len)
    return {"mu": tokens * slope + c.base_shift - slope * c.base_image_seq_len} if c.use_dynamic_shifting else {}


def sd3_latents(folder: Path, noise: torch.Tensor, request: Tensors, schedule: Schedule) -> torch.Tensor:
    model, scheduler = opened(folder, schedule)
    scheduler.set_timesteps(schedule.steps, **moved(scheduler, HEIGHT * WIDTH // 4))
    x = noise
    for t in scheduler.timesteps:
        prediction = model(torch.cat([x, x]), encoder_hidden_states=both(request, "prompt_embeds"),
                           timestep=t.expand(2 * len(x)), pooled_projections=both(request, "pooled_prompt_embeds"),
                           return_dict=False)[0]  # fmt: skip
        x = scheduler.step(guided(prediction), t, x, return_dict=False)[0]
    return x


# FLUX.1


def flux(folder: Path, embedded: bool = True, single: int = 3) -> Path:
    torch.manual_seed(0)
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16, num_layers=2, num_single_layers=single, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, pooled_projection_dim=20, guidance_embeds=embedded, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0 if embedded else 1.0, use_dynamic_shifting=embedded)
    return saved(folder, "FluxPipeline", transformer, scheduler)


def schnell(folder: Path) -> Path:
    """Without guidance."""
    return flux(folder, embedded=False)


def flux_request(images: int) -> dict[str, torch.Tensor]:
    return {"prompt_embeds": numbers(5, images, TOKENS, 16), "pooled_prompt_embeds": numbers(6, images, 20)}


def packed(x: torch.Tensor) -> torch.Tensor:
    n, c, h, w = x.shape
    return x.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(n, h * w // 4, 4 * c)


def unpacked(x: torch.Tensor) -> torch.Tensor:
    n, _, d = x.shape
    x = x.view(n, HEIGHT // 2, WIDTH // 2, d // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return x.reshape(n, d // 4, HEIGHT, WIDTH)


def flux_latents(folder: Path, noise: torch.Tensor, request: Tensors, schedule: Schedule) -> torch.Tensor:
    model, scheduler = opened(folder, schedule)
    sigmas = np.linspace(1.0, 1 / schedule.steps, schedule.steps)
    scheduler.set_timesteps(sigmas=sigmas, **moved(scheduler, HEIGHT * WIDTH // 4))
    places = torch.zeros(HEIGHT // 2, WIDTH // 2, 3)
    places[..., 1] += torch.arange(HEIGHT // 2)[:, None]
    places[..., 2] += torch.arange(WIDTH // 2)[None]
    x = packed(noise)
    strength = torch.full((len(x),), SCALE) if model.config.guidance_embeds else None
    for t in scheduler.timesteps:
        prediction = model(hidden_states=x, timestep=t.expand(len(x)) / 1000, guidance=strength, img_ids=places.reshape(-1, 3),
                           pooled_projections=request["pooled_prompt_embeds"], txt_ids=torch.zeros(TOKENS, 3),
                           encoder_hidden_states=request["prompt_embeds"], return_dict=False)[0]  # fmt: skip
        x = scheduler.step(prediction, t, x, return_dict=False)[0]
    return unpacked(x)


# AuraFlow


def auraflow(folder: Path) -> Path:
    torch.manual_seed(0)
    transformer = diffusers.AuraFlowTransformer2DModel(
        sample_size=8, num_mmdit_layers=2, num_single_dit_layers=2, attention_head_dim=8, num_attention_heads=3,
        joint_attention_dim=16, caption_projection_dim=24, pos_embed_max_size=64,
    )  # fmt: skip
    return saved(folder, "AuraFlowPipeline", transformer, diffusers.FlowMatchEulerDiscreteScheduler(shift=1.73))


def auraflow_request(images: int) -> dict[str, torch.Tensor]:
    return {"prompt_embeds": numbers(5, images, TOKENS, 16), "negative_prompt_embeds": numbers(7, images, TOKENS, 16)}


def auraflow_latents(folder: Path, noise: torch.Tensor, request: Tensors, schedule: Schedule) -> torch.Tensor:
    model, scheduler = opened(folder, schedule)
    scheduler.set_timesteps(schedule.steps)
    x = noise
    for t in scheduler.timesteps:
        level = torch.tensor([t / 1000]).expand(2 * len(x))
        outputs = model(
            torch.cat([x, x]), encoder_hidden_states=both(request, "prompt_embeds"), timestep=level, return_dict=False
        )
        x = scheduler.step(guided(outputs[0]), t, x, return_dict=False)[0]
    return x


# Sana


def sana(folder: Path) -> Path:
    torch.manual_seed(0)
    transformer = diffusers.SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=3, attention_head_dim=8, num_layers=3, num_cross_attention_heads=2,
        cross_attention_head_dim=12, cross_attention_dim=24, caption_channels=20, sample_size=8, patch_size=1,
    )  # fmt: skip
    scheduler = diffusers.DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0)
    return saved(folder, "SanaPipeline", transformer, scheduler)


def sana_sized(folder: Path) -> Path:
    """With positions, norms of queries and keys, and the plain Euler sampler, as later ones."""
    torch.manual_seed(0)
    transformer = diffusers.SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=2, num_cross_attention_heads=2,
        cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=20, sample_size=8, patch_size=2,
        interpolation_scale=1, qk_norm="rms_norm_across_heads", timestep_scale=0.5,
    )  # fmt: skip
    return saved(folder, "SanaPipeline", transformer, diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0))


def sana_request(images: int) -> dict[str, torch.Tensor]:
    """Prompts of several lengths."""
    request = pixart_request(images)
    return {name: values[..., :20] if name.endswith("embeds") else values for name, values in request.items()}


def sana_latents(folder: Path, noise: torch.Tensor, request: Tensors, schedule: Schedule) -> torch.Tensor:
    model, scheduler = opened(folder, schedule)
    scheduler.set_timesteps(schedule.steps)
    x = noise
    for t in scheduler.timesteps:
        prediction = model(torch.cat([x, x]), encoder_hidden_states=both(request, "prompt_embeds"),
                           timestep=t.expand(2 * len(x)) * model.config.timestep_scale,
                           encoder_attention_mask=both(request, "prompt_attention_mask"), return_dict=False)[0]  # fmt: skip
        x = scheduler.step(guided(prediction), t, x, return_dict=False)[0]
    return x


# Qwen-Image, without guidance


def qwen(folder: Path) -> Path:
    torch.manual_seed(0)
    transformer = diffusers.QwenImageTransformer2DModel(
        in_channels=16, out_channels=4, num_layers=3, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=24,
        axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02
    )
    return saved(folder, "QwenImagePipeline", transformer, scheduler)


def qwen_request(images: int) -> dict[str, torch.Tensor]:
    request = pixart_request(images)
    return {"prompt_embeds": request["prompt_embeds"], "prompt_embeds_mask": request["prompt_attention_mask"]}


def qwen_latents(folder: Path, noise: torch.Tensor, request: Tensors, schedule: Schedule) -> torch.Tensor:
    model, scheduler = opened(folder, schedule)
    sigmas = np.linspace(1.0, 1 / schedule.steps, schedule.steps)
    scheduler.set_timesteps(sigmas=sigmas, **moved(scheduler, HEIGHT * WIDTH // 4))
    x = packed(noise)
    for t in scheduler.timesteps:
        prediction = model(hidden_states=x, timestep=t.expand(len(x)) / 1000, encoder_hidden_states=request["prompt_embeds"],
                           encoder_hidden_states_mask=request["prompt_embeds_mask"],
                           img_shapes=[[(1, HEIGHT // 2, WIDTH // 2)]] * len(x), return_dict=False)[0]  # fmt: skip
        x = scheduler.step(prediction, t, x, return_dict=False)[0]
    return unpacked(x)


class Prompted(NamedTuple):
    """A family of pipelines: its folder, a request, and what diffusers makes of it."""

    folder: Callable[[Path], Path]
    request: Callable[[int], dict[str, torch.Tensor]]
    latents: Callable[[Path, torch.Tensor, Tensors, Schedule], torch.Tensor]
    scale: float = SCALE
    pixels: int = 8  # a latent, along each side
    packs: bool = False  # whether its latents are tokens

    @property
    def size(self) -> tuple[int, int]:
        """Of the pictures, in pixels."""
        return self.pixels * HEIGHT, self.pixels * WIDTH


PIPELINES = {
    "pixart": Prompted(pixart, pixart_request, pixart_latents),
    "pixart-alpha": Prompted(pixart_alpha, pixart_request, pixart_latents),
    "sd3": Prompted(sd3, sd3_request, sd3_latents),
    "sd35": Prompted(sd35, sd3_request, sd3_latents),
    "flux": Prompted(flux, flux_request, flux_latents, packs=True),
    "schnell": Prompted(schnell, flux_request, flux_latents, packs=True),
    "auraflow": Prompted(auraflow, auraflow_request, auraflow_latents),
    "sana": Prompted(sana, sana_request, sana_latents, pixels=32),
    "sana-sized": Prompted(sana_sized, sana_request, sana_latents, pixels=32),
    "qwenimage": Prompted(qwen, qwen_request, qwen_latents, scale=1.0, packs=True),
}


def error(latents: np.ndarray, wanted: np.ndarray) -> float:
    """The largest difference, as a share of the largest value."""
    return float(np.abs(latents - wanted).max() / np.abs(wanted).max())


def call_by_call(pipeline: Prompted, folder: Path, noise: torch.Tensor, request: Tensors, schedule: Schedule,
                 dtype: torch.dtype, monkeypatch: Any, fed: list[np.ndarray] | None = None) -> list[np.ndarray]:  # fmt: skip
    """The latents after every call, of diffusers' module in a type; the next call reads `fed` instead, if given."""
    saved, seen = opened, []
    wide = torch.promote_types(dtype, torch.float32)  # the type of latents and sampler

    def in_type(folder: Path, schedule: Schedule) -> tuple[Any, Any]:
        model, scheduler = saved(folder, schedule)
        forward, step = model.to(dtype).forward, scheduler.step

        def narrow(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: narrow(of) for name, of in value.items()}
            return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value

        def called(*positional: Any, **named: Any) -> tuple[torch.Tensor, ...]:
            output = forward(*map(narrow, positional), **narrow(named))
            return ((output[0] if isinstance(output, tuple) else output.sample).to(wide),)

        def stepped(*positional: Any, **options: Any) -> tuple[torch.Tensor, ...]:
            latents = step(*positional, **options)[0]
            seen.append((unpacked(latents) if pipeline.packs else latents).double().numpy())
            if fed is None:
                return (latents,)
            following = torch.from_numpy(fed[len(seen) - 1]).to(latents.dtype)
            return (packed(following) if pipeline.packs else following,)

        model.forward, scheduler.step = called, stepped
        return model, scheduler

    with torch.no_grad(), monkeypatch.context() as patched:
        patched.setitem(globals(), "opened", in_type)
        pipeline.latents(folder, noise.to(wide), request, schedule)
    return seen
