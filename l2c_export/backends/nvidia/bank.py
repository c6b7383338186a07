"""The kernel of a bank of sums (`models/bank.py`), which reads dozens of values at once, by a table of their addresses."""

from __future__ import annotations

from collections.abc import Sequence

from ...ir.dtypes import BYTES
from ...ir.graph import Primitive
from .by_hand import SHARED, define, head, launched
from .kernels import Kernel
from .prelude import C
from .views import ArrayView

SUMS = 12  # at most, that a block makes at once
CHANNELS, TOKENS = 32, 32  # that a block makes
THREADS = 128
BATCH, LATE, UNROLLED = 7, 16, 8  # loads under way: of gates, of sums before, of values
ROOM = SHARED - 4096  # bytes of a block: for gates, then for sums

BANK = """
  struct alignas(sizeof(VALUE) * PAIR) Values { VALUE at[PAIR]; };  // of neighbouring channels
  struct alignas(sizeof(GATE) * PAIR) Gates { GATE at[PAIR]; };
  struct alignas(sizeof(GATE) * WIDE) Wide { GATE at[WIDE]; };
  __shared__ double room[ROOM / 8];
  __shared__ int first[SUMS], last[SUMS];  // the calls that a sum is for: one, but for what no rule of ours makes
  int block = blockIdx.x;
  const int s0 = block % GROUPS * SUMS; block /= GROUPS;
  const int t0 = block % TILES * TOKENS; block /= TILES;
  const int d0 = block % STRIPES * CHANNELS, r = block / STRIPES;
  const int c = min(threadIdx.x % LANES * PAIR, D - PAIR - d0), y = threadIdx.x / LANES * EACH;
  for (int s = threadIdx.x / 32; s < SUMS; s += THREADS / 32) {
    int least = CALLS, most = -1;
    for (int w = threadIdx.x % 32; w < CALLS; w += 32)
      if (s0 + s < S && weights[(s0 + s) * CALLS + w] != 0.0f) least = min(least, w), most = max(most, w);
    for (int o = 16; o; o >>= 1) {
      least = min(least, __shfl_xor_sync(~0u, least, o));
      most = max(most, __shfl_xor_sync(~0u, most, o));
    }
    if (threadIdx.x % 32 == 0) first[s] = least, last[s] = most;
  }
  __syncthreads();
  int passes = 1;
  for (int s = 0; s < SUMS; s++) passes = max(passes, last[s] - first[s] + 1);
  for (int pass = 0; pass < passes; pass++) {
    float sums[EACH][SUMS][PAIR] = {};
    GATE* gates = (GATE*)room;
    for (int j0 = 0; j0 < GATED; j0 += CHUNK) {
      const int count = min(CHUNK, GATED - j0) * SUMS * (CHANNELS / WIDE);
      __syncthreads();
      for (int i0 = threadIdx.x; i0 < count; i0 += BATCH * THREADS) {
        Wide some[BATCH];
#pragma unroll
        for (int q = 0; q < BATCH; q++) {
          const int i = min(i0 + q * THREADS, count - 1), e = i % (CHANNELS / WIDE) * WIDE, s = i / (CHANNELS / WIDE) % SUMS;
          const int call = first[s] + pass <= last[s] ? first[s] + pass : 0;
          const GATE* gate = (const GATE*)addresses[VALUES + j0 + i / (CHANNELS / WIDE) / SUMS];
          some[q] = *(const Wide*)(gate + (call * R + r) * D + min(d0 + e, D - WIDE));
        }
#pragma unroll
        for (int q = 0; q < BATCH; q++)
          if (i0 + q * THREADS < count) ((Wide*)gates)[i0 + q * THREADS] = some[q];
      }
      __syncthreads();
#pragma unroll UNROLLED
      for (int j = 0; j < min(CHUNK, GATED - j0); j++) {  // nothing is asked between the loads: they are under way at once
        const VALUE* value = (const VALUE*)addresses[j0 + j] + r * T * D + d0 + c;
        Values packed[EACH];
        float v[EACH][PAIR];
#pragma unroll
        for (int n = 0; n < EACH; n++) packed[n] = *(const Values*)(value + min(t0 + y + n, T - 1) * D);
#pragma unroll
        for (int n = 0; n < EACH; n++)
#pragma unroll
          for (int p = 0; p < PAIR; p++) v[n][p] = number(packed[n].at[p]);
#pragma unroll
        for (int s = 0; s < SUMS; s++) {
          const Gates g = *(const Gates*)(gates + (j * SUMS + s) * CHANNELS + c);
#pragma unroll
          for (int p = 0; p < PAIR; p++) {
            const float strength = number(g.at[p]);
#pragma unroll
            for (int n = 0; n < EACH; n++) sums[n][s][p] += strength * v[n][p];
          }
        }
      }
    }
    for (int j = GATED; j < VALUES; j++) {
      const VALUE* value = (const VALUE*)addresses[j] + r * T * D + d0 + c;
#pragma unroll
      for (int n = 0; n < EACH; n++) {
        const Values v = *(const Values*)(value + min(t0 + y + n, T - 1) * D);
#pragma unroll
        for (int s = 0; s < SUMS; s++)
#pragma unroll
          for (int p = 0; p < PAIR; p++) sums[n][s][p] += number(v.at[p]);
      }
    }
    float* tile = (float*)room;  // tokens become the last axis
#pragma unroll
    for (int s1 = 0; s1 < SUMS; s1 += TURNED) {
      __syncthreads();
#pragma unroll
      for (int k = 0; k < TURNED && s1 + k < SUMS; k++) {
        const int s = s1 + k;
        const float weight = first[s] + pass <= last[s] ? weights[(s0 + s) * CALLS + first[s] + pass] : 0.0f;
#pragma unroll
        for (int p = 0; p < PAIR; p++)
#pragma unroll
          for (int n = 0; n < EACH; n++) tile[(k * CHANNELS + c + p) * (TOKENS + 1) + y + n] = weight * sums[n][s][p];
      }
      __syncthreads();
      const int count = min(TURNED, SUMS - s1) * CHANNELS * TOKENS;
      for (int i0 = threadIdx.x; i0 < count; i0 += LATE * THREADS) {
        float old[LATE];
#pragma unroll
        for (int q = 0; q < LATE; q++) {
          const int i = i0 + q * THREADS, s = min(s0 + s1 + i / TOKENS / CHANNELS, S - 1);
          const int place = ((r * D + min(d0 + i / TOKENS % CHANNELS, D - 1)) * S + s) * T + min(t0 + i % TOKENS, T - 1);
          old[q] = pass ? out[place] : BEFORE;
        }
#pragma unroll
        for (int q = 0; q < LATE; q++) {
          const int i = i0 + q * THREADS, t = i % TOKENS, e = i / TOKENS % CHANNELS, s = s1 + i / TOKENS / CHANNELS;
          const int place = ((r * D + d0 + e) * S + s0 + s) * T + t0 + t;
          if (i < count && d0 + e < D && t0 + t < T && s0 + s < S) out[place] = tile[i / TOKENS * (TOKENS + 1) + t] + old[q];
        }
      }
    }
  }
}
"""


