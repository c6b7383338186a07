"""An artefact behind the call of diffusers' DiTPipeline.  Neither diffusers nor torch is imported here."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...artefact import staging, store
from ...artefact.manifest import Manifest
from ...artefact.records import FILE
from ...errors import UsageError
from ...ir.inputs import names_of
from ...runtime import inputs, pipeline, request
from ...support.tensors import loaded, scalar
from ...support.words import counted
from . import script_options

Shape = tuple[int, ...]
Callback = Callable[[Any, int, float, dict[str, Any]], Mapping[str, Any] | None]


@dataclass(frozen=True)
class ImageOutput:
    """`images`: a list of PIL images, an array (B, H, W, C) or a tensor (B, C, H, W) in 0..1, or latents (B, C, H, W)."""

    images: Any


class L2CPipeline:
    """A compiled sampler that is called like a DiTPipeline, with its names and defaults."""

    def __init__(self, pipe: pipeline.Pipeline, folder: Path) -> None:
        self.pipe, self._folder = pipe, folder

    @classmethod
    def from_pretrained(cls, folder: str | Path, **options: Any) -> L2CPipeline:
        """Load an artefact; `options` are those of `l2c_export.load`, and those of diffusers that mean something here.

        `device_map` is where to load it; `torch_dtype` must be what was compiled; options about downloads are ignored.
        """
        path = request.folder(folder).absolute()
        load_options = script_options.for_load(options)
        for name in ("torch_dtype", "dtype"):
            script_options.check_type(options.get(name), store.read(path, verify=False).precision)
        return cls(pipeline.load(path, **load_options), path)

    def save_pretrained(self, folder: str | Path, **options: Any) -> None:
        """Copy the artefact.  Raises ArtefactError if `folder` holds anything else, or if the artefact was replaced."""
        script_options.check_saving(options)
        store.check_unchanged(self._folder, self.manifest)
        with staging.staged(request.folder(folder)) as stage:
            for name in (*self.manifest.files, FILE):
                (stage / name).parent.mkdir(parents=True, exist_ok=True)
                try:
                    shutil.copyfile(self._folder / name, stage / name)
                except FileNotFoundError:  # as of a fingerprint, which does not outlive other weights
                    store.check_unchanged(self._folder, self.manifest)
                    raise
            store.check_unchanged(self._folder, self.manifest)

    @property
    def manifest(self) -> Manifest:
        return self.pipe.manifest

    @property
    def labels(self) -> dict[str, int]:
        """Class names and their numbers."""
        return dict(sorted(names_of(self.manifest.inputs).items()))

    def get_label_ids(self, label: str | Sequence[str]) -> list[int]:
        """The numbers of class names, however many.  Raises UsageError for one that does not exist."""
        names = [label] if isinstance(label, str) else request.listed(label, "class labels")
        return [inputs.named(self.manifest.inputs[0], name) for name in names]

    @property
    def device(self) -> Any:
        """Where it computes: as PyTorch says it where that is loaded, else its name."""
        name = self.pipe.device
        return loaded().device(name) if loaded() else name

    @property
    def dtype(self) -> Any:
        """What it computes in, likewise."""
        name = script_options.TYPES[self.manifest.precision]
        return getattr(loaded(), name) if loaded() else name

    def to(self, *targets: Any, **options: Any) -> L2CPipeline:
        """Itself, where the device and the type asked for are its own.  Raises UsageError for others."""
        for target in (*targets, *(options.get(name) for name in ("device", "dtype", "torch_dtype"))):
            if script_options.is_type(target):
                script_options.check_type(target, self.manifest.precision)
            elif target is not None and not isinstance(target, bool):
                script_options.check_device(target, self.pipe.device)
        return self

    def without_effect(self, *_: Any, **__: Any) -> None:
        """Settings of PyTorch's memory and of a progress bar, neither of which there is here; images would be the same."""

    set_progress_bar_config = without_effect
    enable_model_cpu_offload = enable_sequential_cpu_offload = enable_group_offload = without_effect
    enable_attention_slicing = disable_attention_slicing = set_attention_slice = without_effect
    enable_xformers_memory_efficient_attention = disable_xformers_memory_efficient_attention = without_effect
    enable_vae_slicing = disable_vae_slicing = fuse_qkv_projections = unfuse_qkv_projections = without_effect
    maybe_free_model_hooks = remove_all_hooks = reset_device_map = without_effect

    def __getattr__(self, name: str) -> Any:
        raise script_options.NotThere(name, type(self).__name__)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in script_options.COMPILED:
            raise script_options.NotThere(name, type(self).__name__)
        super().__setattr__(name, value)

    def __call__(
        self,
        class_labels: inputs.Labels,
        guidance_scale: request.Scales = None,
        generator: Any = None,
        num_inference_steps: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        latents: Any = None,
        callback_on_step_end: Callback | None = None,
    ) -> ImageOutput | tuple[Any]:
        """Generate one image per label.

        A `guidance_scale` of 1 or less turns guidance off, as in diffusers; there may be one per image.  `generator` is one
        of numpy's or torch's, a seed, or a list with one for every image; without it the noise is new each time.
        `num_inference_steps` must be what was compiled, by default the first.  `output_type` is "pil", "np", "pt" (where
        torch is loaded) or "latent".
        """
        steps = check_steps(num_inference_steps, self.manifest)
        asked = self.pipe.inputs(class_labels)
        scale = None if guidance_scale is None else guidance(guidance_scale)
        kind = "np" if output_type == "pt" and loaded() else output_type
        kind = request.output_type(self.manifest, kind)
        if latents is None:
            images = inputs.images_of(self.manifest, asked, 0, None)
            latents = noise((images, *self.manifest.program().latent), generator, self.pipe)
        callback = callback_on_step_end and self._own(callback_on_step_end)
        options = {"latents": latents, "output_type": kind, "callback_on_step_end": callback, "steps": steps}
        output = self.pipe(**asked, guidance_scale=scale, **options)
        pictures = output.latents if kind in ("latent", "device") else output.images
        if output_type == "pt":
            pictures = loaded().from_numpy(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)))
        return ImageOutput(pictures) if return_dict else (pictures,)

    def _own(self, callback: Callback) -> pipeline.Callback:
        return lambda _, step, timestep, values: callback(self, step, timestep, values)


