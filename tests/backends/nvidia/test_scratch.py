"""Where the temporary values of segments lie: in one block, which is as large as the segment that takes most needs."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import pytest

from l2c_export.backends.contract import Request
from l2c_export.backends.nvidia import backend as nvidia
from l2c_export.backends.nvidia.kernels import Kernel
from l2c_export.backends.nvidia.steps import StepPlan
from l2c_export.errors import RunError


class Gpu:
    """A GPU of some bytes that only counts."""

    name, architecture = "a GPU", "sm90"

    def __init__(self, *_: object) -> None:
        self.taken: list[int] = []
        self.bytes = 1000

    def allocate(self, size: int) -> SimpleNamespace:
        self.taken.append(size)
        return SimpleNamespace(size=size, pointer=1000 * len(self.taken))

    def reserve(self, size: int, what: str) -> None:
        if size > self.bytes:
            raise RunError(f"{what} need {size} bytes")


class Launches:
    """A launcher that notes the addresses of what is run."""

    def __init__(self, *_: object) -> None:
        self.addresses: list[int] = []

    def bind(self, kernel, address):
        (buffer,) = kernel.buffers
        return functools.partial(self.addresses.append, address(buffer))


@pytest.fixture
def backend(monkeypatch):
    monkeypatch.setattr(nvidia, "Cuda", Gpu)
    monkeypatch.setattr(nvidia, "Launcher", Launches)
    for library in ("Products", "FusedAttention"):
        monkeypatch.setattr(nvidia, library, lambda *_: None)
    return nvidia.CudaBackend(Request("cuda"))


def temporary(scratch: int, at: int = 0) -> StepPlan:
    """A step over one temporary value."""
    return StepPlan((Kernel(f"// {scratch}", 1, 1, ("a",), frozenset({"a"}), {}),), {"a": at}, scratch, {})


def test_the_segments_of_a_loop_share_one_block(backend):
    runs = [backend.bind(temporary(scratch, at), {}) for scratch, at in ((10, 1), (400, 300), (30, 0))]
    assert backend.memory.taken == [0], "nothing is taken before all of them are known"
    for run in runs * 2:
        run()
    assert backend.memory.taken == [0, 400]
    assert backend._launcher.addresses == [2001, 2300, 2000] * 2


def test_what_has_run_stays_where_it_is_when_a_larger_loop_comes(backend):
    small = backend.bind(temporary(10), {})
    small()
    backend.bind(temporary(50), {})()
    small()
    assert (backend.memory.taken, backend._launcher.addresses) == ([0, 10, 50], [2000, 3000, 2000])


def test_a_gpu_without_room_says_for_what(backend):
    with pytest.raises(RunError, match="temporary values need 1001 bytes"):
        backend.bind(temporary(1001), {})()
