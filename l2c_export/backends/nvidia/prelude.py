"""What every generated kernel begins with: types of 8 and 16 bits, packs of numbers, and sums over a row."""

from __future__ import annotations

from ...ir.dtypes import E4M3

C = {"float32": "float", "float16": "half", "bfloat16": "bfloat", "int32": "int", E4M3: "e4m3"}  # names of types in a kernel

PRELUDE = """
struct half { unsigned short bits; };
struct bfloat { unsigned short bits; };
struct e4m3 { unsigned char bits; };  // written where a GPU has it: from sm89 on
__device__ inline float number(float x) { return x; }
__device__ inline int number(int x) { return x; }
__device__ inline float number(half x) { float y; asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits)); return y; }
__device__ inline float number(bfloat x) { return __uint_as_float((unsigned)x.bits << 16); }
__device__ inline void put(float& to, float x) { to = x; }
__device__ inline void put(int& to, int x) { to = x; }
__device__ inline void put(half& to, float x) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"(x)); }
__device__ inline void put(bfloat& to, float x) { asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(to.bits) : "f"(x)); }
__device__ inline void put(e4m3& to, float x) {
  unsigned short pair;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(0.0f), "f"(x));
  to.bits = (unsigned char)pair;
}

template <int N> __device__ inline float row_sum(float x) {  // of the N threads of a row, a multiple of 32
  for (int o = 16; o; o >>= 1) x += __shfl_xor_sync(~0u, x, o);
  if (N > 32) {
    __shared__ float parts[N / 32];
    __syncthreads();
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
    __syncthreads();
    x = 0;
    for (int n = 0; n < N / 32; n++) x += parts[n];
  }
  return x;
}
"""

COMMON = """
template <class T, int N> struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Pack { T at[N]; };
__device__ inline float gelu(float x) { return 0.5f * x * (1.0f + erff(x * 0.70710678f)); }
__device__ inline float gelu_tanh(float x) {
  return x / (1.0f + expf(-1.5957691216f * (x + 0.044715f * x * x * x)));
}
__device__ inline float silu(float x) { return x / (1.0f + expf(-x)); }
__device__ inline float relu(float x) { return x < 0.0f ? 0.0f : x; }
__device__ inline int within(int i, int length) { return i < 0 ? 0 : i < length ? i : length - 1; }
"""
