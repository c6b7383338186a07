"""What a user holds: `load` an artefact, call it, get latents (and images, where the model works on pixels)."""

from __future__ import annotations

import contextlib
import functools
import os
import time
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, ParamSpec, TypeVar

import numpy as np

from ..artefact import store
from ..artefact.guidance import guided_request
from ..artefact.manifest import LINKS, Manifest
from ..backends.choose import Opened, open_backend
from ..backends.contract import Request
from ..backends.descriptors import built
from ..errors import RunError, UsageError
from ..ir.inputs import CLASS_LABELS, Inputs
from ..support import ending
from ..support.log import LOG
from ..support.neighbours import BUSY, Watch
from ..support.words import counted
from ..weights import layout
from . import decoder
from . import request as asked
from .images import Output, to_images
from .inputs import Labels, checked, images_of
from .loaded import LoadedArtefact, load_engines
from .lock import Turn
from .loop import Loop, Step

Callback = Callable[["Pipeline", int, float, dict[str, Any]], Mapping[str, Any] | None]
P = ParamSpec("P")
R = TypeVar("R")
Scales = float | Sequence[float] | np.ndarray | None


class Generation(NamedTuple):
    """What a request asks of the loop, besides the noise."""

    loop: Loop
    inputs: Inputs  # (R, ..) by name, the unconditional half last
    guidance: np.ndarray  # (B, C, 1, ..) float32: an image's scale - 1, or 0 for an unguided channel


