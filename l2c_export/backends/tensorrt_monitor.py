"""How far a build is, and a way to stop it: IProgressMonitor, which TensorRT 9 and later and TensorRT-RTX have.

https://docs.nvidia.com/deeplearning/tensorrt/latest/_static/python-api/infer/Core/Progress.html
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Watch = Callable[[str, float], object]  # the phase that has begun, and the share of the engine's build that is done


def monitor(trt: Any, watch: Watch) -> Any:
    """A monitor that tells `watch`; None where the library has none.

    An exception must not pass through the library: Ctrl-C ends the build, `interrupted` is set, and the caller raises it again.
    """
    if not hasattr(trt, "IProgressMonitor"):
        return None

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.interrupted = False
            self._whole, self._steps, self._share = "", 1, 0.0

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            if parent is None:
                self._whole, self._steps, self._share = phase, steps, 0.0
            self._tell(phase)

        def step_complete(self, phase: str, step: int) -> bool:
            if phase == self._whole:
                self._share = (step + 1) / self._steps
                self._tell(phase)
            return not self.interrupted

        def phase_finish(self, phase: str) -> None:
            pass

        def _tell(self, phase: str) -> None:
            try:
                watch(phase, self._share)
            except KeyboardInterrupt:
                self.interrupted = True

    return Monitor()
