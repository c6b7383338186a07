"""Deploy diffusion transformers whose layers are cached by a learned schedule, without PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import L2CError
from .version import __version__

if TYPE_CHECKING:
    from .integrations.diffusers.live import enable_l2c
    from .integrations.diffusers.pipeline import L2CPipeline
    from .runtime.pipeline import load
    from .schedules.schedule import Schedule

__all__ = ["L2CError", "L2CPipeline", "Schedule", "__version__", "enable_l2c", "load"]


def __getattr__(name: str) -> Any:
    """Import on first use: the compiler must not load the runtime, nor the runtime the compiler."""
    from importlib import import_module

    homes = {
        "load": "runtime.pipeline",
        "Schedule": "schedules.schedule",
        "L2CPipeline": "integrations.diffusers.pipeline",
        "enable_l2c": "integrations.diffusers.live",
    }
    if name in homes:
        return getattr(import_module(f"{__name__}.{homes[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