@ending.computing()
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
    `device` to the CPU, `threads` to all cores.  Every file is
    checked against its hash before it is used; `verify=False` skips that for the weights, of an artefact that you trust.
    `link` is "shared" or "static" instead of what it was compiled for, where engines are made when they are loaded.
    `tile` is the side in pixels of the parts in which an artefact with a decoder decodes larger pictures, to save memory.
    Where others keep the processors busy a warning is logged if fewer threads may be faster: their number decides the bits of
    an image, so it does not depend on the moment.
    Raises ArtefactError for one that is incomplete, damaged or unlinked, and BackendError where it cannot run here.
    """
    started, folder, others = time.perf_counter(), asked.folder(path), Watch()
    manifest = store.read(folder, trusted=() if verify else (layout.WEIGHTS,))
    store.check_linked(folder, manifest)
    if link not in (None, *LINKS):
        raise UsageError(f"link={link!r}: use one of {', '.join(LINKS)}")
    decoder.check_tile(tile, manifest.decoder or None)
    request = Request(device, threads, manifest.precision, folder, tuple(manifest.builds.values()), manifest.files)
    opened = open_backend(backend or manifest.backend, request)
    if link not in (None, manifest.link) and opened.backend.name in built():
        raise UsageError(f"link={link!r}: the engines of {opened.backend.name} were built for link={manifest.link!r}")
    loaded = load_engines(folder.absolute(), manifest, opened.backend, link)  # the process may go elsewhere
    store.check_unchanged(folder, manifest)
    if threads is None and opened.backend.spins:
        advise(others.share())
    LOG.info("%s: loaded in %.2f s, %s, %s", folder, time.perf_counter() - started, opened.backend.name, opened.why)
    return Pipeline(loaded, opened, tile)


def advise(share: float | None) -> None:
    """Warn if others want so much of the processors that threads which spin wait for them."""
    if share is not None and share > BUSY:
        LOG.warning("other programs use %.0f%% of the processors: one thread instead of all may be faster here", 100 * share)


def alone(method: Callable[P, R]) -> Callable[P, R]:
    """A method of `Pipeline` that uses its buffers: one at a time."""

    @functools.wraps(method)
    def run(*given: P.args, **named: P.kwargs) -> R:
        pipeline = given[0]
        assert isinstance(pipeline, Pipeline)
        with pipeline._alone():
            return method(*given, **named)

    return run


class Pipeline:
    """A compiled sampler.  It makes one generation at a time: other threads wait for their turn.

    As a context manager it is closed at the end.
    """

    def __init__(self, loaded: LoadedArtefact, opened: Opened, tile: int | None = None) -> None:
        self.manifest: Manifest = loaded.manifest
        self.path = loaded.folder
        self._loaded: LoadedArtefact | None = loaded
        self._tile = tile
        self._decoder: decoder.Decoder | None = None
        self._turn = Turn(opened.backend.forks)
        self._started: weakref.WeakSet[Generator[Step, None, None]] = weakref.WeakSet()
        self.link = loaded.link
        self.device = opened.backend.memory.device  # where latents are
        self.backend = f"{opened.backend.name} ({opened.backend.describe()}), {opened.why}"
        self._loops: dict[tuple[str, int, bool], Loop] = {}

    def __repr__(self) -> str:
        """The model, the share of its schedule, and how it runs, on one line."""
        manifest, model = self.manifest, self.manifest.denoiser
        guidance = f"guidance {manifest.guidance.mode} {manifest.guidance.scale:g}"
        name, programs = model.name or model.family, " or ".join(compiled.summary for compiled in manifest.all_programs())
        state = ", closed" if self._loaded is None else ""
        return (
            f"<Pipeline {name}: {programs}, {manifest.precision}, "
            f"{self.backend.partition(' ')[0]} on {self.device}, batch {manifest.batch}, {guidance}{state}>"
        )

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
            self._loaded = self._decoder = None
            self._loops.clear()

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
        guidance_scale: Scales = None,
        seed: int | Sequence[int] = 0,
        latents: np.ndarray | None = None,
        output_type: str | None = None,
        callback_on_step_end: Callback | None = None,
        check_finite: bool = False,
        steps: int | None = None,
        **inputs: Any,
    ) -> Output:
        """Generate one image per label: a number, or a name where the artefact has names.

        Models that take something else have it in `inputs`, by name: arrays (B, ..) as `manifest.inputs` declares them.
        `guidance_scale` is one number or one per image; 1 turns guidance off, to the bits of an image alone.  Without
        `latents` (B, C, H, W), image i starts from the noise of seed + i, or of seed[i].
        `callback_on_step_end(pipe, step, timestep, {"latents": x})` may return new latents; timesteps are 0..1000.
        `output_type` is "pil" or "np" where there is a decoder or a model of pixels, which then is the default ("np" without
        Pillow); "latent", the default elsewhere; or "device", latents left where they were computed (see `Output`).
        `steps` chooses one of the artefact's programs, by default the first.
        `check_finite` raises RunError naming the call whose latents are the first to hold NaN or Inf.
        Raises UsageError for a request that this artefact cannot meet, before anything is computed.
        """
        started = time.perf_counter()
        request = self.inputs(class_labels, **inputs)
        images = images_of(self.manifest, request, seed, latents)
        output_type = asked.output_type(self.manifest, output_type)
        noise = self.noise(images, seed) if latents is None else asked.latents(self.manifest, latents, images)
        generation = self.generation(request, guidance_scale, images, steps)
        if callback_on_step_end or check_finite:
            self._stepwise(generation, noise, callback_on_step_end, check_finite)
        else:
            generation.loop.whole(noise, generation.inputs, generation.guidance)
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
        return latents, to_images(self._decode(generation.loop.loaded, latents), output_type)

    def _decode(self, loaded: LoadedArtefact, latents: np.ndarray) -> np.ndarray:
        """Latents (B, C, H, W) -> pixels (B, 3, scale H, scale W) around -1..1; they are pixels already without a decoder."""
        if not self.manifest.decoder:
            return latents
        if self._decoder is None:
            info = self.manifest.files[self.manifest.decoder.file]
            store.check_same(loaded.folder, self.manifest.decoder.file, info)  # it is read now that it is needed
            self._decoder = decoder.Decoder(loaded.folder, self.manifest.decoder, loaded.backend, self._tile, info)
        return self._decoder(latents)

    def _stepwise(self, generation: Generation, noise: np.ndarray, callback: Callback | None, check_finite: bool) -> None:
        """The loop with a stop after every call."""
        step = -1
        for done in generation.loop.denoise(noise, generation.inputs, generation.guidance):
            if check_finite and not np.isfinite(done.x).all():
                raise RunError(f"call {done.index} (timestep {done.call.timestep:g}) made NaN or infinite latents")
            if not done.call.ends_step:
                continue
            step += 1
            if callback:
                with ending.resting():
                    given = callback(self, step, generation.loop.compiled.step_timestep(done.index), {"latents": done.x.copy()})
                changed = asked.returned(self.manifest, given, len(noise))
                if changed is not None:
                    done.x[...] = changed
                    if check_finite and not np.isfinite(done.x).all():
                        raise RunError(f"the callback after step {step} returned NaN or infinite latents")

    def steps(
        self,
        class_labels: Labels | None = None,
        guidance_scale: Scales = None,
        noise: np.ndarray | None = None,
        steps: int | None = None,
        **inputs: Any,
    ) -> Generator[Step, None, None]:
        """The loop itself, for callers that want progress or timing: one item per network evaluation.

        From its first item to its end, or until it is closed, the pipeline is busy with it.
        """
        request = self.inputs(class_labels, **inputs)
        images = images_of(self.manifest, request, 0, noise)
        made = self._steps(request, guidance_scale, asked.latents(self.manifest, noise, images), steps)
        self._started.add(made)
        return made

    def _steps(
        self, inputs: Inputs, guidance_scale: Scales, noise: np.ndarray, steps: int | None
    ) -> Generator[Step, None, None]:
        with self._alone():
            generation = self.generation(inputs, guidance_scale, len(noise), steps)
            for step in generation.loop.denoise(noise, generation.inputs, generation.guidance):
                with self._turn.rest():
                    yield step
                generation.loop.memory.enter()  # perhaps in another thread

    def generation(self, inputs: Inputs, guidance_scale: Scales, images: int, steps: int | None = None) -> Generation:
        """A program's loop for a batch of this size, and what it is told besides the noise.  Raises RunError when closed."""
        if self._loaded is None:
            raise RunError("this pipeline is closed: load the artefact again")
        compiled = self.manifest.program(steps)
        scales = asked.scales(compiled, guidance_scale, images)
        key = compiled.name, images, compiled.guidance.doubled(scales)
        if key not in self._loops:
            self._loops.clear()  # buffers of one batch size at a time
            self._loops[key] = Loop(self._loaded, compiled, *key[1:])
        return Generation(self._loops[key], *guided_request(compiled, inputs, scales))

    def noise(self, count: int, seed: int | Sequence[int]) -> np.ndarray:
        """Standard normal latents (count, C, H, W); each image's depend on its own seed alone."""
        return asked.noise(self.manifest, count, seed)

    def inputs(self, class_labels: Labels | None = None, **inputs: Any) -> dict[str, Any]:
        """What a request says, checked: an array (B, ..) of every input that the artefact declares.  Raises UsageError."""
        return checked(self.manifest, {CLASS_LABELS: class_labels, **inputs})
