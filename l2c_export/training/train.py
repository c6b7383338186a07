"""From options to a router: `Training` prepares and runs, result.py finishes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .. import routers, weights
from ..errors import ArtefactError
from ..program import DTYPES
from . import state as disk
from .lessons import Curriculum, FromData, FromModel, Observer
from .options import LAMBDA, Options, Task, resolve
from .state import State
from .trainer import Trainer
from .workers import Workers

ROWS = 3  # what chance is drawn for, after the trainer's phases
MIDDLE = 0.5  # the threshold of the log, where the real one is chosen at the end
Report = Callable[[str], object]


class Training:
    """The router of some options, from where it was left.  Raises L2CError, with nothing written, if they cannot be met."""

    def __init__(self, options: Options, report: Report) -> None:
        self.options, self.workers = options, Workers(options.device)
        images = self.workers.images(options.batch)
        self.task = resolve(options)
        self.report: Report = report if self.workers.leads else id
        self.report(self.task.describe())
        self._fixed = options.fixed(self.task.family)
        found = disk.restore(options.out, self._fixed)
        if found:
            self.report(f"{options.out}: goes on after iteration {found.iteration}")
        self.rows = untrained_rows(self.task, options)
        self.observer = Observer(self.task.family, load_tensors(self.task, options.precision, self.workers.device))
        curriculum = make_curriculum(self.task, self.observer, self.workers.device)
        self.trainer = Trainer(self.observer, curriculum, self.workers, images, options.seed, options.lr,
                               found or first_state(self.task, self.rows))  # fmt: skip
        self.seconds, self.trained = 0.0, 0  # in this run

    @property
    def left(self) -> int:
        """How many iterations there are to do."""
        return max(0, self.options.iterations - self.trainer.iteration)

    def run(self, step: Callable[[], object] = lambda: None) -> None:
        """All iterations that are left, with a checkpoint now and then and at the end."""
        make_folder(self.options.out)
        if not self.trainer.iteration:
            self.trainer.lambda_ = self._lambda()
        log = disk.Log(self.options.out, self.trainer.iteration) if self.workers.leads else None
        threshold = self.task.threshold if self.options.target_reduction is None else MIDDLE
        started, self.trained = time.perf_counter(), self.left
        for left in reversed(range(self.trained)):
            entry = self.trainer.step(threshold)
            if log:
                log.add(entry)
                if not left or self.trainer.iteration % self.options.checkpoint_every == 0:
                    disk.save(self.options.out, self.trainer.state, self._fixed)
            step()
        self.seconds = time.perf_counter() - started
        if log:
            log.close()

    def _lambda(self) -> float:
        if self.options.lambda_ is not None:
            return self.options.lambda_
        if self.options.target_reduction is None:
            return LAMBDA
        found = self.trainer.calibrate(self.options.target_reduction)
        self.report(f"lambda {found:.3g}, which {self.options.target_reduction:.0%} of the sublayers are not worth")
        return found


def untrained_rows(task: Task, options: Options) -> Tensor:
    """Logits (steps, router width) from a standard normal; those that no call reads stay as they are."""
    shape = options.steps, routers.width(task.family)
    return torch.from_numpy(np.random.default_rng([options.seed, ROWS]).standard_normal(shape, np.float32))


def first_state(task: Task, rows: Tensor) -> State:
    return State(0, 0.0, rows[[pair.row for pair in task.pairs], : len(task.family.sublayers)], {})


def load_tensors(task: Task, precision: str, device: torch.device) -> dict[str, Tensor]:
    """The frozen weights in the given precision."""
    shapes, dtype = task.family.tensors(), getattr(torch, DTYPES[precision])
    found = weights.random(shapes, task.weights_seed) if task.checkpoint is None else task.checkpoint.tensors(shapes)
    made = {}
    for name, value in found:
        weights.rounded(name, value, DTYPES[precision])  # names the tensor that does not fit
        made[name] = torch.from_numpy(np.ascontiguousarray(value)).to(device, dtype)
    return made


def make_curriculum(task: Task, observer: Observer, device: torch.device) -> Curriculum:
    if task.samples is not None:
        return FromData(observer, task.calls, task.pairs, task.samples, device)
    strength = None
    if task.guidance.scale != 1:
        channels = torch.tensor(task.guidance.channels(task.family.latent[0]), device=device)
        strength = (task.guidance.scale - 1) * channels.reshape(1, -1, 1, 1)
    return FromModel(observer, task.calls, task.pairs, strength, device)


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtefactError(f"--out {folder}: cannot be written: {error.strerror}: choose another folder") from None
