"""What a training ends with: the router, its schedule, the trade-off curve and its picture."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import torch

from ..schedules import routers
from ..support import machine
from . import plot
from .lessons import EVALUATE
from .scores import candidates, threshold_for
from .state import replace
from .tradeoff import Tradeoff, measure

if TYPE_CHECKING:
    from .training import Training

TOLERATED = 0.02  # that more may be removed than was asked for


class Summary(msgspec.Struct, frozen=True, kw_only=True, rename={"lambda_": "lambda"}):
    """What `l2c train --json` prints.  A step is one batch of one cached call; speeds and memory are those of this run."""

    out: str
    family: str
    steps: int
    iterations: int
    lambda_: float
    threshold: float
    removed: float  # of the cached calls' sublayers
    removed_of_all: float  # of all calls' sublayers
    mse: float | None  # of the model's output in a cached call
    error: float  # of the final latents, relative
    batch: int
    precision: str
    device: str
    seconds: float
    iterations_per_second: float | None
    steps_per_second: float | None
    peak_gpu_bytes: int | None
    peak_host_bytes: int | None
    random_weights: bool

    @property
    def schedule(self) -> Path:
        """The schedule that was learned, for `compile`."""
        return Path(self.out) / "schedule.json"

    @property
    def router(self) -> Path:
        """The scores of all sublayers, for `compile` with another threshold."""
        return Path(self.out) / "router.pt"

    def describe(self) -> list[str]:
        """Lines: how long it took, what it found, and how to compile that."""
        memory = f", {self.peak_gpu_bytes / 2**30:.1f} GiB" if self.peak_gpu_bytes else ""
        speed = f"{self.seconds:.0f} s, {self.steps_per_second or 0:.3g} steps per second on {self.device}{memory}"
        return [
            *([speed] if self.steps_per_second else []),
            f"{self.out}: threshold {self.threshold:.9g} removes {self.removed:.1%} of the cached calls' sublayers "
            f"({self.removed_of_all:.1%} of all); error of the latents {self.error:.2%}",
            f"compile it with l2c-export --schedule {self.schedule}, or router.pt --threshold {self.threshold:.9g}",
        ]


def finish(training: Training) -> Summary:
    """Choose the threshold, measure the trade-off around it, and write everything."""
    curve = trade_off(training)
    if training.workers.leads:
        write(training, curve)
    training.workers.part()
    return summarise(training, curve)


def trade_off(training: Training) -> Tradeoff:
    task, trainer, target = training.task, training.trainer, training.options.target_reduction
    scores = torch.sigmoid(trainer.logits.detach()).cpu().numpy()
    threshold = task.threshold if target is None else threshold_for(scores, target)
    thresholds = candidates(scores, threshold)
    points = measure(training.sampler, scores, thresholds, trainer.lessons(EVALUATE, 0), trainer.draw(EVALUATE, 0))
    chosen = points[thresholds.index(threshold)]
    if target is not None and chosen.removed > target + TOLERATED:
        training.report(
            f"{chosen.removed:.0%} of the sublayers are removed, not {target:.0%}: many scores are equal; "
            f"use another than lambda_={trainer.lambda_:.3g}"
        )
    return Tradeoff(family=task.family.name, steps=training.options.steps, iterations=trainer.iteration,
                    lambda_=trainer.lambda_, chosen=chosen, points=points)  # fmt: skip


def write(training: Training, curve: Tradeoff) -> None:
    folder, task, state = training.options.out, training.task, training.trainer.state
    rows = training.rows.clone()
    rows[[pair.row for pair in task.pairs], : len(task.family.sublayers)] = state.logits
    args = Namespace(**{name: str(value) for name, value in vars(training.options).items()})
    replace(folder / "router.pt", routers.encode(task.family.name, rows, state.optimizer, args))
    router = routers.read(folder / "router.pt")
    schedule = router.schedule(curve.chosen.threshold, training.options.steps, task.family.sublayers)
    replace(folder / "schedule.json", schedule.to_json())
    replace(folder / "tradeoff.json", msgspec.json.format(msgspec.json.encode(curve), indent=1) + b"\n")
    plot.tradeoff_picture(curve, folder / "tradeoff.png")


def summarise(training: Training, curve: Tradeoff) -> Summary:
    options, task, done = training.options, training.task, training.trained
    speed = done / training.seconds if done else None
    return Summary(
        out=str(options.out),
        family=task.family.name,
        steps=options.steps,
        iterations=curve.iterations,
        lambda_=curve.lambda_,
        threshold=curve.chosen.threshold,
        removed=curve.chosen.removed,
        removed_of_all=curve.chosen.removed * len(task.pairs) / len(task.calls),
        mse=curve.chosen.mse,
        error=curve.chosen.error,
        batch=options.batch,
        precision=options.precision,
        device=training.workers.describe(),
        seconds=training.seconds,
        iterations_per_second=speed,
        steps_per_second=speed and speed * len(task.pairs),
        peak_gpu_bytes=training.workers.peak_gpu_bytes,
        peak_host_bytes=machine.peak_host_bytes(),
        random_weights=task.checkpoint is None,
    )
