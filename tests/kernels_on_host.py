"""Generated kernels on the host: the same source, compiled by the C++ compiler that is here, thread after thread.

Products and attention are PyTorch's; what adds up over a row does so in one thread (`kernels.WARP` is 1).
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch

from l2c_export.backends.nvidia.kernels import Kernel
from l2c_export.backends.nvidia.prelude import COMMON
from l2c_export.backends.nvidia.steps import Attention, Product, StepPlan
from l2c_export.models.primitives import sdpa

COMPILER = shutil.which("g++")
HOST = """
#include <cmath>
#include <cstring>
#define __device__
#define __global__
#define __launch_bounds__(n)
struct { int x; } blockIdx, threadIdx;
struct half { _Float16 value; };
struct bfloat { unsigned short bits; };
static float number(float x) { return x; }
static int number(int x) { return x; }
static float number(half x) { return (float)x.value; }
static float number(bfloat x) { unsigned y = (unsigned)x.bits << 16; float z; memcpy(&z, &y, 4); return z; }
static void put(float& to, float x) { to = x; }
static void put(int& to, int x) { to = x; }
static void put(half& to, float x) { to.value = (_Float16)x; }
static void put(bfloat& to, float x) { unsigned y; memcpy(&y, &x, 4); to.bits = (y + 0x7fff + (y >> 16 & 1)) >> 16; }
static float rsqrtf(float x) { return 1.0f / sqrtf(x); }
template <int N> float row_sum(float x) { return x; }
"""


def together(sources: list[str]) -> str:
    """Kernels of one program: kernel0, kernel1, .."""
    return "".join(source.replace("kernel(", f"kernel{n}(", 1) + _undefined(source) for n, source in enumerate(sources))


def _undefined(source: str) -> str:
    return "".join(f"#undef {line.split()[1]}\n" for line in source.splitlines() if line.startswith("#define"))


class Host:
    """Compiled kernels of some plans."""

    def __init__(self, plans: list[StepPlan], folder: Path) -> None:
        kernels = {k.source: k for plan in plans for k in plan.steps if isinstance(k, Kernel) and "__shared__" not in k.source}
        self.number = {source: n for n, source in enumerate(kernels)}
        text = "#include <utility>\n#include <cstddef>\n" + HOST + COMMON + together(list(kernels))
        for n, kernel in enumerate(kernels.values()):
            indices = f"std::make_index_sequence<{len(kernel.buffers)}>()"
            text += f"""
template <class... P, size_t... I> void go{n}(void (*f)(P...), void** p, std::index_sequence<I...>) {{ f((P)p[I]...); }}
extern "C" void run{n}(void** p, int blocks, int threads) {{
  for (blockIdx.x = 0; blockIdx.x < blocks; blockIdx.x++)
    for (threadIdx.x = 0; threadIdx.x < threads; threadIdx.x++) go{n}(kernel{n}, p, {indices});
}}"""
        folder = Path(tempfile.mkdtemp(dir=folder))  # a library is loaded once by its path
        source, library = folder / "kernels.cpp", folder / "kernels.so"
        source.write_text(text)
        subprocess.run([COMPILER, "-O1", "-w", "-shared", "-fPIC", "-std=c++17", source, "-o", library], check=True)
        self.library = ctypes.CDLL(str(library))

    def run(self, plan: StepPlan, given: dict[str, torch.Tensor]) -> None:
        """Fill the outputs that are among what is given."""
        memory = dict(given)
        memory |= {name: torch.from_numpy(np.ascontiguousarray(table)) for name, table in plan.tables.items()}
        scratch = torch.full((plan.scratch + 1,), 77, dtype=torch.uint8)
        base = {name: scratch[offset:] for name, offset in plan.places.items()}

        def array(view):
            source = memory[view.buffer].reshape(-1) if view.buffer in memory else base[view.buffer]
            kind = getattr(torch, view.dtype)
            flat = source if source.dtype == kind else source[: len(source) // 4 * 4].view(kind)
            return flat.as_strided(view.shape, view.strides, flat.storage_offset() + view.offset)

        for step in plan.steps:
            if isinstance(step, Kernel):
                sources = [memory[b] if b in memory else base[b] for b in step.buffers]
                pointers = (ctypes.c_void_p * len(sources))(*(s.data_ptr() for s in sources))
                getattr(self.library, f"run{self.number[step.source]}")(pointers, step.blocks, step.threads)
            elif isinstance(step, Product):
                made = array(step.x).float() @ array(step.weight).float().T
                made = made + array(step.bias).float() if step.bias else made
                made = made + array(step.residual).float() if step.residual else made
                made = torch.nn.functional.gelu(made, approximate="tanh") if step.gelu else made
                array(step.out).copy_(made)
            elif isinstance(step, Attention):
                mask = array(step.mask) if step.mask else None
                array(step.out).copy_(sdpa(array(step.q), array(step.k), array(step.v), mask, heads=step.heads))
