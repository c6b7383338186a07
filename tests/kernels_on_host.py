"""Kernels on the host: the same source, compiled by the C++ compiler that is here.

Those with shared memory run a thread for a thread, block after block; all others in one, where a row is a thread's
(`kernels.WARP` is 1).  Products are PyTorch's, and so is attention unless its kernel is asked for.
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
from l2c_export.backends.nvidia.steps import Attention, Product, Step, StepPlan
from l2c_export.models.primitives import sdpa

COMPILER = shutil.which("g++")
HOST = """
#include <algorithm>
#include <barrier>
#include <cmath>
#include <cstring>
#include <thread>
#include <utility>
#include <vector>
#define __device__
#define __global__
#define __launch_bounds__(n)
#define __shared__ static
#define __syncthreads() everybody->arrive_and_wait()
using std::min, std::max;
static struct { int x; } blockIdx;
static thread_local struct { int x; } threadIdx;
static std::barrier<>* everybody;
static std::barrier<>* warps[32];
static unsigned lanes[32][32];
template <class V> V __shfl_sync(unsigned, V x, int from) {
  const int warp = threadIdx.x / 32;
  memcpy(&lanes[warp][threadIdx.x % 32], &x, 4);
  warps[warp]->arrive_and_wait();
  memcpy(&x, &lanes[warp][from], 4);
  warps[warp]->arrive_and_wait();
  return x;
}
template <class V> V __shfl_xor_sync(unsigned all, V x, int o) { return __shfl_sync(all, x, threadIdx.x % 32 ^ o); }
static float __int_as_float(unsigned x) { float y; memcpy(&y, &x, 4); return y; }
template <class F> void together(int blocks, int threads, F f) {
  std::barrier<> whole(threads);
  everybody = &whole;
  for (int w = 0; w < threads / 32; w++) warps[w] = new std::barrier<>(32);
  std::vector<std::thread> all;
  for (int t = 0; t < threads; t++)
    all.emplace_back([=] {
      threadIdx.x = t;
      for (int b = 0; b < blocks; b++) {
        if (t == 0) blockIdx.x = b;
        everybody->arrive_and_wait();
        f();
        everybody->arrive_and_wait();
      }
    });
  for (auto& thread : all) thread.join();
}
struct half { _Float16 value; };
struct bfloat { unsigned short bits; };
struct e4m3 { unsigned char bits; };
static float number(float x) { return x; }
static int number(int x) { return x; }
static float number(half x) { return (float)x.value; }
static float number(bfloat x) { unsigned y = (unsigned)x.bits << 16; float z; memcpy(&z, &y, 4); return z; }
static void put(float& to, float x) { to = x; }
static void put(int& to, int x) { to = x; }
static void put(half& to, float x) { to.value = (_Float16)x; }
static void put(bfloat& to, float x) { unsigned y; memcpy(&y, &x, 4); to.bits = (y + 0x7fff + (y >> 16 & 1)) >> 16; }
static void put(e4m3& to, float x) {  // to the nearest, where two are even, and to the largest where it is more
  const float size = fminf(fabsf(x), 448.0f);
  const int exponent = size < 0x1p-6f ? -6 : ilogbf(size);
  const int steps = (int)nearbyintf(ldexpf(size, 3 - exponent));  // of the last bit
  to.bits = (std::signbit(x) ? 0x80 : 0) | (x != x ? 0x7f : steps < 8 ? steps : (exponent + 7) * 8 + steps - 8);
}
static float rsqrtf(float x) { return 1.0f / sqrtf(x); }
template <int N> float row_sum(float x) { return x; }
"""


def together(sources: list[str]) -> str:
    """Kernels of one program: kernel0, kernel1, .."""
    return "".join(source.replace("kernel(", f"kernel{n}(", 1) + _undefined(source) for n, source in enumerate(sources))


def _undefined(source: str) -> str:
    return "".join(f"#undef {line.split()[1]}\n" for line in source.splitlines() if line.startswith("#define"))


def flattened(plan: StepPlan) -> list[Step]:
    """The steps for a library without some products."""
    return [other for step in plan.steps for other in getattr(step, "otherwise", ()) or (step,)]


class Host:
    """Compiled kernels of some plans."""

    def __init__(self, plans: list[StepPlan], folder: Path) -> None:
        kernels = {kernel.source: kernel for plan in plans for kernel in plan.kernels}
        self.number = {source: n for n, source in enumerate(kernels)}
        text = HOST + COMMON + together(list(kernels))
        for n, kernel in enumerate(kernels.values()):
            indices = f"std::make_index_sequence<{len(kernel.buffers) + bool(kernel.addresses)}>()"
            call, shared = f"go{n}(kernel{n}, p, {indices})", "__shared__" in kernel.source
            at_once = f"together(blocks, threads, [=] {{ {call}; }});"
            one_by_one = f"for (threadIdx.x = 0; threadIdx.x < threads; threadIdx.x++) {call};"
            text += f"""
