"""What goes back to Triton for a request: once, or as a stream of previews that ends with the images."""

from __future__ import annotations

from collections import defaultdict
from concurrent.futures import CancelledError
from typing import Any

import numpy as np

from ..errors import UsageError
from ..runtime.images import as_bytes
from ..support.words import first_line
from .previews import Preview
from .ticket import Ticket
from .triton_arrays import tensor_of
from .triton_tensors import IMAGES, LATENTS, STEP


class Reply:
    """Of one request, whose images are its `tickets`."""

    def __init__(self, utils: Any, request: Any, decoupled: bool) -> None:
        self.request, self._utils = request, utils
        self._sender = request.get_response_sender() if decoupled else None
        self._wanted = request.requested_output_names()
        self._shown = defaultdict[int, list[Preview]](list)  # by their step
        self.tickets: list[Ticket] = []
        self.images = 0
        self.response: Any = None

    def left(self) -> bool:
        """Whether nobody waits for it any more."""
        return bool((self._sender or self.request).is_cancelled())

    def preview(self, shown: Preview) -> None:
        """One image's; what goes back is that of all images of the request."""
        rows = self._shown[shown.step]
        rows.append(shown)
        if len(rows) == self.images and not self.left():
            self._send(np.stack([row.latents for row in rows]), [row.pixels for row in rows], shown.step, last=False)

    def finish(self) -> None:
        """With the images, or the first error that there is."""
        try:
            images = [ticket.result() for ticket in self.tickets]
        except (Exception, CancelledError) as error:
            self.fail(error)
            return
        steps = self.tickets[0].program.steps_of_solver
        self._send(np.stack([image.latents for image in images]), [image.pixels for image in images], steps, last=True)

    def fail(self, error: BaseException) -> None:
        """An error that is not the client's is for who runs the server: it may name files."""
        codes = self._utils.TritonError
        if isinstance(error, CancelledError):
            words, code = "cancelled", codes.CANCELLED
        elif isinstance(error, UsageError):
            words, code = str(error), codes.INVALID_ARG
        else:
            words, code = "the generation failed: the server's log says how", codes.INTERNAL
            self._utils.Logger.log_error(f"{type(error).__name__}: {first_line(error)}")
        self._put(self._utils.InferenceResponse([], self._utils.TritonError(words, code)), last=True)

    def _send(self, latents: np.ndarray, pixels: list[np.ndarray | None], step: int, last: bool) -> None:
        values = {LATENTS: latents, STEP: np.full((len(latents), 1), step, np.int32)}
        shown = [image for image in pixels if image is not None]
        if shown:
            values[IMAGES] = as_bytes(np.stack(shown))
        tensors = [tensor_of(self._utils, name, values[name]) for name in values if name in self._wanted]
        self._put(self._utils.InferenceResponse(tensors), last)

    def _put(self, response: Any, last: bool) -> None:
        if self._sender is None:
            self.response = response
        else:
            self._sender.send(response, flags=self._utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if last else 0)
