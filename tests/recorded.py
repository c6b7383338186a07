"""The golden cases: recorded runs of the reference implementation.  Reading them needs numpy alone."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from l2c_export.compiler.request import Options

ROOT = Path(__file__).parents[1]
OWN_CASES = ROOT / "tests" / "cases"
GOLDEN = ROOT / "tests" / "golden"
REFERENCE = Path(os.environ.get("L2C_REFERENCE", ROOT.parent / "shared" / "reference")) / "cases"


@dataclass(frozen=True)
class Case:
    """A recorded run of the reference implementation."""

    path: Path

    @property
    def config(self) -> dict:
        return json.loads((self.path / "config.json").read_text())

    @property
    def golden(self) -> dict[str, np.ndarray]:
        return dict(np.load(self.path / "golden.npz"))

    @property
    def uvit(self) -> bool:
        return self.config["family"] == "uvit"

    @property
    def scale(self) -> float:
        scale = self.config["cfg"]["scale"]
        return 1.0 if scale is None else 1 + scale if self.uvit else scale

    def options(self, out: Path, **changes) -> Options:
        from l2c_export.compiler.request import Options

        modes = {"dit_batched_first3": "first3", "dit_batched_all_channels": "all", "uvit_two_call": "all", "none": "none"}
        chosen = {
            "schedule": str(self.path / "router.pt"),
            "out": out,
            "model": str(self.path / "config.json"),
            "weights": str(self.path / "model.safetensors"),
            "steps": self.config.get("num_steps") or self.config["nfe"],
            "threshold": self.config["threshold"],
            "guidance": modes[self.config["cfg"]["mode"]],
            "batch": self.config["batch"],
        }
        return Options(**{**chosen, **changes})


def case(name: str) -> Case:
    return Case(OWN_CASES / name)


def all_cases() -> list[Case]:
    """Our own copies, and whatever else the reference folder holds."""
    paths = {p.name: p for root in (REFERENCE, OWN_CASES) if root.is_dir() for p in sorted(root.iterdir())}
    return [Case(path) for _, path in sorted(paths.items()) if (path / "golden.npz").exists()]


def named(value: object) -> str:
    """A parameter in a test's name, without the address that differs between two workers."""
    return str(value).partition(" at 0x")[0]


# SEMANTICS of the reference: honest float32 implementations stay under 5e-5 of max(1, max|x|)
TOLERANCE = 5e-5


def close(got, want):
    return np.abs(got - want).max() / max(1.0, np.abs(want).max()) < TOLERANCE


def same(a, b):
    """To the bit; NaN is what it was."""
    return np.array_equal(a, b, equal_nan=True)


def asked(labels, dtype=np.int32) -> dict[str, np.ndarray]:
    """What a request for these class labels says."""
    return {"class_labels": np.array(labels, dtype)}


def latents(pipe, seed: int = 0) -> np.ndarray:
    """What the small artefact of tests/golden makes of a request."""
    return pipe([0, 1], 2.0, seed=seed).latents
