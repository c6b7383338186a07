"""How far a build is, and a way to stop it.

IProgressMonitor is what TensorRT 9 and later and TensorRT-RTX have for both:
https://docs.nvidia.com/deeplearning/tensorrt/latest/_static/python-api/infer/Core/Progress.html
"""

from __future__ import annotations

import signal
import threading
from typing import Any

from ...support.progress import Watch


class Interrupt:
    """Ctrl-C while the library runs, raised when it has returned: in one of its callbacks the exception would be lost.

    The second one ends the process at once.
    """

    def __init__(self) -> None:
        self.pressed = False

    def __enter__(self) -> None:
        self.pressed = False
        self._before = signal.getsignal(signal.SIGINT)
        main = threading.current_thread() is threading.main_thread()  # the others get no signals
        self._holds = main and self._before is not signal.SIG_IGN  # as in a shell's background
        if self._holds:
            signal.signal(signal.SIGINT, self._press)

    def _press(self, *_: object) -> None:
        self.pressed = True
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    def __exit__(self, *_: object) -> None:
        if self._holds:
            signal.signal(signal.SIGINT, self._before or signal.SIG_DFL)
        if self.pressed:
            raise KeyboardInterrupt


def monitor(trt: Any, watch: Watch, interrupt: Interrupt) -> Any:
    """A monitor that tells `watch`, and stops the build after Ctrl-C; None where the library has none."""
    if not hasattr(trt, "IProgressMonitor"):
        return None

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._whole, self._steps, self._share = "", 1, 0.0

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            if parent is None:
                self._whole, self._steps, self._share = phase, steps, 0.0
            watch(phase, self._share)

        def step_complete(self, phase: str, step: int) -> bool:
            if phase == self._whole:
                self._share = (step + 1) / self._steps
                watch(phase, self._share)
            return not interrupt.pressed

        def phase_finish(self, phase: str) -> None:
            pass

    return Monitor()
