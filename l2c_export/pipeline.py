"""What a user holds: `load` an artefact, call it, get latents (and images, where the model works on pixels)."""

from __future__ import annotations

import contextlib
import difflib
import functools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeGuard, TypeVar

import msgspec
import numpy as np

from . import artefact, binding, decoder, runtime, weights
from .backends import BUILT, Opened, Request, open_backend
from .errors import RunError, UsageError
from .manifest import Manifest
from .output import to_images
from .samplers import standard_normal

Callback = Callable[["Pipeline", int, float, dict[str, Any]], Mapping[str, Any] | None]
OUTPUT_TYPES = ("latent", "device", "np", "pil")
LINKS = ("shared", "static")
P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Output:
    """`latents` (B, C, H, W) float32; `images`, if asked for: (B, H, W, C) floats in 0..1, or PIL images.

    The latents of "device" are where the backend computes: a `cuda.DeviceArray` on a GPU, which `torch.from_dlpack` and others
    read without a copy; elsewhere a numpy array as always.
    """

    latents: Any
    images: Any = None


class Generation(NamedTuple):
    """What a request asks of the loop, besides the noise."""

    loop: runtime.Loop
    labels: np.ndarray  # (R,) int32, the unconditional half last
    guidance: np.ndarray  # (C,) float32: scale - 1, or 0 for an unguided channel


def load(
    path: str | Path,
    backend: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    verify: bool = True,
    link: str | None = None,
    tile: int | None = None,
) -> Pipeline:
    """Load an artefact.

    `backend` defaults to the artefact's own, where "auto" is the first that works here (see `Pipeline.backend`);
    `device` to the CPU, `threads` to all cores.  Every file is
    checked against its hash before it is used; `verify=False` skips that for the weights, of an artefact that you trust.
    `link` is "shared" or "static" instead of what it was compiled for, where engines are made when they are loaded.
    `tile` is the side in pixels of the parts in which an artefact with a decoder decodes larger pictures, to save memory.
    Raises ArtefactError for one that is incomplete, damaged or unlinked, and BackendError where it cannot run here.
    """
    folder = Path(path)
    manifest = artefact.read(folder, trusted=() if verify else (weights.FILE,))
    artefact.check_linked(folder, manifest)
    if link not in (None, *LINKS):
        raise UsageError(f"--link {link}: use one of {', '.join(LINKS)}")
    decoder.check_tile(tile, manifest.decoder or None)
    asked = Request(device, threads, manifest.precision, folder, tuple(manifest.builds.values()), manifest.files)
    opened = open_backend(backend or manifest.backend, asked)
    if link not in (None, manifest.link) and opened.backend.name in BUILT:
        raise UsageError(f"--link {link}: the engines of {opened.backend.name} were built for --link {manifest.link}")
    chosen = msgspec.structs.replace(manifest, link=link or manifest.link)
    program = binding.load_program(folder, chosen, opened.backend)
    artefact.check_unchanged(folder, manifest)
    return Pipeline(program, opened, tile)


def alone(method: Callable[P, R]) -> Callable[P, R]:
    """A method of `Pipeline` that uses its buffers: one at a time."""

    @functools.wraps(method)
    def run(*given: P.args, **named: P.kwargs) -> R:
        pipeline = given[0]
        assert isinstance(pipeline, Pipeline)
        with pipeline._turn():
            return method(*given, **named)

    return run


