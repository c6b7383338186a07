"""What a router costs and saves at every threshold: the share of sublayers removed, against the error of the output."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import msgspec
import numpy as np
import torch
from torch import Tensor

from ..models.base import Family
from ..models.eager import Eager
from .lessons import Lesson
from .workers import Workers

SHARES = 20  # points of the curve


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """A threshold.  Shares are of the cached calls' sublayers; `mse` is of the model's output, `relative` its root over the
    root mean square of the uncached output."""

    threshold: float
    removed: float
    mse: float
    relative: float


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


def threshold_for(scores: np.ndarray, removed: float) -> float:
    """The threshold at which at least this share of the scores is removed: a score is removed unless it is above it."""
    count = math.ceil(round(removed * scores.size, 6))
    return float(np.sort(scores, axis=None)[count - 1]) if count else 0.0


def candidates(scores: np.ndarray, chosen: float) -> list[float]:
    """Thresholds that remove from nothing to everything, and the chosen one, ascending."""
    return sorted({chosen, *(threshold_for(scores, k / SHARES) for k in range(SHARES + 1))})


def measure(family: Family, weights: Any, scores: np.ndarray, thresholds: list[float], lessons: Iterable[Lesson],
            workers: Workers) -> tuple[Point, ...]:  # fmt: skip
    """Run every lesson with the sublayers removed that each threshold removes."""
    errors = torch.zeros(len(thresholds), dtype=torch.float64)
    power, outputs = 0.0, 0
    for lesson in lessons:
        found: dict[frozenset[str], float] = {}
        for n, threshold in enumerate(thresholds):
            kept = scores[lesson.pair] > np.float32(threshold)
            reused = frozenset(name for name, keep in zip(family.sublayers, kept, strict=True) if not keep)
            if reused not in found:
                found[reused] = float((cached_output(family, weights, lesson, reused) - lesson.target).square().mean())
            errors[n] += found[reused]
        power += float(lesson.target.square().mean())
        outputs += 1
    mean = workers.mean(torch.cat([errors, torch.tensor([power], dtype=torch.float64)]).to(workers.device) / outputs).tolist()
    return tuple(
        Point(threshold=t, removed=float((scores <= np.float32(t)).mean()), mse=mse, relative=math.sqrt(mse / mean[-1]))
        for t, mse in zip(thresholds, mean[:-1], strict=True)
    )


@torch.no_grad()
def cached_output(family: Family, weights: Any, lesson: Lesson, reused: frozenset[str]) -> Tensor:
    cache: Mapping[str, Tensor] = lesson.cache
    output: Tensor = family.call(Eager(family, weights, reused, cache, {}), *lesson.inputs)
    return output
