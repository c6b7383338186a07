"""Random pipelines of diffusers, small enough to be compiled in a test."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import diffusers
import numpy as np
import torch

from l2c_export.compiler.compile import compile_artefact
from l2c_export.compiler.request import Options
from l2c_export.compiler.source import Source, resolve
from l2c_export.samplers.scheduler_config import DDIM, DPM, EULER

STEPS, LABELS, SCALE = 6, [207, 360], 4.0
SCHEDULERS = {
    "ddim": (DDIM, {"clip_sample": False}),
    "dpm2": (DPM, {}),
    "dpm3": (DPM, {"solver_order": 3, "final_sigmas_type": "sigma_min", "timestep_spacing": "trailing"}),
    "euler": (EULER, {"prediction_type": "v_prediction", "num_train_timesteps": 500}),  # whose noise is scaled visibly
}
INDEX, SCHEDULER, TRANSFORMER, VAE = (
    "model_index.json", "scheduler/scheduler_config.json", "transformer/config.json", "vae/config.json",
)  # fmt: skip
PLAIN = "diffusion_pytorch_model.safetensors"
NAMES = {"207": "golden retriever", "360": "otter", "8": "hen, chicken"}


def small_pipeline(folder: Path, name: str, seed: int = 0) -> diffusers.DiTPipeline:
    """A random pipeline, saved; its class names lie in model_index.json, as in the released one."""
    torch.manual_seed(seed)
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=8, num_layers=3, sample_size=8
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 16), norm_num_groups=4, latent_channels=4, sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    kind, options = SCHEDULERS[name]
    pipe = diffusers.DiTPipeline(transformer.eval(), vae.eval(), getattr(diffusers, kind)(**options))
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "id2label": NAMES}))
    return pipe


def fine_tune(folder: Path) -> diffusers.DiTPipeline:
    """Another pipeline with the same architecture: its folder, and in `alone` its transformer."""
    pipeline = small_pipeline(folder, "ddim", seed=1)
    pipeline.transformer.save_pretrained(folder / "alone")
    return pipeline


@dataclass(frozen=True)
class World:
    """A pipeline folder, the pipeline, and what was compiled from it."""

    root: Path
    folder: Path
    pipe: diffusers.DiTPipeline
    name: str

    def pictures(self) -> Path:
        """An artefact with a decoder."""
        return self.compiled(with_vae=True)

    def compiled(self, schedule: str = "every:1", **changes) -> Path:
        out = self.root / f"{self.name}-{abs(hash((schedule, *changes.items())))}"
        if not out.exists():
            common = {"steps": STEPS, "model": str(self.folder), "batch": 2, "backend": "onnxruntime"}
            compile_artefact(Options(**{**common, "schedule": schedule, **changes}, out=out))
        return out


def edited(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def written(path: Path, content: object) -> None:
    path.write_text(json.dumps(content))


def source(model: Path | None = None, **options) -> Source:
    """What the compiler reads of a model."""
    named = {"model": str(model)} if model else {}
    return resolve(Options(**{"schedule": "every:2", "steps": 5, **named, **options}))


# requests of which our latents and images are compared with those of diffusers


def noise(seed: int = 0) -> np.ndarray:
    return torch.randn((2, 4, 8, 8), generator=torch.manual_seed(seed)).numpy()


def their_latents(pipe: diffusers.DiTPipeline, scale: float, seed: int = 0) -> np.ndarray:
    """What the pipeline hands to its autoencoder."""
    seen = []
    hook = pipe.vae.post_quant_conv.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].numpy()))
    pipe(LABELS, scale, torch.manual_seed(seed), STEPS, "np")
    hook.remove()
    return seen[0] * pipe.vae.config.scaling_factor


def images(pipe, labels=LABELS, kind="np"):
    return pipe(labels, generator=torch.Generator().manual_seed(3), num_inference_steps=STEPS, output_type=kind).images


def close(got: np.ndarray, want: np.ndarray, share: float = 1e-4) -> bool:
    return np.abs(got - want).max() <= share * np.abs(want).max()


def same_pixels(a, b) -> bool:
    return np.abs(np.asarray(a) - np.asarray(b)).max() < 1e-4