class Pipeline:
    """A compiled sampler.  It makes one generation at a time: other threads wait for their turn.

    As a context manager it is closed at the end.
    """

    def __init__(self, program: binding.Program, opened: Opened, tile: int | None = None) -> None:
        self.manifest: Manifest = program.manifest
        self._program: binding.Program | None = program
        self._tile = tile
        self._decoder: decoder.Decoder | None = None
        self._lock, self._holder = threading.Lock(), 0
        self.backend = f"{opened.backend.name} ({opened.backend.describe()}), {opened.why}"
        self._loops: dict[tuple[int, bool], runtime.Loop] = {}

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the engines, the buffers and the weights, when the generation that runs has ended.  Closing twice is fine."""
        with self._lock if self._holder != threading.get_ident() else self._turn():
            self._program = self._decoder = None
            self._loops.clear()

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """The buffers for oneself.  Raises RunError in the middle of a generation of the same thread, and when closed."""
        if self._holder == threading.get_ident():
            raise RunError("this pipeline is in the middle of a generation: end it first, or load a second pipeline")
        with self._lock:
            self._holder = threading.get_ident()
            try:
                if self._program:
                    self._program.backend.memory.enter()
                yield
            except MemoryError:
                raise RunError("out of memory: generate fewer images at once, or free some memory") from None
            finally:
                self._holder = 0

    @alone
    def __call__(
        self,
        class_labels: Sequence[int | str] | int | str,
        guidance_scale: float | None = None,
        seed: int | Sequence[int] = 0,
        latents: np.ndarray | None = None,
        output_type: str = "latent",
        callback_on_step_end: Callback | None = None,
        check_finite: bool = False,
    ) -> Output:
        """Generate one image per label: a number, or a name where the artefact has names.

        `guidance_scale` 1 turns guidance off.  Without `latents` (B, C, H, W), image i starts from the noise of
        seed + i, or of seed[i].  `callback_on_step_end(pipe, step, timestep, {"latents": x})` may return new latents.
        `output_type` is "latent", "device" (left where they were computed, see `Output`), or with a model of pixels "np" or
        "pil".
        `check_finite` raises RunError naming the call whose latents are the first to hold NaN or Inf.
        """
        labels = self.labels(class_labels)
        self._check_output(output_type)
        noise = self.noise(len(labels), seed) if latents is None else self._latents(latents, len(labels))
        asked = self.generation(labels, guidance_scale)
        if callback_on_step_end or check_finite:
            self._stepwise(asked, noise, callback_on_step_end, check_finite)
        else:
            asked.loop.whole(noise, asked.labels, asked.guidance)
        memory, final = asked.loop.memory, asked.loop.latents
        if output_type == "device":
            return Output(memory.copy(final))
        latents = memory.get(final).copy()
        return Output(
            latents, None if output_type == "latent" else to_images(self._decode(asked.loop.program, latents), output_type)
        )

    def _decode(self, program: binding.Program, latents: np.ndarray) -> np.ndarray:
        """Latents (B, C, H, W) -> pixels (B, 3, scale H, scale W) around -1..1; they are pixels already without a decoder."""
        if not self.manifest.decoder:
            return latents
        if self._decoder is None:
            info = self.manifest.files[self.manifest.decoder.file]
            self._decoder = decoder.Decoder(program.folder, self.manifest.decoder, program.backend, self._tile, info)
        return self._decoder(latents)

    def _stepwise(self, asked: Generation, noise: np.ndarray, callback: Callback | None, check_finite: bool) -> None:
        """The loop with a stop after every call."""
        step = -1
        for done in asked.loop.denoise(noise, asked.labels, asked.guidance):
            if check_finite and not np.isfinite(done.x).all():
                raise RunError(f"call {done.index} (timestep {done.call.timestep:g}) made NaN or infinite latents")
            if not done.call.ends_step:
                continue
            step += 1
            if callback:
                given = callback(self, step, self._step_timestep(done.index), {"latents": done.x.copy()})
                if given and "latents" in given:
                    done.x[...] = self._latents(given["latents"], len(noise))
                    if check_finite and not np.isfinite(done.x).all():
                        raise RunError(f"the callback after step {step} returned NaN or infinite latents")

    def steps(self, labels: Sequence[int], guidance_scale: float | None, noise: np.ndarray) -> Iterator[runtime.Step]:
        """The loop itself, for callers that want progress or timing: one item per network evaluation.

        From its first item to its end, or until it is closed, the pipeline is busy with it.
        """
        with self._turn():
            asked = self.generation(labels, guidance_scale)
            yield from asked.loop.denoise(noise, asked.labels, asked.guidance)

    def generation(self, labels: Sequence[int], guidance_scale: float | None) -> Generation:
        """The loop for a batch of this size, and what it is told besides the noise.  Raises RunError when closed."""
        if self._program is None:
            raise RunError("this pipeline is closed: load the artefact again")
        guidance = self.manifest.guidance
        scale = guidance.scale if guidance_scale is None else guidance_scale
        if not isinstance(scale, Real) or not abs(scale) <= float(np.finfo(np.float32).max):
            raise UsageError(f"guidance_scale {scale!r}: must be a finite number")
        if guidance.mode == "none" and scale != 1:
            raise UsageError(f"guidance_scale {scale:g}: this artefact was compiled with --guidance none: use 1")
        guided = scale != 1
        key = len(labels), guided
        if key not in self._loops:
            self._loops.clear()  # buffers of one batch size at a time
            self._loops[key] = runtime.Loop(self._program, *key)
        null = [self.manifest.model.null_label] * len(labels) if guided else []
        strength = (scale - 1) * np.array(guidance.channels(self.manifest.model.latent[0]), np.float32)
        return Generation(self._loops[key], np.array([*labels, *null], np.int32), strength)

    def noise(self, count: int, seed: int | Sequence[int]) -> np.ndarray:
        """Standard normal latents (count, C, H, W); each image's depend on its own seed alone."""
        seeds = [seed + i for i in range(count)] if whole(seed) else listed(seed)
        if len(seeds) != count or not all(whole(s) and s >= 0 for s in seeds):
            raise UsageError(f"seed {seed!r}: give one whole number >= 0, or one per image ({count})")
        return standard_normal(self.manifest.model.latent, seeds)

    def labels(self, given: Sequence[int | str] | int | str) -> list[int]:
        """Class labels as a list.  Raises UsageError for a label or a batch that this artefact does not have."""
        labels = [self._label(label) for label in ([given] if isinstance(given, str) else listed(given))]
        if not 1 <= len(labels) <= self.manifest.batch:
            remedy = f"ask for fewer, or compile it with l2c-export --batch {len(labels)}" if labels else "give at least one"
            able = "1 image" if self.manifest.batch == 1 else f"1 to {self.manifest.batch} images"
            raise UsageError(f"{len(labels)} class labels: this artefact makes {able} at once: {remedy}")
        for label in labels:
            if not whole(label) or not 0 <= label < self.manifest.model.labels:
                raise UsageError(f"class label {label!r}: must be a whole number from 0 to {self.manifest.model.labels - 1}")
        return labels

    def _label(self, given: Any) -> Any:
        """The number of a class name."""
        names = self.manifest.model.names
        if not isinstance(given, str) or not names:
            return given
        if given not in names:
            close = " or ".join(difflib.get_close_matches(given, names, 3))
            raise UsageError(f"class label {given!r}: no such name: {f'did you mean {close}?' if close else 'use a number'}")
        return names[given]

    def _latents(self, given: np.ndarray, count: int) -> np.ndarray:
        shape = (count, *self.manifest.model.latent)
        try:
            latents = np.asarray(given)
        except (ValueError, TypeError, RuntimeError):  # the latter two are a tensor's, of another device or type
            raise UsageError(f"latents: not an array: this model and {count} labels need numbers of shape {shape}") from None
        if latents.shape != shape:
            raise UsageError(f"latents of shape {latents.shape}: this model and {count} labels need {shape}")
        if latents.dtype not in (np.float32, np.float64, np.float16):
            raise UsageError(f"latents of dtype {latents.dtype}: use float32")
        return latents.astype(np.float32, copy=False)

    def _check_output(self, output_type: str) -> None:
        if output_type not in OUTPUT_TYPES:
            raise UsageError(f"output_type {output_type!r}: use one of {', '.join(OUTPUT_TYPES)}")
        pixels = self.manifest.decoder or self.manifest.model.latent[0] in (1, 3)
        if output_type in ("np", "pil") and not pixels:
            raise UsageError(
                f"output_type {output_type!r}: this model makes latents, not pixels, and the artefact has no decoder: "
                'compile it with --with-vae, or use output_type="latent"'
            )

    def _step_timestep(self, index: int) -> float:
        """The timestep at which the solver step began that ends with call `index`."""
        while index and not self.manifest.calls[index - 1].ends_step:
            index -= 1
        return self.manifest.calls[index].timestep


def whole(value: object) -> TypeGuard[int]:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def listed(given: Any) -> list[Any]:
    """One value, or the values of a sequence."""
    try:
        return list(given)
    except TypeError:
        return [given]
