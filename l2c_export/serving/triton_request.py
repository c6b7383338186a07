"""A request of Triton's, read: the arrays, seeds and scales of its images, and which of the artefact's loops it wants.

Everything that is refused is a UsageError of one line.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..artefact.manifest import Manifest
from ..errors import UsageError
from ..ir.inputs import NEGATIVE_PROMPT, PROMPT
from ..runtime import request as asked
from ..runtime.pipeline import Pipeline
from ..support.words import counted
from .triton_arrays import taken
from .triton_tensors import EVERY, HEIGHT, LATENTS, SCALE, SEED, STEPS, WIDTH, said

PREVIEW_EVERY = 5


class Program(NamedTuple):
    """Images of one program run together; None is what the artefact has first."""

    steps: int | None
    height: int | None
    width: int | None


class Ask(NamedTuple):
    """A request, checked."""

    request: Any  # Triton's own
    wanted: frozenset[str]  # outputs
    inputs: dict[str, np.ndarray]  # (B, ..) by name
    seeds: list[int]
    scales: list[float]
    program: Program
    every: int  # steps between two previews

    @property
    def images(self) -> int:
        return len(self.seeds)

    @property
    def pictures(self) -> bool:
        """Whether more than latents and the count of steps is wanted."""
        return not self.wanted <= {LATENTS, "step"}


def read(request: Any, pipe: Pipeline) -> Ask:
    """What a request says.  Raises UsageError."""
    manifest = pipe.manifest
    given = {each.name(): taken(each) for each in request.inputs()}
    count = len(next(iter(given.values())))
    program = Program(*(single(given, name) for name in (STEPS, HEIGHT, WIDTH)))
    compiled = manifest.program(program.steps, asked.axes(manifest, program.height, program.width))
    scales = asked.scales(compiled, column(given, SCALE), count)
    seeds = asked.seeds(count, 0 if SEED not in given else column(given, SEED))
    every = single(given, EVERY)
    if every is not None and every < 1:
        raise UsageError(f"every={every}: must be at least 1")
    return Ask(
        request,
        frozenset(request.requested_output_names()),
        pipe.inputs(**told(manifest, given, count)),
        seeds,
        scales.tolist(),
        program,
        every or PREVIEW_EVERY,
    )


def told(manifest: Manifest, given: dict[str, np.ndarray], images: int) -> dict[str, Any]:
    """What the model is told, by the keywords of a pipeline."""
    words: dict[str, Any] = {}
    for each in said(manifest):
        if each.name not in given:
            continue
        values = given[each.name]
        if each.name in (PROMPT, NEGATIVE_PROMPT):
            words[each.name] = [text(each.name, entry) for entry in values.reshape(images)]
        else:
            shape = next((i.shape for i in manifest.inputs if each.name in (i.name, i.negative)), None)
            words[each.name] = values[:, 0].tolist() if shape == () else values
    return words


def text(name: str, given: bytes) -> str:
    """A text, which is bytes on its way."""
    try:
        return given.decode()
    except UnicodeDecodeError:
        raise UsageError(f"{name}: is no text in UTF-8") from None


def column(given: dict[str, np.ndarray], name: str) -> Any:
    """The number of every image; None where there are none."""
    return [number.item() for number in given[name][:, 0]] if name in given else None


def single(given: dict[str, np.ndarray], name: str) -> int | None:
    """The number that all images of a request have."""
    numbers = set(column(given, name) or [None])
    if len(numbers) > 1:
        raise UsageError(f"{name}: a request of {counted(len(given[name]), 'image')} has one: send those of another on their own")
    return numbers.pop()