template <class... P, size_t... I> void go{n}(void (*f)(P...), void** p, std::index_sequence<I...>) {{ f((P)p[I]...); }}
extern "C" void run{n}(void** p, int blocks, int threads) {{
  {at_once if shared else f"for (blockIdx.x = 0; blockIdx.x < blocks; blockIdx.x++) {one_by_one}"}
}}"""
        folder = Path(tempfile.mkdtemp(dir=folder))  # a library is loaded once by its path
        source, library = folder / "kernels.cpp", folder / "kernels.so"
        source.write_text(text)
        subprocess.run([COMPILER, "-O1", "-w", "-shared", "-fPIC", "-std=c++20", "-pthread", source, "-o", library], check=True)
        self.library = ctypes.CDLL(str(library))

    def run(self, plan: StepPlan, tensors: dict[str, torch.Tensor], own_attention: bool = False,
            otherwise: bool = False) -> None:  # fmt: skip
        """Fill the outputs that are among what is given."""
        memory = dict(tensors)
        memory |= {name: torch.from_numpy(np.ascontiguousarray(table)) for name, table in plan.tables.items()}
        scratch = torch.full((plan.scratch + 1,), 77, dtype=torch.uint8)
        base = {name: scratch[offset:] for name, offset in plan.places.items()}

        def array(view):
            source = memory[view.buffer].reshape(-1) if view.buffer in memory else base[view.buffer]
            kind = getattr(torch, view.dtype)
            flat = source if source.dtype == kind else source[: len(source) // 4 * 4].view(kind)
            return flat.as_strided(view.shape, view.strides, flat.storage_offset() + view.offset)

        for step in flattened(plan) if otherwise else plan.steps:
            if own_attention and isinstance(step, Attention):
                step = step.own
            if isinstance(step, Kernel):
                pointers = [(memory[b] if b in memory else base[b]).data_ptr() for b in step.buffers]
                if step.addresses:
                    table = torch.tensor([(memory[b] if b in memory else base[b]).data_ptr() for b in step.addresses])
                    pointers = [table.data_ptr(), *pointers]
                arguments = (ctypes.c_void_p * len(pointers))(*pointers)
                getattr(self.library, f"run{self.number[step.source]}")(arguments, step.blocks, step.threads)
            elif isinstance(step, Product):
                product = array(step.x).float() @ array(step.weight).float().T
                product = product * array(step.scales[0])[0] * array(step.scales[1])[0] if step.scales else product
                product = product + array(step.bias).float() if step.bias else product
                product = product + array(step.residual).float() if step.residual else product
                product = torch.nn.functional.gelu(product, approximate="tanh") if step.gelu else product
                product = (product * array(step.out_scale)[1]).clamp(-448, 448) if step.out_scale else product
                array(step.out).copy_(product)
            elif isinstance(step, Attention):
                mask = array(step.mask) if step.mask else None
                array(step.out).copy_(sdpa(array(step.q), array(step.k), array(step.v), mask, heads=step.heads))
