"""The PyTorch contenders: an artefact's model, weights, precision and schedule, in eager PyTorch or through torch.compile."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from ..artefact.call_record import CallRecord
from ..artefact.manifest import Manifest
from ..errors import BackendError
from ..ir.inputs import Inputs
from .eager import Denoiser
from .family import family_of
from .stored import stored


class Baseline:
    """Makes images as the reference does, with all passes of the compiler left to PyTorch.

    `calls` say which sublayers are reused.  Raises BackendError where PyTorch cannot do what the artefact does.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, compiled: bool, threads: int, device: str | None, cached: bool = True
    ) -> None:
        if manifest.denoiser.fp32:
            raise BackendError(f"pytorch: has no layers kept in float32 (fp32={manifest.denoiser.fp32[0]!r}): compile without")
        torch.set_num_threads(threads)
        self.device = torch_device(device)
        # CUDA graphs overwrite what they returned before, so only a loop without a cache can use them
        mode = "reduce-overhead" if compiled and self.on_gpu and not cached else None
        if compiled and not self.on_gpu:
            from torch._inductor import config

            config.freezing = True  # weights become constants, packed for the processor
        family = family_of(manifest)
        weights = {name: tensor.to(self.device) for name, tensor in stored(folder, manifest).items()}
        self._noise_scale, self._denoiser = (
            manifest.program().noise_scale,
            Denoiser(family, weights, compiled, mode, manifest.denoiser.levels),
        )
        self.runtime = f"{'torch.compile' if compiled else 'PyTorch eager'} {torch.__version__}"

    def steps(self, calls: Sequence[CallRecord], noise: np.ndarray, inputs: Inputs, guidance: np.ndarray) -> Iterator[object]:
        """One item per call; inputs (R, ..) by name, the unconditional half last, guidance (B, C, 1, ..), as in the runtime."""
        scaled = noise * np.float32(self._noise_scale)
        x, strength = (torch.from_numpy(values).to(self.device) for values in (scaled, guidance))
        request = {name: torch.from_numpy(values).to(self.device) for name, values in inputs.items()}
        return self._denoiser.steps(calls, x, request, strength)

    @property
    def on_gpu(self) -> bool:
        """Whether calls return before they have ended."""
        return self.device.type == "cuda"

    def finish(self, steps: Iterator[object]) -> None:
        """Make all calls of an image on the GPU, and return when they have ended."""
        for _ in steps:
            pass
        torch.cuda.synchronize(self.device)

    def timed(self, steps: Iterator[object]) -> list[float]:
        """The seconds of every call of an image, by the GPU's clock."""
        marks: list[Any] = []
        for _ in itertools.chain([None], steps):
            marks.append(torch.cuda.Event(enable_timing=True))  # type: ignore[no-untyped-call]
            marks[-1].record()
        torch.cuda.synchronize(self.device)
        return [1e-3 * a.elapsed_time(b) for a, b in itertools.pairwise(marks)]


def uncached(calls: Sequence[CallRecord]) -> tuple[CallRecord, ...]:
    """The same calls, all of them computing everything."""
    columns = calls[0].computed  # the first computes all
    return tuple(msgspec.structs.replace(call, computed=columns, reused=(), derived=msgspec.UNSET) for call in calls)


def torch_device(name: str | None) -> torch.device:
    device = torch.device({None: "cpu", "gpu": "cuda"}.get(name, name or "cpu"))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BackendError(f"pytorch: no CUDA device on this machine for device={name!r}: use device='cpu'")
    return device
