"""A pipeline whose calls wait until they are let go, and which can fail: what an engine does in between is seen."""

from __future__ import annotations

import math
import threading

import numpy as np

from l2c_export.serving.job import Job

SOON = 60  # seconds


class Held:
    """Everything but a call is the pipeline's own."""

    def __init__(self, pipe):
        self.pipe, self.device = pipe, pipe.device
        self.batches: list[int] = []  # of how many images every call was
        self.ended: list[str] = []  # how
        self.warmed: set[tuple[int, tuple[int, ...]]] = set()
        self.raises: Exception | None = None  # in the second call
        self.nan_row: int | None = None
        self._changed = threading.Condition()
        self._allowed: float = math.inf

    def __getattr__(self, name):
        return getattr(self.pipe, name)

    def warm(self, sizes, guidance_scale, steps, height, width):
        self.warmed.add((steps, tuple(sizes)))
        self.pipe.warm(sizes, guidance_scale, steps, height, width)

    def __call__(self, **request):
        with self._changed:
            self.batches.append(len(request["seed"]))
            turn = len(self.batches)
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: turn <= self._allowed, SOON)
        if self.raises and turn == 2:
            raise self.raises
        try:
            out = self.pipe(**request)
        except Exception as error:
            self.ended.append(str(error))
            raise
        self.ended.append("made")
        if self.nan_row is not None and len(out.latents) > self.nan_row:
            out.latents[self.nan_row, 0, 0, 0] = np.nan
        return out

    def hold(self):
        """Let no call that has not begun yet go on."""
        with self._changed:
            self._allowed = len(self.batches)

    def let(self, calls=math.inf):
        """Let so many more calls go on."""
        with self._changed:
            self._allowed += calls
            self._changed.notify_all()

    def wait_begun(self, calls):
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.batches) >= calls, SOON)

    def begun(self, engine):
        """A job of which the batch has begun."""
        calls = len(self.batches)
        ticket = engine.submit(Job({"prompt": "a bird"} if self.manifest.text else {"class_labels": 5}))
        self.wait_begun(calls + 1)
        return ticket

    def behind_one(self, engine, jobs):
        """Submit jobs while a batch of one runs, so that they are together in the queue when it ends."""
        self.hold()
        self.begun(engine)
        tickets = [engine.submit(job) for job in jobs]
        self.let()
        return tickets
