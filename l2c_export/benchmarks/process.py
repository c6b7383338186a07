"""A contender's process, as the benchmark sees it."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec

from ..errors import BackendError
from .contenders import BenchRequest, Contender, Settings

T = TypeVar("T")
WORKER = (sys.executable, "-m", "l2c_export.benchmarks.worker")


class Task(msgspec.Struct, frozen=True):
    contender: Contender
    request: BenchRequest


class Ready(msgspec.Struct, frozen=True):
    settings: Settings
    load_seconds: float  # until it could make an image
    artefact_bytes: int  # on disk: all of an artefact, or the weights alone for PyTorch


class Timed(msgspec.Struct, frozen=True):
    """An image as its user waits for it.  On a GPU its calls are those of a second image, by the GPU's own clock: nobody waits
    for them one by one."""

    seconds: float
    calls: tuple[float, ...]


class Process:
    """A contender's process, started at once; `wait` is the first thing to ask of it."""

    def __init__(self, contender: Contender, request: BenchRequest, command: Sequence[str] = WORKER) -> None:
        self.name, self._task, self._command = contender.name, Task(contender, request), command
        self._begin()

    def _begin(self) -> None:
        self._started, self._log = time.perf_counter(), tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log)
        self._write(msgspec.json.encode(self._task))

    def renew(self) -> None:
        """Go on with another process, warm: the memory that one happens to get makes it some percent faster or slower."""
        self.stop()
        self._begin()
        self.wait()
        self.image()

    def wait(self) -> tuple[Ready, float]:
        """When the first image is made: what was loaded, and the seconds since the process began.

        Raises BackendError with the reason where the contender cannot do it.
        """
        ready = self._read(Ready)
        return ready, time.perf_counter() - self._started

    def image(self) -> Timed:
        """Make one more image."""
        return self.ask("image", Timed)

    def ask(self, what: str, kind: type[T] | Any) -> T:
        """Send one line, and read its answer as `kind`."""
        self._write(what.encode())
        return self._read(kind)  # type: ignore[no-any-return]

    def stop(self) -> None:
        """End the process; it has nothing to save."""
        self._process.kill()
        self._process.communicate()
        self._log.close()

    def _write(self, line: bytes) -> None:
        assert self._process.stdin
        try:
            self._process.stdin.write(line + b"\n")
            self._process.stdin.flush()
        except OSError:  # it has ended: reading says why
            pass

    def _read(self, kind: Any) -> Any:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise BackendError(f"{self.name}: its process ended with code {self._process.wait()}: {self._last_words()}")
        answer: dict[str, Any] = msgspec.json.decode(line)
        if "error" in answer:
            raise BackendError(answer["error"])
        return msgspec.convert(answer["answer"], kind)

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"
