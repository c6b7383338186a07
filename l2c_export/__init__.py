"""Deploy diffusion transformers whose layers are cached by a learned schedule, without PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import L2CError

if TYPE_CHECKING:
    from .diffusers_live import enable_l2c
    from .diffusers_pipeline import L2CPipeline
    from .pipeline import load
    from .schedule import Schedule

__version__ = "0.1.0"
__all__ = ["L2CError", "L2CPipeline", "Schedule", "__version__", "enable_l2c", "load"]


def __getattr__(name: str) -> Any:
    """Import on first use: the compiler must not load the runtime, nor the runtime the compiler."""
    from importlib import import_module

    homes = {
        "load": "pipeline",
        "Schedule": "schedule",
        "L2CPipeline": "diffusers_pipeline",
        "enable_l2c": "diffusers_live",
    }
    if name in homes:
        return getattr(import_module(f"{__name__}.{homes[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
