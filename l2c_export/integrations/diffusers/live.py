"""Compiled calls in a live pipeline of diffusers: its call, text encoders, autoencoder and outputs, without its loop.

What a compiled call does ends with guidance and the scheduler's step, so it cannot stand in for the transformer alone; the
pipeline's `__call__` is replaced.  torch and diffusers are those that the pipeline already uses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...errors import UsageError
from ...runtime import pipeline, request
from . import live_labels, live_prompts
from .live_artefact import ATTRIBUTE, LiveArtefact, compiled_scheduler

# what takes the place of a class's own call
CALLS: Mapping[str, Callable[..., Any]] = {
    "DiTPipeline": live_labels.call,
    **dict.fromkeys(live_prompts.PIPELINES, live_prompts.call),
}


def enable_l2c(pipe: Any, engines: str | Path, **options: Any) -> Any:
    """Let a pipeline run the artefact in `engines`; `options` are those of `l2c_export.load`.

    It is one of DiT, PixArt-alpha, PixArt-Sigma, Stable Diffusion 3 or FLUX.1.  Returns the same pipeline;
    `pipe.disable_l2c()` undoes it.  Raises UsageError where the pipeline's transformer, weights or scheduler are not those
    that were compiled.
    """
    kind = type(pipe)
    name = next((c.__name__ for c in kind.__mro__ if c.__name__ in CALLS), "")
    if not name:
        raise UsageError(f"enable_l2c: a {kind.__name__} is not supported: give a {', '.join(CALLS)} of diffusers")
    base = getattr(pipe, ATTRIBUTE).kind if hasattr(pipe, ATTRIBUTE) else kind
    if (home := next(c for c in base.__mro__ if "__call__" in vars(c))).__name__ != name:
        raise UsageError(
            f"enable_l2c: {home.__name__} has a call of its own, which a compiled one would replace: give a {name}"
        )
    folder = request.folder(engines)
    compiled = pipeline.load(folder, **options)
    live = LiveArtefact(compiled, compiled_scheduler(folder, compiled.manifest, name), folder.absolute(), base, home)
    live.check_transformer(pipe.transformer)
    live.check_scheduler(pipe.scheduler)
    # under the same name, so that the pipeline still saves itself as what it is
    own = {"__call__": CALLS[name], "disable_l2c": _disable, "__module__": base.__module__}
    object.__setattr__(pipe, "__class__", type(base.__name__, (base,), own))
    object.__setattr__(pipe, ATTRIBUTE, live)
    return pipe


def _disable(self: Any) -> Any:
    """The pipeline as it was."""
    object.__setattr__(self, "__class__", self.l2c.kind)
    object.__delattr__(self, ATTRIBUTE)
    return self
