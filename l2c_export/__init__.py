"""Deploy diffusion transformers whose layers are cached by a learned schedule, without PyTorch.

    artefact = l2c_export.compile(model="demo", batch=2, out="engines/demo")
    pipe = l2c_export.load(artefact)
    pipe([3, 7], seed=0).save("digits.png")

Every function takes values and returns a typed result; what is wrong is an `L2CError`.  What is done is logged by the standard
library's `logging`, under "l2c_export".
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from .errors import (
    ArtefactError,
    BackendError,
    Cancelled,
    Draining,
    Full,
    L2CError,
    MissingExtra,
    ModelError,
    RunError,
    ScheduleError,
    UsageError,
    WeightsError,
)
from .version import __version__

if TYPE_CHECKING:
    from .backends.doctor import doctor
    from .benchmarks.bench import bench
    from .compiler.artefact import Artefact, build, compile, link
    from .distribution.transfer import pull, push
    from .inspection.dry_run import dry_run
    from .inspection.profile import profile
    from .inspection.view import inspect
    from .integrations.diffusers.live import enable_l2c
    from .integrations.diffusers.pipeline import L2CPipeline
    from .runtime.images import Output
    from .runtime.pipeline import Pipeline, load
    from .sampling.compare import compare
    from .sampling.sample import sample
    from .schedules.schedule import Schedule
    from .training.train import train
    from .verification.check import CheckResult, check
    from .verification.compare import verify

__all__ = [
    "Artefact",
    "ArtefactError",
    "BackendError",
    "Cancelled",
    "CheckResult",
    "Draining",
    "Full",
    "L2CError",
    "L2CPipeline",
    "MissingExtra",
    "ModelError",
    "Output",
    "Pipeline",
    "RunError",
    "Schedule",
    "ScheduleError",
    "UsageError",
    "WeightsError",
    "__version__",
    "bench",
    "build",
    "check",
    "compare",
    "compile",
    "doctor",
    "dry_run",
    "enable_l2c",
    "inspect",
    "link",
    "load",
    "profile",
    "pull",
    "push",
    "sample",
    "train",
    "verify",
]

HOMES = {
    "Artefact": "compiler.artefact",
    "CheckResult": "verification.check",
    "L2CPipeline": "integrations.diffusers.pipeline",
    "Output": "runtime.images",
    "Pipeline": "runtime.pipeline",
    "Schedule": "schedules.schedule",
    "bench": "benchmarks.bench",
    "build": "compiler.artefact",
    "check": "verification.check",
    "compare": "sampling.compare",
    "compile": "compiler.artefact",
    "doctor": "backends.doctor",
    "dry_run": "inspection.dry_run",
    "enable_l2c": "integrations.diffusers.live",
    "inspect": "inspection.view",
    "link": "compiler.artefact",
    "load": "runtime.pipeline",
    "profile": "inspection.profile",
    "pull": "distribution.transfer",
    "push": "distribution.transfer",
    "sample": "sampling.sample",
    "train": "training.train",
    "verify": "verification.compare",
}

logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    """Import on first use: the compiler must not load the runtime, nor the runtime the compiler."""
    from importlib import import_module

    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
