"""A job that was accepted: checked, and waiting for its one answer."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Hashable, Mapping
from concurrent.futures import Future, InvalidStateError
from typing import TYPE_CHECKING, Any

from ..artefact.compiled import Compiled
from ..ir.inputs import NEGATIVE_PROMPT, PROMPT
from ..runtime import inputs, prompts, request
from .job import Job, Made

if TYPE_CHECKING:
    from ..runtime.pipeline import Pipeline
    from .previews import OnPreview


class Ticket(Future[Made]):
    """A `concurrent.futures.Future` of the image.

    It is answered once: with the image, with an error, or by `cancel()`, which works until then.  A batch ends before its next
    step once nobody waits for one of its images.
    """

    def __init__(self, pipe: Pipeline, job: Job, on_preview: OnPreview | None = None) -> None:
        """Raises UsageError for what this artefact cannot make."""
        super().__init__()
        self.pipe, self.job, self.on_preview = pipe, job, on_preview
        manifest = pipe.manifest
        self.program: Compiled = manifest.program(job.steps, request.axes(manifest, job.height, job.width))
        self.scale = float(request.scales(self.program, job.guidance_scale, 1)[0])
        (self.seed,) = request.seeds(1, [job.seed])
        self.request: Mapping[str, Any] = {name: _batched(value) for name, value in job.inputs.items() if value is not None}
        self.kind: Hashable = (
            id(pipe),
            self.program.name,
            self._told(),
            None if self.program.guides_each_image else self.scale,
        )
        self.queued = time.monotonic()

    def _told(self) -> Hashable:
        """What it says: requests that say the same things share a batch."""
        manifest = self.pipe.manifest
        texts = prompts.checked(manifest, self.request, 1)
        if texts.asked is not None or texts.without is not None:
            others = frozenset(texts.others)
            return others | {name for name, said in zip((PROMPT, NEGATIVE_PROMPT), texts[:2], strict=True) if said is not None}
        return frozenset(inputs.checked(manifest, self.request))

    def arrays(self) -> dict[str, Any]:
        """The request as arrays (1, ..) by name; prompts are encoded now."""
        return self.pipe.inputs(**self.request)

    def answer(self, made: Made | BaseException) -> None:
        """Answer it, unless it has been answered."""
        with contextlib.suppress(InvalidStateError):
            if isinstance(made, Made):
                self.set_result(made)
            else:
                self.set_exception(made)


def _batched(value: Any) -> Any:
    """One image's value as a batch of one."""
    return value[None] if getattr(value, "ndim", 0) else [value]
