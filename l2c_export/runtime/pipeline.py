"""What a user holds: `load` an artefact, call it, get latents (and images, where the model works on pixels)."""

from __future__ import annotations

import contextlib
import functools
import os
import time
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import numpy as np

from ..artefact.manifest import Manifest
from ..backends.choose import Opened
from ..errors import RunError, UsageError
from ..ir.inputs import CLASS_LABELS, Inputs
from ..support import ending
from ..support.log import LOG
from ..support.words import counted
from . import lazy_decoder, prompts, text
from . import request as asked
from .images import Output, to_images
from .inputs import Labels, check_count, checked, images_of
from .loaded import LoadedArtefact
from .lock import Turn
from .loop import Cancel, Step
from .loops import Generation, Loops, Warm
from .opening import Choices, check_same_requests, described, open_artefact
from .stepwise import stepwise

Callback = Callable[["Pipeline", int, float, dict[str, Any]], Mapping[str, Any] | None]
P = ParamSpec("P")
R = TypeVar("R")


def load(
    path: str | os.PathLike[str],
    backend: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    verify: bool = True,
    link: str | None = None,
    tile: int | None = None,
) -> Pipeline:
    """Load an artefact: the path of its folder, or what `compile` has returned.

    `backend` defaults to the artefact's own, where "auto" is the first that works here (see `Pipeline.backend`);
    `device` to the CPU, `threads` to all cores; a decoder and text encoders that a GPU's backend leaves to the processor have
    them, too.  Every file is checked against its hash before it is used; `verify=False` skips that
    for the weights, of an artefact that you trust.
    `link` is "shared" or "static" instead of what it was compiled for, where engines are made when they are loaded.
    `tile` is the side in pixels of the parts in which an artefact with a decoder decodes larger pictures, to save memory.
    Where others keep the processors busy a warning is logged if fewer threads may be faster: their number decides the bits of
    an image, so it does not depend on the moment.
    Raises ArtefactError for one that is incomplete, damaged or unlinked, and BackendError where it cannot run here.
    """
    choices = Choices(backend, device, threads, link, tile)
    opening = open_artefact(path, choices, verify)
    return Pipeline(*opening, choices._replace(backend=opening.opened.backend.name))


def alone(method: Callable[P, R]) -> Callable[P, R]:
    """A method of `Pipeline` that uses its buffers: one at a time."""

    @functools.wraps(method)
    def run(*positional: P.args, **named: P.kwargs) -> R:
        pipeline = positional[0]
        assert isinstance(pipeline, Pipeline)
        with pipeline._alone():
            return method(*positional, **named)

    return run


