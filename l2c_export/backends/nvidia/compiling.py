"""Kernels become code for an architecture, by NVRTC, which needs no GPU; what was compiled is in the user's cache."""

from __future__ import annotations

from typing import Any

from ...errors import BackendError
from ...support.cache import cached
from ...support.extras import needs
from ...support.words import first_line
from .prelude import COMMON, PRELUDE

NAME = b"kernel"


def compiled(source: str, architecture: str) -> bytes:
    """The cubin of a kernel for sm80 ..  Raises BackendError."""
    core: Any = needs("cuda.core", "cuda")
    text, version = PRELUDE + COMMON + source, _version()
    return cached("kernels", ["nvrtc", version, architecture, text], lambda: _compile(core, text, architecture))


def _version() -> tuple[int, ...]:
    """NVRTC's."""
    try:
        return tuple(needs("cuda.bindings.nvrtc", "cuda").nvrtcVersion()[1:])
    except RuntimeError as error:  # of what looks for the library
        raise BackendError(f"cuda: NVRTC does not load: {first_line(error)}: pip install 'l2c-export[cuda]'") from None


def _compile(core: Any, text: str, architecture: str) -> bytes:
    options = core.ProgramOptions(arch=architecture.replace("sm", "sm_"), std="c++17")
    try:
        return bytes(core.Program(text, code_type="c++", options=options).compile("cubin").code)
    except Exception as error:
        raise BackendError(f"cuda: NVRTC does not compile for {architecture}: {first_line(error)}") from None
