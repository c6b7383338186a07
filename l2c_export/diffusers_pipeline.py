"""An artefact behind the call of diffusers' DiTPipeline.  Neither diffusers nor torch is imported here."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import artefact, asked, pipeline, staging
from .errors import UsageError
from .manifest import FILE, Manifest

Shape = tuple[int, ...]
Callback = Callable[[Any, int, float, dict[str, Any]], Mapping[str, Any] | None]


@dataclass(frozen=True)
class ImageOutput:
    """`images`: a list of PIL images, an array (B, H, W, C) in 0..1, or latents (B, C, H, W)."""

    images: Any


class L2CPipeline:
    """A compiled sampler that is called like a DiTPipeline, with its names and defaults."""

    def __init__(self, pipe: pipeline.Pipeline, folder: Path) -> None:
        self.pipe, self._folder = pipe, folder

    @classmethod
    def from_pretrained(cls, folder: str | Path, **options: Any) -> L2CPipeline:
        """Load an artefact; `options` are those of `l2c_export.load`."""
        return cls(pipeline.load(folder, **options), Path(folder).absolute())

    def save_pretrained(self, folder: str | Path) -> None:
        """Copy the artefact.  Raises ArtefactError if `folder` holds anything else, or if the artefact was replaced."""
        artefact.check_unchanged(self._folder, self.manifest)
        with staging.staged(Path(folder)) as stage:
            for name in (*self.manifest.files, FILE):
                (stage / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self._folder / name, stage / name)
            artefact.check_unchanged(self._folder, self.manifest)

    @property
    def manifest(self) -> Manifest:
        return self.pipe.manifest

    @property
    def labels(self) -> dict[str, int]:
        """Class names and their numbers."""
        return dict(sorted((self.manifest.model.names or {}).items()))

    def get_label_ids(self, label: str | Sequence[str]) -> list[int]:
        """The numbers of class names.  Raises UsageError for one that does not exist."""
        return self.pipe.labels(label)

    def __call__(
        self,
        class_labels: Sequence[int | str] | int | str,
        guidance_scale: float | None = None,
        generator: Any = None,
        num_inference_steps: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        latents: np.ndarray | None = None,
        callback_on_step_end: Callback | None = None,
    ) -> ImageOutput | tuple[Any]:
        """Generate one image per label.

        A `guidance_scale` of 1 or less turns guidance off, as in diffusers.  `generator` is one of numpy's or torch's, a
        seed, or a list with one for every image; without it the noise is new each time.  `num_inference_steps` must be what
        was compiled.  `output_type` is "pil", "np" or "latent".
        """
        check_steps(num_inference_steps, self.manifest)
        labels = self.pipe.labels(class_labels)
        if latents is None:
            latents = noise((len(labels), *self.manifest.model.latent), generator, self.pipe)
        scale = None if guidance_scale is None else guidance(guidance_scale)
        callback = callback_on_step_end and self._own(callback_on_step_end)
        done = self.pipe(labels, scale, latents=latents, output_type=output_type, callback_on_step_end=callback)
        images = done.latents if output_type == "latent" else done.images
        return ImageOutput(images) if return_dict else (images,)

    def _own(self, callback: Callback) -> pipeline.Callback:
        return lambda _, step, timestep, values: callback(self, step, timestep, values)


def guidance(scale: float) -> float:
    """diffusers guides only above 1."""
    return scale if scale > 1 else 1.0


def check_steps(asked: int | None, manifest: Manifest) -> None:
    if asked not in (None, manifest.steps):
        raise UsageError(
            f"num_inference_steps {asked}: this artefact was compiled for {manifest.steps}: use that, "
            f"or compile another one with l2c-export --steps {asked}"
        )


def noise(shape: Shape, generator: Any, pipe: pipeline.Pipeline) -> np.ndarray:
    """Standard normal latents of a shape (B, C, H, W), float32."""
    if isinstance(generator, (list, tuple)):
        if len(generator) != shape[0]:
            raise UsageError(f"generator: a list of {len(generator)} for {shape[0]} images: give one, or one per image")
        return np.concatenate([noise((1, *shape[1:]), one, pipe) for one in generator])
    if asked.whole(generator):
        return pipe.noise(shape[0], generator)
    if is_torch(generator):
        torch = sys.modules["torch"]
        drawn: np.ndarray = torch.randn(shape, generator=generator, device=generator.device, dtype=torch.float32).cpu().numpy()
        return drawn
    if generator is not None and not isinstance(generator, np.random.Generator):
        raise UsageError(f"generator {generator!r}: use one of numpy's or torch's, or a seed")
    return (generator or np.random.default_rng()).standard_normal(shape, np.float32)


def is_torch(generator: Any) -> bool:
    """Whether it is a torch.Generator, which only who has imported torch can have."""
    return "torch" in sys.modules and isinstance(generator, sys.modules["torch"].Generator)
