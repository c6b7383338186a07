"""The training loop: only the logits of the cached calls' rows are trained, the model is frozen."""

from __future__ import annotations

import time
from collections.abc import Iterable

import torch
from torch import Tensor

from ..errors import RunError
from .lessons import CALIBRATE, TRAIN, Curriculum, Draw, Lesson, Observer
from .mixing import mixed_output
from .scores import CLAMP
from .state import LogEntry, State
from .workers import Workers

CALIBRATION = 8  # batches


class Trainer:
    """A router in training: logits (pairs, columns) float32 on the workers' device."""

    def __init__(self, observer: Observer, curriculum: Curriculum, workers: Workers, images: range, seed: int, lr: float,
                 state: State) -> None:  # fmt: skip
        self._observer, self._curriculum, self._workers = observer, curriculum, workers
        self._images, self._seed = images, seed
        self.iteration, self.lambda_ = state.iteration, state.lambda_
        self.influence = state.influence.to(workers.device)
        self.logits = torch.nn.Parameter(state.logits.to(workers.device))
        # gradients of a mean squared error and of a small lambda are tiny: eps must not decide the steps
        self._optimizer = torch.optim.AdamW([self.logits], lr=lr, weight_decay=0.0, eps=1e-15)
        if state.optimizer:
            self._optimizer.load_state_dict(state.optimizer)

    @property
    def state(self) -> State:
        logits = self.logits.detach().cpu().clone()
        return State(self.iteration, self.lambda_, self.influence.cpu(), logits, self._optimizer.state_dict())

    def draw(self, phase: int, iteration: int) -> Draw:
        return Draw((self._seed, phase, iteration), self._images)

    def lessons(self, phase: int, iteration: int) -> Iterable[Lesson]:
        """One batch for every pair."""
        return self._curriculum.lessons(self.draw(phase, iteration))

    def step(self, threshold: float) -> LogEntry:
        """One iteration: a batch for every pair, then one step of all rows.

        The loss of a row is influence * mean squared error + lambda * sum of its scores.
        """
        start = time.perf_counter()
        mse, gradient = self.errors(self.logits, self.lessons(TRAIN, self.iteration))
        scores = torch.sigmoid(self.logits.detach())
        loss = self.influence * mse + self.lambda_ * scores.sum(1)
        self.logits.grad = self.influence[:, None] * gradient + self.lambda_ * scores * (1 - scores)
        if not (loss.isfinite().all() and self.logits.grad.isfinite().all()):
            problem = f"iteration {self.iteration}: the loss is NaN or infinite"
            raise RunError(f"{problem}: use precision='bf16' or fp32, or check weights=..")
        self._optimizer.step()
        with torch.no_grad():
            self.logits.clamp_(-CLAMP, CLAMP)
            computed = float((torch.sigmoid(self.logits) > threshold).float().mean())
        self.iteration += 1
        return LogEntry(self.iteration, float(loss.mean()), float(mse.mean()), computed, time.perf_counter() - start)

    def errors(self, logits: Tensor, lessons: Iterable[Lesson]) -> tuple[Tensor, Tensor]:
        """The mean squared error of every pair's output (pairs,), and its gradient (pairs, columns).

        Sums instead of means go backward, so that fp16 does not underflow; one pair at a time is held in memory.
        """
        logits, mse, size = logits.detach().requires_grad_(), torch.zeros(len(logits), device=logits.device), 1
        for lesson in lessons:
            output = mixed_output(self._observer.family, self._observer.weights, lesson, torch.sigmoid(logits[lesson.pair]))
            error, size = (output - lesson.target).square().sum(), output.numel()
            torch.autograd.backward(error)
            mse[lesson.pair] = error.detach() / size
        assert logits.grad is not None
        return self._workers.mean(mse), self._workers.mean(logits.grad / size)

    def calibrate(self, share: float) -> float:
        """The lambda at which `share` of the sublayers are not worth computing.

        At scores of one half everywhere, -influence * d mse / d score is what computing a sublayer is worth, and lambda is
        its price.
        """
        logits = torch.zeros_like(self.logits)
        total = sum(self.errors(logits, self.lessons(CALIBRATE, batch))[1] for batch in range(CALIBRATION))
        worth = -self.influence[:, None] * total / CALIBRATION / 0.25  # d sigmoid at 0
        return max(0.0, float(worth.flatten().quantile(share)))