def guidance(scale: Any) -> list[float] | float:
    """diffusers guides only above 1."""
    value = scalar(scale)
    if isinstance(value, (list, tuple, np.ndarray)):
        return [max(request.number(entry), 1.0) for entry in value]
    return max(request.number(value), 1.0)


def check_steps(value: Any, manifest: Manifest) -> int | None:
    """The number of steps that is asked for, if one is.  Raises UsageError for one that the artefact does not have."""
    steps = scalar(value)
    if steps is None:
        return None
    if not request.whole(steps) or str(steps) not in manifest.programs:
        raise UsageError(
            f"num_inference_steps {value}: this artefact was compiled for {' or '.join(manifest.programs)}: use that, "
            f"or compile another one with steps={value}"
        )
    return int(steps)


def noise(shape: Shape, generator: Any, pipe: pipeline.Pipeline) -> np.ndarray:
    """Standard normal latents of a shape (B, C, H, W), float32."""
    if isinstance(generator, (list, tuple)):
        if len(generator) != shape[0]:
            raise UsageError(
                f"generator: a list of {len(generator)} for {counted(shape[0], 'image')}: give one, or one per image"
            )
        return np.concatenate([noise((1, *shape[1:]), one, pipe) for one in generator])
    if request.whole(seed := scalar(generator)):
        return pipe.noise(shape[0], seed)
    if is_torch(generator):
        torch = loaded()
        drawn: np.ndarray = torch.randn(shape, generator=generator, device=generator.device, dtype=torch.float32).cpu().numpy()
        return drawn
    if generator is not None and not isinstance(generator, np.random.Generator):
        raise UsageError(f"generator {generator!r}: use one of numpy's or torch's, or a seed")
    return (generator or np.random.default_rng()).standard_normal(shape, np.float32)


def is_torch(generator: Any) -> bool:
    """Whether it is a torch.Generator, which only who has imported torch can have."""
    return loaded() is not None and isinstance(generator, loaded().Generator)
