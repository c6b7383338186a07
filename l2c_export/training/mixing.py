"""Soft caching: every sublayer's value is a mixture of the new one and the cached one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..models import layers
from ..models.family import Family
from ..pytorch.eager import Eager, tensorwise

if TYPE_CHECKING:
    from .lessons import Lesson


@dataclass
class AsCompiled(Eager):
    """A Runner whose values have the types that they have in an artefact: in bf16, the residual stream is float32."""

    def _computed(self, op: str, inputs: Sequence[Any], at: str) -> Any:
        segment = self.family.segments[op]
        return segment.function(*inputs, *(self.weights[f"{at}.{w}" if at else w] for w in segment.weights))


@dataclass
class Mixing(AsCompiled):
    """A Runner whose sublayers give score * new + (1 - score) * cached, the new value computed on the mixed stream.

    The mixture is made in float32: a score's gradient is a small difference of two large sums.
    """

    scores: Mapping[str, Tensor]  # () float32, by sublayer

    def sublayer(self, op: str, *inputs: Any, at: str, name: str = "") -> Any:
        name = name or f"{at}.{op}"
        new, score = self(op, *inputs, at=at, name=name), self.scores[name]

        def mixed(fresh: Tensor, cached: Tensor) -> Tensor:
            both: Tensor = score * layers.wide(fresh) + (1 - score) * layers.wide(cached)
            return both.to(fresh.dtype)

        self.fresh[name] = tensorwise(mixed, new, self.cache[name])
        return self.fresh[name]


def mixed_output(family: Family, weights: Any, lesson: Lesson, scores: Tensor) -> Tensor:
    """What the model makes of a lesson's inputs with scores (columns,) in 0..1: (R, C or 2C, H, W) float32."""
    scores_of = dict(zip(family.sublayers, scores.unbind(), strict=True))
    output: Tensor = family.call(Mixing(family, weights, frozenset(), lesson.cache, {}, scores_of), *lesson.inputs)
    return output


@dataclass
class MixingStack(AsCompiled):
    """A Runner that mixes what all blocks together add, of which there is one score."""

    score: Tensor  # () float32

    def _passed(self, name: str, value: Tensor) -> Tensor:
        """The blocks compute; behind them the stream is what it was before them, and the mixture."""
        for level, (_, behind) in self.spans.items():
            if name == behind:
                before = layers.wide(self.before[level])
                mixture = self.score * (layers.wide(value) - before) + (1 - self.score) * layers.wide(self.cache[level])
                value = (before + mixture).to(value.dtype)
        self.before.update((level, value) for level, (before, _) in self.spans.items() if name == before)
        return value