class Pipeline:
    """A compiled sampler.  It makes one generation at a time: other threads wait for their turn.

    As a context manager it is closed at the end.
    """

    def __init__(self, loaded: LoadedArtefact, opened: Opened, choices: Choices | None = None) -> None:
        self._choices = choices or Choices(opened.backend.name)  # of another artefact that takes its place
        self._turn = Turn(opened.backend.forks)
        self._started: weakref.WeakSet[Generator[Step, None, None]] = weakref.WeakSet()
        self._warm: list[Warm] = []
        self.device = opened.backend.memory.device  # where latents are
        self.backend = f"{opened.backend.name} ({opened.backend.describe()}), {opened.why}"
        self._hold(loaded, Loops(loaded))

    def _hold(self, loaded: LoadedArtefact, loops: Loops) -> None:
        """Run this artefact from now on."""
        self.manifest: Manifest = loaded.manifest
        self.path, self.link = loaded.folder, loaded.link
        self.decoder = lazy_decoder.decoder_of(loaded, self._choices.tile, self._choices.threads)
        self._texts = text.encoders_of(loaded, self._choices.threads)
        self._loaded: LoadedArtefact | None = loaded
        self._loops: Loops | None = loops

    def __repr__(self) -> str:
        """The model, the share of its schedule, and how it runs, on one line."""
        how = f"{self.backend.partition(' ')[0]} on {self.device}"
        return f"<Pipeline {described(self.manifest, how)}{', closed' if self._loaded is None else ''}>"

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        for generation in list(self._started) if self._turn.mine else ():
            generation.close()  # what was left half way; otherwise its error would hide the one that ended the block
        self.close()

    def __reduce__(self) -> str:
        raise RunError("a pipeline cannot be copied or sent to another process: load the artefact there")

    def close(self) -> None:
        """Free the engines, the buffers and the weights, when the generation that runs has ended.  Closing twice is fine."""
        with self._turn.taken():
            self._loaded = self._loops = self._texts = None
            if self.decoder:
                self.decoder.close()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """The buffers for oneself, on the pipeline's own device."""
        self._turn.check_process()
        with self._turn.taken():
            try:
                if self._loaded:
                    self._loaded.backend.memory.enter()
                yield
            except MemoryError:
                raise RunError("out of memory: generate fewer images at once, or free some memory") from None

    @alone
    def __call__(
        self,
        class_labels: Labels | None = None,
        guidance_scale: asked.Scales = None,
        seed: int | Sequence[int] = 0,
        latents: np.ndarray | None = None,
        output_type: str | None = None,
        callback_on_step_end: Callback | None = None,
        check_finite: bool = False,
        steps: int | None = None,
        cancel: Cancel | None = None,
        height: int | None = None,
        width: int | None = None,
        **inputs: Any,
    ) -> Output:
        """Generate one image per label: a number, or a name where the artefact has names.

        Models that take something else have it in `inputs`, by name: arrays (B, ..) as `manifest.inputs` declares them.
        `guidance_scale` is one number or one per image; 1 turns guidance off, to the bits of an image alone.  Without
        `latents` (B, C, H, W), image i starts from the noise of seed + i, or of seed[i].
        `callback_on_step_end(pipe, step, timestep, {"latents": x})` may return new latents; timesteps are 0..1000.
        `output_type` is "pil" or "np" where there is a decoder or a model of pixels, which then is the default ("np" without
        Pillow); "latent", the default elsewhere; or "device", latents left where they were computed (see `Output`).
        `steps` chooses one of the artefact's programs, by default the first; so do `height` and `width`, of the pictures in
        pixels, or the shape of `latents`, where there are several sizes.
        `check_finite` raises RunError naming the call whose latents are the first to hold NaN or Inf.
        `cancel`, a `threading.Event`, stops the generation between two steps once it is set, with Cancelled; on a GPU, where
        many steps are one launch, after an eighth of them or two.
        Raises UsageError for a request that this artefact cannot meet, before anything is computed.
        """
        started = time.perf_counter()
        request = self.inputs(class_labels, **inputs)
        images = images_of(self.manifest, request, seed, latents)
        output_type = asked.output_type(self.manifest, output_type)
        axes = asked.axes(self.manifest, height, width, latents)
        compiled = self.manifest.program(steps, axes)
        noise = asked.noise(compiled, images, seed) if latents is None else asked.latents(compiled, latents, images)
        generation = self.generation(request, guidance_scale, images, steps, axes)
        if callback_on_step_end or check_finite:
            callback = functools.partial(callback_on_step_end, self) if callback_on_step_end else None
            calls = generation.loop.denoise(noise, generation.inputs, generation.guidance, cancel=cancel)
            stepwise(generation.loop, calls, callback, check_finite)
        else:
            generation.loop.whole(noise, generation.inputs, generation.guidance, cancel)
        denoised = time.perf_counter()
        latents, pictures = self._finished(generation, output_type)
        seconds = time.perf_counter() - started
        LOG.info("%s in %.3f s", counted(images, "image"), seconds)
        LOG.debug("%.3f s until the latents, %.3f s after", denoised - started, seconds + started - denoised)
        return Output(latents, pictures, seconds)

    def _finished(self, generation: Generation, output_type: str) -> tuple[Any, Any]:
        """The latents, and the images if they are wanted."""
        memory, final = generation.loop.memory, generation.loop.latents
        if output_type == "device":
            return memory.copy(final), None
        latents = memory.get(final).copy()
        if output_type == "latent":
            return latents, None
        return latents, to_images(self.decode(latents), output_type)

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Latents (B, C, H, W) as pixels (B, 3, scale H, scale W) around -1..1.  For callbacks: it waits for no generation."""
        return self.decoder(latents) if self.decoder else latents

    def steps(
        self,
        class_labels: Labels | None = None,
        guidance_scale: asked.Scales = None,
        noise: np.ndarray | None = None,
        steps: int | None = None,
        every: int = 1,
        cancel: Cancel | None = None,
        **inputs: Any,
    ) -> Generator[Step, None, None]:
        """The loop itself, for callers that want progress, previews or timing: one item per network evaluation.

        `every=5` makes an item of every fifth one, and of the last; only these are copied to the host.
        From its first item to its end, or until it is closed, the pipeline is busy with it.  `cancel` ends it with Cancelled.
        """
        if not (isinstance(every, int) and every > 0):
            raise UsageError(f"every={every}: must be at least 1")
        request = self.inputs(class_labels, **inputs)
        images = images_of(self.manifest, request, 0, noise)
        axes = asked.axes(self.manifest, None, None, noise)
        latents = asked.latents(self.manifest.program(steps, axes), noise, images)
        generator = self._steps(request, guidance_scale, latents, steps, every, cancel, axes)
        self._started.add(generator)
        return generator

    def _steps(
        self, inputs: Inputs, guidance_scale: asked.Scales, noise: np.ndarray, steps: int | None, every: int,
        cancel: Cancel | None, axes: asked.Axes,
    ) -> Generator[Step, None, None]:  # fmt: skip
        with self._alone():
            generation = self.generation(inputs, guidance_scale, len(noise), steps, axes)
            request = noise, generation.inputs, generation.guidance
            for step in generation.loop.denoise(*request, every=every, cancel=cancel):
                with self._turn.rest():
                    yield step
                generation.loop.memory.enter()  # perhaps in another thread

    @alone
    def warm(
        self, sizes: Sequence[int], guidance_scale: float | None = None, steps: int | None = None,
        height: int | None = None, width: int | None = None,
    ) -> None:  # fmt: skip
        """Make ready for batches of these sizes: memory for the largest, bindings and captured launches for each.

        The first request for so many images then takes as long as the later ones.
        """
        for size in sizes:
            check_count(size, self.manifest.batch, f"sizes={list(sizes)}")
        batches = [*self._warm, Warm(tuple(sizes), guidance_scale, steps, asked.axes(self.manifest, height, width))]
        self._open.warm(batches)
        self._warm = batches

    def replace(self, path: str | os.PathLike[str], verify: bool = True) -> None:
        """Run another artefact from now on, loaded and made as warm as this one while this one still runs.

        The generation that runs ends as it began; the next one is the new artefact's.  It is loaded as this one was, by the
        same backend.  Raises what `load` raises, and UsageError for one that is told or makes something else: then nothing
        has changed.
        """
        if self._turn.mine:
            raise RunError("this pipeline is in the middle of a generation: end it before it is replaced")
        loaded, _ = open_artefact(path, self._choices, verify)
        check_same_requests(path, self.manifest, loaded.manifest)
        loops = Loops(loaded)
        with ending.computing():  # as in a request
            loops.warm(self._warm)
        with self._turn.taken():
            _ = self._open  # it may have been closed
            self._hold(loaded, loops)

    @property
    def _open(self) -> Loops:
        """Raises RunError when closed."""
        if self._loops is None:
            raise RunError(lazy_decoder.CLOSED)
        return self._loops

    def generation(
        self, inputs: Inputs, guidance_scale: asked.Scales, images: int, steps: int | None = None, axes: asked.Axes = None
    ) -> Generation:
        """A program's loop for a batch of this size, and what it is told besides the noise.  Raises RunError when closed."""
        return self._open.generation(inputs, guidance_scale, images, steps, axes)

    def noise(self, count: int, seed: int | Sequence[int]) -> np.ndarray:
        """Standard normal latents (count, C, H, W); each image's depend on its own seed alone."""
        return asked.noise(self.manifest.program(), count, seed)

    def inputs(self, class_labels: Labels | None = None, **inputs: Any) -> dict[str, Any]:
        """What a request says, checked: an array (B, ..) of every input that the artefact declares.  Raises UsageError."""
        return checked(self.manifest, prompts.told(self.manifest, {CLASS_LABELS: class_labels, **inputs}, self._texts))

    def free_text(self) -> None:
        """Release the text encoders; the next prompt that is not known yet loads them again."""
        if self._texts:
            self._texts.free()
