"""A training: prepared, and run from where it was left; result.py finishes it."""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import Tensor

from ..errors import RunError
from ..schedules import routers
from ..support.files import Report, make_folder
from ..support.progress import Step, unsaid
from . import state
from .frozen import guidance_strength, load_tensors
from .lessons import INFLUENCE, ROWS, Curriculum, FromData, FromModel, Observer, Subjects
from .options import TrainingOptions, TrainingTask, resolve, with_demo_files
from .sampling import Trajectories, influence
from .scores import LAMBDA, MIDDLE
from .state import State
from .trainer import Trainer
from .workers import Workers


class Training:
    """The router of some options, from where it was left.  Raises L2CError, with nothing written, if they cannot be met."""

    def __init__(self, options: TrainingOptions, report: Report) -> None:
        options = with_demo_files(options)
        self.options, self.workers = options, Workers(options.device)
        images = self.workers.images(options.batch)
        self.task = resolve(options)
        self.report: Report = report if self.workers.leads else id
        for line in self.task.describe():
            self.report(line)
        self._fixed = options.fixed(self.task.family)
        saved_state = state.restore(options.out, self._fixed, options.lambda_)
        if saved_state:
            self.report(f"{options.out}: goes on after iteration {saved_state.iteration}")
        self.rows = untrained_rows(self.task, options)
        task, device = self.task, self.workers.device
        weights = load_tensors(task.family, task.checkpoint, task.weights_seed, options.precision, device)
        self.observer = Observer(task.family, weights)
        guidance = guidance_strength(task.guidance, task.family, device)
        subjects = Subjects(self.task.family.inputs, self.task.samples.inputs if self.task.samples else None)
        self.sampler = Trajectories(self.observer, self.task.calls, self.task.pairs, guidance, subjects, self.workers)
        self._curriculum = make_curriculum(self.task, self.sampler)
        self.trainer = Trainer(self.observer, self._curriculum, self.workers, images, options.seed, options.lr,
                               saved_state or first_state(self.task, self.rows))  # fmt: skip
        self.seconds, self.trained = 0.0, 0  # in this run

    @property
    def left(self) -> int:
        """How many iterations there are to do."""
        return max(0, self.options.iterations - self.trainer.iteration)

    def run(self, step: Step = unsaid) -> None:
        """All iterations that are left, with a checkpoint now and then and at the end."""
        make_folder(self.options.out, "out")
        try:
            if not self.trainer.iteration:
                self._weigh()
            self._iterate(step)
        except torch.OutOfMemoryError:
            problem = f"batch={self.options.batch}: does not fit into the GPU's memory"
            raise RunError(f"{problem}: use a smaller one, or precision='bf16'") from None

    def _iterate(self, step: Step) -> None:
        threshold = self.task.threshold if self.options.target_reduction is None else MIDDLE
        log = state.Log(self.options.out, self.trainer.iteration) if self.workers.leads else None
        started, self.trained = time.perf_counter(), self.left
        for left in reversed(range(self.trained)):
            entry = self.trainer.step(threshold)
            if log:
                log.add(entry)
                if not left or self.trainer.iteration % self.options.checkpoint_every == 0:
                    state.save(self.options.out, self.trainer.state, self._fixed)
            step()
        self.seconds = time.perf_counter() - started

    def _weigh(self) -> None:
        """Decide what an error counts in every call, and what a sublayer costs."""
        trainer, options = self.trainer, self.options
        if options.error == "latents":
            trainer.influence = influence(self.sampler, self._curriculum, trainer.draw(INFLUENCE, 0))
        trainer.lambda_ = LAMBDA if options.lambda_ is None else options.lambda_
        if options.lambda_ is None and options.target_reduction is not None:
            trainer.lambda_ = trainer.calibrate(options.target_reduction)
            self.report(f"lambda {trainer.lambda_:.3g}, which {options.target_reduction:.0%} of the sublayers are not worth")


def untrained_rows(task: TrainingTask, options: TrainingOptions) -> Tensor:
    """Logits (steps, router width) from a standard normal; those that no call reads stay as they are."""
    shape = options.steps, routers.width(task.family)
    return torch.from_numpy(np.random.default_rng([options.seed, ROWS]).standard_normal(shape, np.float32))


def first_state(task: TrainingTask, rows: Tensor) -> State:
    logits = rows[[pair.row for pair in task.pairs], : len(task.family.sublayers)]
    return State(0, 0.0, torch.ones(len(logits)), logits, {})


def make_curriculum(task: TrainingTask, sampler: Trajectories) -> Curriculum:
    device = sampler.workers.device
    if task.samples is not None:
        return FromData(sampler.observer, task.calls, task.pairs, task.samples, device)
    return FromModel(sampler.observer, task.calls, task.pairs, sampler.guidance, device)
