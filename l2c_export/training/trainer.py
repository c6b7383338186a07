"""The training loop: only the logits of the cached calls' rows are trained, the model is frozen."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import RunError
from .lessons import Curriculum, Draw, Lesson, Observer
from .mixing import mixed_output
from .state import Entry, State
from .workers import Workers

CLAMP = 5.0  # of the logits, so that no score is ever beyond return
TRAIN, CALIBRATE, EVALUATE = range(3)  # what chance is drawn for
CALIBRATION = 8  # batches


class Gradient(NamedTuple):
    """The gradient of (mean squared error + lambda * sum of the scores) of every pair, and the mean squared errors."""

    of_logits: Tensor  # (pairs, columns)
    mse: float  # mean over the pairs
    loss: float


class Trainer:
    """A router in training: logits (pairs, columns) float32 on the workers' device."""

    def __init__(self, observer: Observer, curriculum: Curriculum, workers: Workers, images: range, seed: int, lr: float,
                 state: State) -> None:  # fmt: skip
        self._observer, self._curriculum, self._workers = observer, curriculum, workers
        self._images, self._seed = images, seed
        self.iteration, self.lambda_ = state.iteration, state.lambda_
        self.logits = torch.nn.Parameter(state.logits.to(workers.device))
        # gradients of a mean squared error and of a small lambda are tiny: eps must not decide the steps
        self._optimizer = torch.optim.AdamW([self.logits], lr=lr, weight_decay=0.0, eps=1e-15)
        if state.optimizer:
            self._optimizer.load_state_dict(state.optimizer)

    @property
    def state(self) -> State:
        return State(self.iteration, self.lambda_, self.logits.detach().cpu().clone(), self._optimizer.state_dict())

    def lessons(self, phase: int, iteration: int) -> Iterable[Lesson]:
        """One batch for every pair."""
        return self._curriculum.lessons(Draw((self._seed, phase, iteration), self._images))

    def step(self, threshold: float) -> Entry:
        """One iteration: a batch for every pair, then one step of all rows."""
        started = time.perf_counter()
        found = self._gradient(self.logits, self.lessons(TRAIN, self.iteration), self.lambda_)
        if not (math.isfinite(found.loss) and found.of_logits.isfinite().all()):
            raise RunError(
                f"iteration {self.iteration}: the loss is NaN or infinite: use --precision bf16 or fp32, or check --weights"
            )
        self.logits.grad = found.of_logits
        self._optimizer.step()
        with torch.no_grad():
            self.logits.clamp_(-CLAMP, CLAMP)
            computed = float((torch.sigmoid(self.logits) > threshold).float().mean())
        self.iteration += 1
        return Entry(self.iteration, found.loss, found.mse, computed, time.perf_counter() - started)

    def _gradient(self, logits: Tensor, lessons: Iterable[Lesson], lambda_: float) -> Gradient:
        """Sums instead of means go backward, so that fp16 does not underflow; one pair at a time is held in memory."""
        logits = logits.detach().requires_grad_()
        errors, size = [], 1
        for lesson in lessons:
            scores = torch.sigmoid(logits[lesson.pair])
            output = mixed_output(self._observer.family, self._observer.weights, lesson, scores)
            error = (output - lesson.target).square().sum()
            size = output.numel()
            torch.autograd.backward(error + size * lambda_ * scores.sum())
            errors.append(error.detach() / size)
        mse = self._workers.mean(torch.stack(errors).mean())
        gradient = self._workers.mean((logits.grad if logits.grad is not None else torch.zeros_like(logits)) / size)
        penalty = lambda_ * torch.sigmoid(logits.detach()).sum(1).mean()
        return Gradient(gradient, float(mse), float(mse + penalty))

    def calibrate(self, share: float) -> float:
        """The lambda at which `share` of the sublayers are not worth computing.

        At scores of one half everywhere, -d mse / d score is what computing a sublayer is worth; lambda is the price.
        """
        logits = torch.zeros_like(self.logits)
        total = torch.zeros_like(logits)
        for batch in range(CALIBRATION):
            total += self._gradient(logits, self.lessons(CALIBRATE, batch), 0.0).of_logits
        worth = -total / CALIBRATION / 0.25  # d sigmoid at 0
        return max(0.0, float(worth.flatten().quantile(share)))
