"""What schedules are tried on: a frozen model with its sampler and guidance, and requests of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..artefact.records import ALONE, Guidance
from ..compiler.passes.levels import spans, with_levels
from ..compiler.record import record
from ..compiler.request import Options, options_of
from ..compiler.source import Source
from ..compiler.source import resolve as source_of
from ..errors import RunError, UsageError
from ..models.family import Family
from ..pytorch.eager import Denoiser, Spans, follow
from ..schedules.resolve import forecasts
from ..schedules.schedule import Schedule
from ..schedules.values import OUTPUT
from . import data
from .frozen import guidance_strength, load_tensors
from .lessons import Draw, LessonRequest, Subjects, draw_request
from .mixing import AsCompiled
from .options import SELF, TrainingOptions, check_subjects
from .pairs import FullCall
from .workers import Workers


@dataclass(frozen=True)
class Subject:
    """The model, in the type of its weights, and what is asked of it.

    `source` has the model and an uncached schedule; a batch is split over the workers.
    """

    options: Options  # as for the compiler
    source: Source
    weights: Mapping[str, Tensor]
    guidance: Tensor | None  # (1, C, 1, ..) as in `updates.update`; None for the conditional half alone
    asked: Subjects
    workers: Workers
    images: range  # of a batch, those of this process
    seed: int

    @property
    def family(self) -> Family:
        return self.source.family

    def request(self, phase: int, number: int) -> LessonRequest:
        """A batch of random requests, always the same for these two numbers."""
        draw = Draw((self.seed, phase, number), self.images)
        noise, inputs, guidance = draw_request(self.asked, self.family.latent, self.guidance, draw, self.workers.device)
        return LessonRequest(noise * self.source.schedule.table().noise_scale, inputs, guidance)

    def latents(self, schedule: Schedule, request: LessonRequest) -> Tensor:
        """The final latents (B, C, ..) float32 of a request by a schedule."""
        ruled = {name for call in schedule.calls for name in call.rules}
        levels = tuple(level for level in schedule.values.levels if level in ruled and level != OUTPUT)
        return Followed(self.family, self.weights, spans=self.spans(levels))(self.calls(schedule), *request)

    def calls(self, schedule: Schedule) -> list[FullCall]:
        """The calls of a schedule, as `eager.Denoiser` wants them."""
        derived = forecasts(schedule.cacheable, schedule.calls)
        return [
            FullCall(*update, call.computed, call.reused, terms)
            for call, terms, update in zip(schedule.calls, derived, schedule.table().updates, strict=True)
        ]

    def spans(self, levels: tuple[str, ...]) -> Spans:
        """The stream before and behind levels of the stack.  Raises ScheduleError for one that the model does not have."""
        return spans(with_levels(record(self.family), levels)) if levels else {}

    def error(self, schedule: Schedule, request: LessonRequest, uncached: Tensor) -> float:
        """The root mean square error of the final latents, as a share of the root mean square of the uncached ones."""
        off = (self.latents(schedule, request) - uncached).square().mean()
        apart, power = self.workers.mean(torch.stack([off, uncached.square().mean()])).tolist()
        if not apart < float("inf"):
            raise RunError("the latents are NaN or infinite: use precision='bf16' or fp32, or check weights=..")
        return float((apart / power) ** 0.5)


class Followed(Denoiser):
    """The loop by a schedule, in the types that values have in an artefact."""

    def _evaluate(self, n: int, reused: frozenset[str], *inputs: Any) -> tuple[Tensor, dict[str, Tensor]]:
        run = AsCompiled(self.family, self.weights, reused, follow(inputs[-1]), {}, spans=self.spans)
        return run.predict(*inputs[:-1]), run.fresh


def subject_of(options: TrainingOptions, sampler: str | None) -> Subject:
    """What these options name.  Raises L2CError when it does not fit together."""
    named = {"model": options.model, "weights": options.weights, "guidance": options.guidance}
    compiled = options_of("every:1", options.steps, sampler=sampler, **named)
    source = source_of(compiled)
    if source.checkpoint is None and source.seed is None:
        raise UsageError(f"weights={options.weights!r}: without weights there are no latents to look at: give a checkpoint")
    check_subjects(options, source.family)
    workers, family = Workers(options.device), source.family
    scale = source.scale if options.guidance_scale is None else options.guidance_scale
    guided = scale != 1 and source.guidance not in ("none", *ALONE)
    guidance = Guidance(mode=source.guidance, scale=scale) if guided else Guidance(mode="none", scale=1.0)  # type: ignore[arg-type]
    weights = load_tensors(family, source.checkpoint, source.seed or 0, options.precision, workers.device)
    strength = guidance_strength(guidance, family, workers.device)
    requests = None if options.data == SELF else data.requests(Path(options.data), family, guided)
    asked, images = Subjects(family.inputs, requests, scale), workers.images(options.batch)
    return Subject(compiled, source, weights, strength, asked, workers, images, options.seed)
