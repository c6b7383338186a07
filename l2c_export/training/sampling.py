"""Sampling with the frozen model, cached as one likes: what a router in training does to the final latents."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .lessons import Curriculum, Draw, Observer, Subjects, draw_request
from .mixing import mixed_output
from .pairs import FullCall, Pair
from .workers import Workers


@dataclass(frozen=True)
class Trajectories:
    """The model with guidance, and the pairs whose cached calls may reuse something."""

    observer: Observer
    calls: tuple[FullCall, ...]
    pairs: tuple[Pair, ...]
    guidance: Tensor | None  # (1, C, 1, ..) as in `updates.update`; None for the conditional half alone
    subjects: Subjects
    workers: Workers

    def latents(self, draw: Draw, keep: np.ndarray) -> Tensor:
        """The final latents (B, C, ..) float32 of a draw, if only what `keep` (pairs, columns) says is computed."""
        calls = list(self.calls)
        for pair, row in zip(self.pairs, keep, strict=True):
            calls[pair.cached] = calls[pair.cached]._replace(reused=tuple(np.flatnonzero(~row).tolist()))
        latent = self.observer.family.latent
        return self.observer(calls, *draw_request(self.subjects, latent, self.guidance, draw, self.workers.device))

    @property
    def everything(self) -> np.ndarray:
        return np.ones((len(self.pairs), len(self.observer.family.sublayers)), bool)


def influence(sampler: Trajectories, curriculum: Curriculum, draw: Draw) -> Tensor:
    """What an error of the model's output in each cached call does to the final latents: (pairs,) float32 of mean 1.

    Measured: a call is cached whole, and the mean squared error that the final latents have from that is set in relation to
    the one that the call's output has.  In the last calls a large error of the noise changes next to nothing.
    """
    observer, workers = sampler.observer, sampler.workers
    nothing = torch.zeros(len(observer.family.sublayers), device=workers.device)
    with torch.no_grad():
        of_output = torch.stack([
            (mixed_output(observer.family, observer.weights, lesson, nothing) - lesson.target).square().mean()
            for lesson in curriculum.lessons(draw)
        ])  # fmt: skip
    uncached, errors = sampler.latents(draw, sampler.everything), []
    for index in range(len(sampler.pairs)):
        keep = sampler.everything
        keep[index] = False
        errors.append((sampler.latents(draw, keep) - uncached).square().mean())
    of_output, of_latents = workers.mean(of_output), workers.mean(torch.stack(errors))
    ratio = torch.where(of_output > 0, of_latents / of_output.clamp_min(torch.finfo(torch.float32).tiny), 0.0)
    return ratio / ratio.mean() if ratio.any() else torch.ones_like(ratio)
