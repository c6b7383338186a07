"""A contender in a process of its own: libraries' threads, memory and caches do not meet.

`process.Process` is the side that asks, `main` (python -m l2c_export.benchmarks.worker) the one that answers: it takes a `Task`
as one line of JSON on stdin, loads the contender and makes a first image, and then answers every line with one line of JSON:

    image      a `Timed`: the seconds of one more image, and of every call
    overhead   what the loop adds to its engine runs, as a share (our engines only, else null)
    memory     the process's peak memory, in bytes
    pin 0 1    null, after moving every thread to these cores

What a library prints goes to stderr, so that only answers are on stdout.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np

from ..artefact import store
from ..artefact.call_record import CallRecord, computed_share
from ..artefact.manifest import Manifest
from ..backends.descriptors import named
from ..errors import L2CError
from ..ir.inputs import Inputs, usual
from ..support import machine
from ..support.clock import seconds_between, seconds_of
from ..weights.layout import WEIGHTS
from .contenders import Settings
from .process import Ready, Task, Timed


class Loaded(msgspec.Struct, frozen=True):
    """A contender that can make images."""

    settings: Settings
    artefact_bytes: int
    image: Callable[[], Timed]
    overhead: Callable[[], float | None]


def load(task: Task) -> Loaded:
    """Load a contender into this process."""
    contender, request = task.contender, task.request
    manifest = store.read(Path(contender.folder), verify=False)
    inputs = usual(manifest.inputs, request.images)
    scale = manifest.guidance.scale if request.guidance_scale is None else request.guidance_scale
    return (_engines if contender.runtime == "engines" else _pytorch)(task, manifest, inputs, scale)


def _engines(task: Task, manifest: Manifest, inputs: Inputs, scale: float) -> Loaded:
    from ..inspection import profile
    from ..runtime import pipeline

    request = task.request
    pipe = pipeline.load(task.contender.folder, task.contender.backend, request.device, request.threads)
    noise = pipe.noise(request.images, request.seed)
    backend = pipe.backend.partition(" ")[0]
    version = sys.modules[named(backend).library].__version__.partition("-")[0]  # of what was loaded, if two are installed
    settings = _settings(task, manifest, manifest.program().calls, inputs, scale, f"{backend} {version}".strip())
    generation = pipe.generation(inputs, scale, request.images)
    on_gpu = not generation.loop.memory.on_host

    def on_its_clock() -> Timed:
        seconds = seconds_of(lambda: pipe(**inputs, guidance_scale=scale, latents=noise, output_type="latent"))
        return Timed(seconds, tuple(generation.loop.timed(noise, generation.inputs, generation.guidance)))

    return Loaded(
        settings=msgspec.structs.replace(settings, device=request.device or "cuda") if on_gpu else settings,
        artefact_bytes=manifest.bytes,
        image=on_its_clock if on_gpu else lambda: call_by_call(pipe.steps(**inputs, guidance_scale=scale, noise=noise)),
        overhead=lambda: profile.record(pipe, inputs, scale, noise).overhead,
    )


def _pytorch(task: Task, manifest: Manifest, inputs: Inputs, scale: float) -> Loaded:
    from ..artefact.guidance import guided_request
    from ..support.extras import needs

    needs("torch", "export")
    from ..pytorch import baseline
    from ..samplers.noise import standard_normal

    contender, request = task.contender, task.request
    compiled = contender.runtime == "torch-compile"
    model = baseline.Baseline(Path(contender.folder), manifest, compiled, request.threads, request.device, contender.cached)
    own = manifest.program()
    calls = own.calls if contender.cached else baseline.uncached(own.calls)
    noise = standard_normal(own.latent, range(request.seed, request.seed + request.images))
    guided = guided_request(own, inputs, np.full(request.images, scale))
    settings = _settings(task, manifest, calls, inputs, scale, model.runtime)

    def on_its_clock() -> Timed:
        seconds = seconds_of(lambda: model.finish(model.steps(calls, noise, *guided)))
        return Timed(seconds, tuple(model.timed(model.steps(calls, noise, *guided))))

    return Loaded(
        settings=msgspec.structs.replace(settings, passes=(), link="none"),
        artefact_bytes=manifest.files[WEIGHTS].bytes,
        image=on_its_clock if model.on_gpu else lambda: call_by_call(model.steps(calls, noise, *guided)),
        overhead=lambda: None,
    )


def _settings(
    task: Task, manifest: Manifest, calls: Sequence[CallRecord], inputs: Inputs, scale: float, runtime: str
) -> Settings:
    computed = [call.computed for call in calls]
    assert manifest.denoiser.weights
    return Settings(
        runtime=runtime,
        passes=manifest.passes,
        link=manifest.link,
        schedule=hashlib.sha256(msgspec.json.encode(computed)).hexdigest(),
        computed=computed_share(calls, len(manifest.denoiser.sublayers)),
        weights=manifest.files[WEIGHTS].sha256,
        random_weights=manifest.denoiser.weights.random is not None,
        model=manifest.denoiser.name or manifest.denoiser.family,
        precision=" ".join((manifest.precision, *(f"fp32:{name}" for name in manifest.denoiser.fp32))),
        images=task.request.images,
        calls=len(calls),
        steps=manifest.program().steps,
        sampler=manifest.program().sampler,
        guidance=manifest.guidance.mode,
        guidance_scale=scale,
        request=hashlib.sha256(b"".join(name.encode() + inputs[name].tobytes() for name in sorted(inputs))).hexdigest(),
        seed=task.request.seed,
        threads=task.request.threads,
        device=task.request.device or "cpu",
    )


def call_by_call(steps: Iterator[object]) -> Timed:
    """An image whose calls return when they have ended."""
    seconds = seconds_between(steps)
    return Timed(sum(seconds), tuple(seconds))


def answer(loaded: Loaded, what: str, cores: list[str]) -> object:
    if what == "image":
        return loaded.image()
    if what == "overhead":
        return loaded.overhead()
    if what == "memory":
        return machine.peak_host_bytes()
    for thread in os.listdir("/proc/self/task"):
        os.sched_setaffinity(int(thread), map(int, cores))
    return None


def main() -> None:
    """Load what stdin asks for, make a first image, then answer."""
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # libraries print to stdout

    def say(answer_of: Callable[[], object]) -> None:
        try:
            text = msgspec.json.encode({"answer": answer_of()})
        except L2CError as error:
            text = msgspec.json.encode({"error": str(error)})
        answers.write(text + b"\n")

    task = msgspec.json.decode(sys.stdin.readline(), type=Task)
    loaded: list[Loaded] = []

    def first() -> Ready:
        start = time.perf_counter()
        loaded.append(load(task))
        ready = Ready(loaded[0].settings, time.perf_counter() - start, loaded[0].artefact_bytes)
        loaded[0].image()
        return ready

    say(first)
    for line in sys.stdin:
        what, *cores = line.split()
        say(lambda: answer(loaded[0], what, cores))  # noqa: B023  (called at once)


if __name__ == "__main__":
    main()
