"""One process, or one for each GPU under `torchrun` or `accelerate launch`."""

from __future__ import annotations

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from torch import Tensor

from ..errors import BackendError, UsageError


class Workers:
    """All processes of a training."""

    def __init__(self, device: str | None) -> None:
        if device not in (None, "cpu", "cuda"):
            raise UsageError(f"device={device!r}: use cpu or cuda (CUDA_VISIBLE_DEVICES chooses among GPUs)")
        if device == "cuda" and not torch.cuda.is_available():
            raise BackendError("device='cuda': PyTorch finds no CUDA device on this machine: use device='cpu'")
        on_cpu = device == "cpu" or not torch.cuda.is_available()
        self._state = PartialState(cpu=on_cpu)
        self.device = torch.device("cpu") if on_cpu else self._state.device
        self.leads = self._state.is_main_process

    def images(self, batch: int) -> range:
        """This process's part of a batch."""
        count = self._state.num_processes
        if batch % count:
            raise UsageError(f"batch={batch}: cannot be split over {count} processes: use a multiple of {count}")
        return range(self._state.process_index * batch // count, (self._state.process_index + 1) * batch // count)

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a tensor over all processes."""
        mean: Tensor = reduce(value, reduction="mean")
        return mean

    def describe(self) -> str:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        return f"{self._state.num_processes} x {name}"

    def part(self) -> None:
        """The last that processes do together."""
        self._state.wait_for_everyone()
        self._state.destroy_process_group()

    @property
    def peak_gpu_bytes(self) -> int | None:
        """The most memory that PyTorch has had on this process's GPU; None without one."""
        return torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else None
