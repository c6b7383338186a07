"""The model of `numpy_dit`, to learn and to search on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy_dit import MODEL, SCALE, random_weights
from numpy_loop import Rules
from safetensors.numpy import save_file

from l2c_export.schedules.schedule import Schedule
from l2c_export.training.ruled_options import RuledOptions
from l2c_export.training.subject import Subject, subject_of


class NumpyDesk(NamedTuple):
    """Weights, as arrays and in a file."""

    folder: Path
    weights: dict[str, np.ndarray]

    @property
    def line(self) -> str:
        """Options of a command."""
        return f"--model {MODEL} --weights {self.folder}/w.safetensors --guidance-scale {SCALE}"

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        return {name: torch.from_numpy(value) for name, value in self.weights.items()}

    def options(self, **choices: Any) -> RuledOptions:
        usual = {"rule": "taylor:1", "every": 3, "batch": 2, "data": "self", "device": "cpu", "guidance_scale": SCALE}
        return RuledOptions(**{**usual, "out": self.folder / "out", "model": str(MODEL),
                               "weights": f"{self.folder}/w.safetensors", **choices})  # fmt: skip

    def subject(self, **choices: Any) -> Subject:
        return subject_of(self.options(**choices), None)


def numpy_desk(folder: Path) -> NumpyDesk:
    weights = random_weights()
    save_file(weights, folder / "w.safetensors")
    return NumpyDesk(folder, weights)


def requested(request: Any) -> tuple[np.ndarray, list[int]]:
    """The noise of a request and its two labels."""
    return request.noise.numpy(), request.inputs["class_labels"][:2].tolist()


def ruled(schedule: Schedule) -> Rules:
    """A schedule's calls that are not full, as the loop of numpy takes them."""
    names = schedule.sublayers
    return {n: (tuple(names[j] for j in call.computed), dict(call.rules))
            for n, call in enumerate(schedule.calls) if call.rules}  # fmt: skip
