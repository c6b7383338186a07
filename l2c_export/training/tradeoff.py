"""What a router costs and saves at every threshold: the share of sublayers removed, against what that changes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

import msgspec
import numpy as np
import torch
from torch import Tensor

from .lessons import Draw, Lesson
from .mixing import AsCompiled

if TYPE_CHECKING:
    from .sampling import Trajectories


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """A threshold, and the share of the cached calls' sublayers that it removes.

    `mse` is the mean squared error of the model's output in a cached call (None where it was not measured), `error` the root
    mean square error of the final latents against the uncached ones, as a share of their root mean square.
    """

    threshold: float
    removed: float
    mse: float | None
    error: float


class Tradeoff(msgspec.Struct, frozen=True, kw_only=True, rename={"lambda_": "lambda"}):
    """The curve, as it is written to tradeoff.json; `chosen` is one of the points."""

    format: Literal["l2c-tradeoff"] = "l2c-tradeoff"
    version: Literal[1] = 1
    family: str
    steps: int
    iterations: int
    lambda_: float
    chosen: Point
    points: tuple[Point, ...]


def measure(
    sampler: Trajectories, scores: np.ndarray, thresholds: list[float], lessons: Iterable[Lesson], draw: Draw
) -> tuple[Point, ...]:
    """Run every lesson, and sample the draw, with the sublayers removed that each threshold removes."""
    masks = [scores > np.float32(threshold) for threshold in thresholds]
    mse = sampler.workers.mean(output_errors(sampler, masks, lessons)).tolist()
    uncached = sampler.latents(draw, sampler.everything)
    latents = torch.stack(
        [(sampler.latents(draw, keep) - uncached).square().mean() for keep in masks] + [uncached.square().mean()]
    )
    *errors, power = sampler.workers.mean(latents).tolist()
    return tuple(
        Point(threshold=threshold, removed=float(1 - keep.mean()), mse=of_output, error=math.sqrt(of_latents / power))
        for threshold, keep, of_output, of_latents in zip(thresholds, masks, mse, errors, strict=True)
    )


@torch.no_grad()
def output_errors(sampler: Trajectories, masks: list[np.ndarray], lessons: Iterable[Lesson]) -> Tensor:
    """The mean squared error of the outputs of all lessons, for each choice of what is kept (pairs, columns)."""
    family, weights = sampler.observer.family, sampler.observer.weights
    errors, outputs = torch.zeros(len(masks), device=sampler.workers.device), 0
    for lesson in lessons:
        errors_of: dict[frozenset[str], Tensor] = {}  # neighbouring thresholds often agree about a call
        for n, keep in enumerate(masks):
            reused = frozenset(name for name, computed in zip(family.sublayers, keep[lesson.pair], strict=True) if not computed)
            if reused not in errors_of:
                output = family.call(AsCompiled(family, weights, reused, lesson.cache, {}), *lesson.inputs)
                errors_of[reused] = (output - lesson.target).square().mean()
            errors[n] += errors_of[reused]
        outputs += 1
    return errors / outputs