def bank(primitive: Primitive, inputs: Sequence[ArrayView], to: ArrayView) -> Kernel:
    """All values are read once for each dozen of sums.  Weights are the same for all values: they come in at the end."""
    gated = dict(primitive.attributes)["gated"]
    assert isinstance(gated, tuple)
    weights, values, others = inputs[0], list(inputs[1 : 1 + len(gated)]), list(inputs[1 + len(gated) :])
    gates = [others.pop(0) for has in gated if has]
    values = [value for wanted in (1, 0) for value, has in zip(values, gated, strict=True) if has == wanted]
    rows, width, sums, tokens = to.shape
    together, kind = min(sums, SUMS), gates[0].dtype if gates else "float32"
    groups, tiles, stripes = -(-sums // together), -(-tokens // TOKENS), -(-width // CHANNELS)
    pair = 1 if width % 2 else 2
    lanes = CHANNELS // pair
    text = define(SUMS=together, GROUPS=groups, TILES=tiles, STRIPES=stripes, VALUES=len(values), CALLS=weights.shape[1])
    text += define(S=sums, D=width, R=rows, T=tokens, TOKENS=TOKENS, CHANNELS=CHANNELS, THREADS=THREADS, ROOM=ROOM)
    text += define(PAIR=pair, LANES=lanes, EACH=TOKENS * lanes // THREADS, GATED=len(gates))
    size = BYTES[kind]
    text += define(BATCH=BATCH, LATE=LATE, UNROLLED=UNROLLED, WIDE=1 if width * size % 16 else 16 // size)
    text += define(CHUNK=ROOM // (together * CHANNELS * size), TURNED=_even(together, ROOM // (4 * CHANNELS * (TOKENS + 1))))
    text += f"#define GATE {C[kind]}\n#define VALUE {C[values[0].dtype]}\n"
    text += f"#define BEFORE {'keep[s] * before[place]' if others else '0.0f'}\n"
    named = [("weights", weights), *zip(("keep", "before"), others, strict=False), ("out", to)]
    addresses = tuple(view.buffer for view in (*values, *gates))
    source = text + head(THREADS, named, "long long* addresses") + BANK
    return launched(source, rows * groups * tiles * stripes, THREADS, [view for _, view in named], addresses)


def _even(count: int, most: int) -> int:
    """So many at once that as few turns as possible are about equal."""
    return -(-count // -(-count // most))
