"""The whole loop under a rule, with gradients: what a score or a coefficient of any call does to the final latents.

Full calls compute everything.  In every other call a value follows from the full calls before it, by weights on the parts of
the rule's Taylor expansion (all 1: the rule), and it is mixed with the computed one, or is one of the two.  Every call is
computed again on the way back, so that memory holds the values that calls hand on, and the insides of one call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..models import layers
from ..models.updates import Sampler
from ..pytorch.eager import Result, tensorwise
from ..schedules.forecast import Terms, order_of, parts
from ..schedules.values import OUTPUT, STACK
from .mixing import AsCompiled, Mixing, MixingStack

if TYPE_CHECKING:
    from .lessons import LessonRequest
    from .pairs import FullCall
    from .subject import Subject


class Light(NamedTuple):
    """A call that is not full: how old the full calls are that it reads, and the rule's expansion (orders, ages) float32."""

    ages: tuple[int, ...]
    expansion: Tensor


class Following(NamedTuple):
    """What light calls do.  The first axis counts them, the second the values that follow.

    Where `scores` (calls, values) are given, values are mixed; else `kept`, of bool, says which are computed.
    """

    weights: Tensor  # (calls, values, orders) float32, of the parts of the expansion
    kept: Tensor
    scores: Tensor | None = None


class RuledLoop:
    """Full calls, and light ones that follow by one rule at one level: "sublayer", "stack" or "output"."""

    def __init__(self, subject: Subject, full: frozenset[int], rule: str, level: str) -> None:
        self.subject, self.full, self.level = subject, full, level
        self.calls: list[FullCall] = subject.calls(subject.source.schedule)
        self.values = {STACK: (STACK,), OUTPUT: (OUTPUT,)}.get(level, subject.family.sublayers)
        self.light: dict[int, Light] = {}  # by the number of the call
        self.orders = order_of(rule) + 1
        for n in range(len(self.calls)):
            if n not in full:
                ages = tuple(n - earlier for earlier in sorted(full, reverse=True) if earlier < n)[: self.orders]
                device = subject.workers.device
                self.light[n] = Light(ages, torch.tensor([list(map(float, part)) for part in parts(ages)], device=device))
        self._spans = subject.spans((STACK,) if level == STACK else ())

    def by_the_rule(self) -> Following:
        """Every value of every light call follows by the rule."""
        shape, device = (len(self.light), len(self.values)), self.subject.workers.device
        return Following(torch.ones(*shape, self.orders, device=device), torch.zeros(shape, dtype=torch.bool, device=device))

    def coefficients(self, choice: Following, index: int, light: Light) -> Tensor:
        """(values, ages) float32 of a light call."""
        return choice.weights[index, :, : len(light.ages)] @ light.expansion

    def terms(self, choice: Following) -> list[dict[str, Terms]]:
        """Of every light call, the terms of every value, whether it is computed or not."""
        return [
            {name: tuple(zip(light.ages, row, strict=True)) for name, row in zip(self.values, rows.tolist(), strict=True)}
            for rows, light in ((self.coefficients(choice, i, light), light) for i, light in enumerate(self.light.values()))
        ]

    def latents(self, choice: Following, request: LessonRequest) -> Tensor:
        """The final latents (B, C, ..) float32; gradients reach the weights and the scores."""
        noise, inputs, guidance = request
        rows = max((tensor.shape[0] for tensor in inputs.values()), default=len(noise))
        index = torch.arange(len(noise), dtype=torch.int32, device=noise.device)
        row = index.repeat(rows // len(noise))
        sampler = Sampler(noise, index, index + (rows - len(noise)), guidance)
        history: dict[int, Mapping[str, Result]] = {}
        numbers, mixed = {n: i for i, n in enumerate(self.light)}, choice.scores is not None
        follows = [[mixed or not kept for kept in row] for row in choice.kept.tolist()]
        for n, call in enumerate(self.calls):
            t = torch.full((rows,), call.timestep, device=noise.device)
            if n in self.full:
                output, values = again(self._full, sampler.x, row, t, inputs)
                history = {**dict(list(history.items())[1 - self.orders :] if self.orders > 1 else ()), n: values}
            else:
                read = [history[n - age] for age in self.light[n].ages]
                place = numbers[n]
                output = again(self._light, choice, place, follows[place], self.light[n], read, sampler.x, row, t, inputs)
            sampler.take(output, torch.tensor(call.coefficients, device=noise.device), call.ends_step)
        return sampler.x

    def _full(self, *inputs: Any) -> tuple[Tensor, dict[str, Result]]:
        run = AsCompiled(self.subject.family, self.subject.weights, frozenset(), {}, {}, spans=self._spans)
        output = run.predict(*inputs)
        return output, {name: run.fresh[name] for name in self.values}

    def _light(self, choice: Following, index: int, follows: list[bool], light: Light, read: list[Mapping[str, Result]],
               *inputs: Any) -> Tensor:  # fmt: skip
        family, weights = self.subject.family, self.subject.weights
        coefficients = self.coefficients(choice, index, light)
        forecast = {
            name: weighted([values[name] for values in read], numbers)
            for name, numbers, wanted in zip(self.values, coefficients, follows, strict=True) if wanted
        }  # fmt: skip
        if choice.scores is None:
            run = AsCompiled(family, weights, frozenset(forecast), forecast, {}, spans=self._spans)
            return run.predict(*inputs)
        scores = choice.scores[index]
        if self.level == OUTPUT:
            fresh = family.call(AsCompiled(family, weights, frozenset(), {}, {}), *inputs)
            output: Tensor = scores[0] * fresh + (1 - scores[0]) * forecast[OUTPUT]
        elif self.level == STACK:
            output = family.call(MixingStack(family, weights, frozenset(), forecast, {}, scores[0], spans=self._spans), *inputs)
        else:
            of = dict(zip(self.values, scores.unbind(), strict=True))
            output = family.call(Mixing(family, weights, frozenset(), forecast, {}, of), *inputs)
        return output


def again(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function makes; on the way back it is called again."""
    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)


def weighted(values: list[Result], numbers: Tensor) -> Result:
    """The sum of number x value, in float32, in the type of the values."""

    def total(*of: Tensor) -> Tensor:
        summed = sum(number * layers.wide(value) for number, value in zip(numbers, of, strict=True))
        assert isinstance(summed, Tensor)
        return summed.to(of[0].dtype)

    return tensorwise(total, *values)
