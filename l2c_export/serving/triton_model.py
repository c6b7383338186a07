"""What a Triton model of ours runs, in a process of Triton's Python backend: requests that the server has put together as one
batch of the pipeline.

The bits of an image do not depend on its batch.  A batch whose clients have all left ends before its next step; a wrong request
is answered with its error, and its neighbours are drawn.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from ..errors import BackendError, Cancelled, L2CError, UsageError
from ..runtime.images import Output, as_bytes, to_images
from ..runtime.pipeline import Pipeline, load
from ..support.words import counted, first_line
from .triton_arrays import given, reads_texts
from .triton_request import Ask, read
from .triton_tensors import IMAGES, LATENTS, STEP


class TritonModel:
    """The contract of Triton's Python backend; `utils` is its module triton_python_backend_utils."""

    utils: Any
    pipe: Pipeline

    def initialize(self, args: dict[str, str]) -> None:
        """Load the artefact, and make it ready for the smallest and the largest batch: then the server says that it is."""
        config = json.loads(args["model_config"])
        chosen = {name: value["string_value"] for name, value in config["parameters"].items()}
        self.decoupled = bool(config["model_transaction_policy"]["decoupled"])
        try:
            self.pipe = load(
                chosen["artefact"],
                chosen["backend"] or None,
                chosen["device"] or None,
                int(chosen["threads"]) if chosen["threads"] else None,
                verify=chosen["verify"] == "1",
            )
            if self.pipe.manifest.text and not reads_texts(self.utils):
                raise BackendError(f"this server reads no texts with numpy {np.__version__}: install 'numpy<2' for it")
            self.pipe.warm(self.sizes())
        except L2CError as error:
            raise self.utils.TritonModelException(str(error)) from None
        self.utils.Logger.log_info(f"{config['name']}: {self.pipe!r}")

    def finalize(self) -> None:
        self.pipe.close()

    def sizes(self) -> list[int]:
        """Of the batches that are ready before the first request: a GPU takes no others, a CPU any."""
        most = self.pipe.manifest.batch
        if self.pipe.device == "cpu":
            return sorted({1, most})
        return sorted({*(2**n for n in range(most.bit_length())), most})

    def execute(self, requests: Sequence[Any]) -> list[Any] | None:
        """Answer requests that came together: at once, or where previews are streamed by their senders."""
        answers = [Answer(self, request) for request in requests]
        asks = [(answer, ask) for answer in answers if (ask := self.read(answer))]
        for _, group in groupby(sorted(asks, key=_program), key=_program):
            self.draw(*zip(*group, strict=True))
        return None if self.decoupled else [answer.response for answer in answers]

    def read(self, answer: Answer) -> Ask | None:
        """A request; None for one that is answered already, because it is wrong or nobody waits for it."""
        try:
            if answer.cancelled():
                raise Cancelled("cancelled before call 1")
            return read(answer.request, self.pipe)
        except Exception as error:  # an error of one is not the error of its neighbours
            answer.fail(error)
            return None

    def draw(self, answers: Sequence[Answer], asks: Sequence[Ask]) -> None:
        """One batch."""
        images = sum(ask.images for ask in asks)
        rows = list(_parts(asks))
        steps = self.pipe.manifest.program(asks[0].program.steps).steps_of_solver

        def preview(_: Pipeline, step: int, __: float, state: dict[str, Any]) -> None:
            for answer, ask, part in zip(answers, asks, rows, strict=True):
                if (step + 1) % ask.every == 0 and step + 1 < steps and not answer.cancelled():
                    answer.send(self.made(ask, state["latents"][part], None, step + 1), last=False)

        try:
            output = self.run(asks, images, All(answers), preview if self.decoupled else None)
        except Exception as error:  # whatever it is, every request is answered
            for answer in answers:
                answer.fail(error)
            return
        for answer, ask, part in zip(answers, asks, rows, strict=True):
            latents = output.latents[part]
            if not np.isfinite(latents).all():
                answer.fail(UsageError("its latents are NaN or infinite: try another guidance_scale"))
                continue
            pictures = None if output.images is None else output.images[part]
            answer.send(self.made(ask, latents, pictures, steps), last=True)

    def run(self, asks: Sequence[Ask], images: int, cancel: All, preview: Callable[..., None] | None) -> Output:
        """The images of some requests, and on a GPU some more that fill the next larger size that is ready."""
        padded = images if self.pipe.device == "cpu" else next(size for size in self.sizes() if size >= images)
        index = [*range(images), *[images - 1] * (padded - images)]
        inputs = {name: np.concatenate([ask.inputs[name] for ask in asks])[index] for name in asks[0].inputs}
        return self.pipe(
            **inputs,
            guidance_scale=[scale for ask in asks for scale in ask.scales][:images] + [asks[-1].scales[-1]] * (padded - images),
            seed=[seed for ask in asks for seed in ask.seeds] + [0] * (padded - images),
            output_type="np" if any(ask.pictures for ask in asks) else "latent",
            callback_on_step_end=preview,
            cancel=cancel,
            steps=asks[0].program.steps,
            height=asks[0].program.height,
            width=asks[0].program.width,
        )

    def made(self, ask: Ask, latents: np.ndarray, pictures: np.ndarray | None, step: int) -> list[Any]:
        """The tensors of a response."""
        if pictures is None and ask.pictures and not self.pipe.manifest.decoder:
            pictures = to_images(latents, "np")  # a preview of a model of pixels; another has to be decoded, which takes time
        values = {LATENTS: latents, STEP: np.full((len(latents), 1), step, np.int32)}
        if pictures is not None:
            values[IMAGES] = as_bytes(pictures)
        return [given(self.utils, name, values[name]) for name in values if name in ask.wanted]


class Answer:
    """What goes back for a request: once, or as a stream."""

    def __init__(self, model: TritonModel, request: Any) -> None:
        self.request, self._utils = request, model.utils
        self._sender = request.get_response_sender() if model.decoupled else None
        self.response: Any = None

    def cancelled(self) -> bool:
        return bool((self._sender or self.request).is_cancelled())

    def send(self, tensors: list[Any], last: bool) -> None:
        self._put(self._utils.InferenceResponse(tensors), last)

    def fail(self, error: Exception) -> None:
        """An error of ours is for who asked; any other one is for who runs the server, too."""
        codes, kind = self._utils.TritonError, type(error)
        code = codes.INVALID_ARG if kind is UsageError else codes.CANCELLED if kind is Cancelled else codes.INTERNAL
        words = str(error) if isinstance(error, L2CError) else f"the generation failed: {kind.__name__}"
        if code == codes.INTERNAL:
            self._utils.Logger.log_error(f"{kind.__name__}: {first_line(error)}")
        self._put(self._utils.InferenceResponse([], self._utils.TritonError(words, code)), last=True)

    def _put(self, response: Any, last: bool) -> None:
        if self._sender is None:
            self.response = response
        else:
            self._sender.send(response, flags=self._utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if last else 0)


class All:
    """Set once everybody who waits for a batch has left."""

    def __init__(self, answers: Sequence[Answer]) -> None:
        self._answers = answers

    def is_set(self) -> bool:
        return all(answer.cancelled() for answer in self._answers)


def _parts(asks: Sequence[Ask]) -> Iterator[slice]:
    """The rows of each request."""
    first = 0
    for ask in asks:
        yield slice(first, first + ask.images)
        first += ask.images


def _program(pair: tuple[Answer, Ask]) -> tuple[int, ...]:
    return tuple(value or 0 for value in pair[1].program)
