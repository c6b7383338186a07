"""Learning under a rule: which values the calls between full ones compute, and the coefficients of the others.

The loss is the error of the final latents of the whole loop, since a small error of one call says little of the picture.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..errors import RunError
from ..support.files import Report
from ..support.progress import Step
from .lessons import CALIBRATE, TRAIN
from .loop import Following, RuledLoop
from .scores import CLAMP, LAMBDA, MIDDLE, threshold_for

if TYPE_CHECKING:
    from .ruled_options import RuledOptions
    from .subject import Subject

BATCHES = 4  # from which the price of a value follows
Entry = tuple[str, int, float, float]  # what was learned, the iteration, the squared error, the share that is computed


@dataclass
class Learning:
    """What is learned of a loop, and what it was at every iteration."""

    subject: Subject
    loop: RuledLoop
    options: RuledOptions
    report: Report
    lambda_: float = 0.0
    threshold: float | None = None
    scores: np.ndarray | None = None  # (calls, values), where they were learned
    log: list[Entry] = field(default_factory=list)
    seconds: float = 0.0

    def run(self, step: Step) -> Following:
        """First the scores, under the rule's own coefficients; then the coefficients, of what is not computed."""
        started, choice = time.perf_counter(), self.loop.by_the_rule()
        try:
            if self.options.learns_scores:
                choice = choice._replace(kept=self._learn_scores(step))
            if self.options.learn_coefficients and not bool(choice.kept.all()):
                choice = choice._replace(weights=self._learn_weights(choice, step))
        except torch.OutOfMemoryError:
            problem = f"batch={self.options.batch}: does not fit into the GPU's memory"
            raise RunError(f"{problem}: use a smaller one, or precision='bf16'") from None
        self.seconds = time.perf_counter() - started
        return choice

    def kept(self, threshold: float) -> Tensor:
        """(calls, values): what is computed where a score must be above this."""
        return torch.from_numpy(self.scores > np.float32(threshold)).to(self.subject.workers.device)

    def _learn_scores(self, step: Step) -> Tensor:
        rule, options = self.loop.by_the_rule(), self.options
        chance = np.random.default_rng([options.seed, TRAIN]).standard_normal(rule.kept.shape, np.float32)
        logits = torch.nn.Parameter(torch.from_numpy(chance).to(rule.kept.device))
        self.lambda_ = self._price(rule) if options.lambda_ is None else options.lambda_

        def loss(error: Tensor) -> Tensor:
            return error + self.lambda_ * torch.sigmoid(logits).sum()

        def mixed() -> Following:
            return rule._replace(scores=torch.sigmoid(logits))

        def clamp() -> float:
            logits.clamp_(-CLAMP, CLAMP)
            return float((logits > 0).float().mean())

        self._descend("scores", logits, mixed, loss, clamp, step)
        self.scores = torch.sigmoid(logits.detach()).cpu().numpy()
        target = options.target_reduction
        chosen = MIDDLE if options.threshold is None else options.threshold
        self.threshold = chosen if target is None else threshold_for(self.scores, target)
        return self.kept(self.threshold)

    def _learn_weights(self, choice: Following, step: Step) -> Tensor:
        weights = torch.nn.Parameter(choice.weights.clone())
        computed = float(choice.kept.float().mean())
        self._descend("coefficients", weights, lambda: choice._replace(weights=weights), lambda error: error,
                      lambda: computed, step)  # fmt: skip
        learned = choice._replace(weights=weights.detach())
        with torch.no_grad():
            ours, rules = (float(self.subject.workers.mean(self._error(one, CALIBRATE, BATCHES))) for one in (learned, choice))
        if ours < rules:
            return learned.weights
        self.report(f"the learned coefficients are no better than the rule's ({ours:.3g} and {rules:.3g}), which stay")
        return choice.weights

    def _descend(self, what: str, learned: torch.nn.Parameter, choice: Callable[[], Following],
                 loss: Callable[[Tensor], Tensor], settle: Callable[[], float], step: Step) -> None:  # fmt: skip
        """AdamW with a learning rate that falls to nothing."""
        optimizer = torch.optim.AdamW([learned], lr=self.options.lr, weight_decay=0.0, eps=1e-15)  # gradients are tiny
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.options.iterations)
        for iteration in range(self.options.iterations):
            optimizer.zero_grad()
            error = self._error(choice(), TRAIN, iteration)
            total = loss(error)
            total.backward()  # type: ignore[no-untyped-call]
            assert learned.grad is not None
            learned.grad = self.subject.workers.mean(learned.grad)
            if not (total.isfinite() and learned.grad.isfinite().all()):
                problem = f"iteration {iteration}: the loss is NaN or infinite"
                raise RunError(f"{problem}: use precision='bf16' or fp32, a smaller lr=.., or check weights=..")
            optimizer.step()
            falling.step()
            with torch.no_grad():
                computed = settle()
            mean = float(self.subject.workers.mean(error.detach()))
            self.log.append((what, iteration + 1, mean, computed))
            step()

    def _error(self, choice: Following, phase: int, number: int) -> Tensor:
        """The squared error of the final latents, in relation to their square."""
        request = self.subject.request(phase, number)
        with torch.no_grad():
            uncached = self.subject.latents(self.subject.source.schedule, request)
        return (self.loop.latents(choice, request) - uncached).square().mean() / uncached.square().mean()

    def _price(self, rule: Following) -> float:
        """What a value must be worth, so that the share that is to go is not: with scores of one half, -d error / d score."""
        share = self.options.target_reduction
        if share is None:
            return LAMBDA
        scores = torch.full(rule.kept.shape, 0.5, device=rule.kept.device, requires_grad=True)
        for batch in range(BATCHES):
            self._error(rule._replace(scores=scores), CALIBRATE, batch).backward()  # type: ignore[no-untyped-call]
        assert scores.grad is not None
        worth = -self.subject.workers.mean(scores.grad) / BATCHES
        price = max(0.0, float(worth.flatten().quantile(share)))
        self.report(f"lambda {price:.3g}, which {share:.0%} of the values are not worth")
        return price
