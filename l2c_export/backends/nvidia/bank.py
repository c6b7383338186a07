"""The kernel of a bank of sums (`models/bank.py`), which reads dozens of values at once, by a table of their addresses."""

from __future__ import annotations

from collections.abc import Sequence

from ...ir.graph import Primitive
from .by_hand import define, head, launched
from .kernels import Kernel
from .prelude import C
from .views import ArrayView

SUMS = 12  # at most, that a block makes at once
TOKENS = 32  # and for so many tokens
GROUP = 8  # values whose factors are in shared memory at once

BANK = """
  __shared__ float factors[GROUP][SUMS][WIDTH];
  __shared__ int first[SUMS], last[SUMS];
  const int x = threadIdx.x % 32, y = threadIdx.x / 32;
  int block = blockIdx.x;
  const int s0 = block % GROUPS * SUMS; block /= GROUPS;
  const int t0 = block % TILES * TOKENS + y * EACH; block /= TILES;
  const int d0 = block % STRIPES * WIDTH, d = d0 + x * LANES, r = block / STRIPES;
  for (int s = y; s < SUMS; s += 8) {  // a sum is for one of the calls, so that it has one weight: the calls from first to last
    int least = CALLS, most = -1;
    for (int w = x; w < CALLS; w += 32)
      if (s0 + s < S && weights[(s0 + s) * CALLS + w] != 0.0f) least = min(least, w), most = max(most, w);
    for (int o = 16; o; o >>= 1) {
      least = min(least, __shfl_xor_sync(~0u, least, o));
      most = max(most, __shfl_xor_sync(~0u, most, o));
    }
    if (x == 0) first[s] = least, last[s] = most;
  }
  float sums[EACH][LANES][SUMS] = {};
  for (int j0 = 0; j0 < VALUES; j0 += GROUP) {
    __syncthreads();
#pragma unroll 8
    for (int i = threadIdx.x; i < GROUP * SUMS * WIDTH; i += 256) {
      const int j = j0 + i / (SUMS * WIDTH), s = i / WIDTH % SUMS, c = i % WIDTH;
      float factor = 0.0f;
      if (j < VALUES && d0 + c < D && first[s] <= last[s]) {
        const GATE* gates = (const GATE*)addresses[VALUES + j] + r * D + d0 + c;
        const float* weight = weights + (s0 + s) * CALLS;
        const bool gated = addresses[VALUES + j] != 0;
        factor = weight[first[s]] * (gated ? number(gates[first[s] * R * D]) : 1.0f);
        for (int w = first[s] + 1; w <= last[s]; w++) factor += weight[w] * (gated ? number(gates[w * R * D]) : 1.0f);
      }
      factors[i / (SUMS * WIDTH)][s][c] = factor;
    }
    __syncthreads();
#pragma unroll 2
    for (int g = 0; g < GROUP; g++) {
      if (j0 + g >= VALUES || d >= D) break;
      const VALUE* value = (const VALUE*)addresses[j0 + g] + r * T * D + d;
      Pack<VALUE, LANES> given[EACH];
#pragma unroll
      for (int n = 0; n < EACH; n++) given[n] = *(const Pack<VALUE, LANES>*)(value + min(t0 + n, T - 1) * D);
#pragma unroll
      for (int l = 0; l < LANES; l++)
#pragma unroll
        for (int s = 0; s < SUMS; s++) {
          const float factor = factors[g][s][x * LANES + l];
#pragma unroll
          for (int n = 0; n < EACH; n++) sums[n][l][s] += factor * number(given[n].at[l]);
        }
    }
  }
  if (d >= D) return;
#pragma unroll
  for (int l = 0; l < LANES; l++)
#pragma unroll
    for (int s = 0; s < SUMS; s++)
#pragma unroll
      for (int n = 0; n < EACH; n++) {
        const int place = ((r * D + d + l) * S + s0 + s) * T + t0 + n;
        if (s0 + s < S && t0 + n < T) made[place] = sums[n][l][s] + BEFORE;
      }
}
"""


def bank(primitive: Primitive, inputs: Sequence[ArrayView], to: ArrayView) -> Kernel:
    """All values are read once for each dozen of sums, and every gate once for some tokens."""
    gated = dict(primitive.attributes)["gated"]
    assert isinstance(gated, tuple)
    weights, values, others = inputs[0], inputs[1 : 1 + len(gated)], list(inputs[1 + len(gated) :])
    gates = [others.pop(0) if has else None for has in gated]
    rows, width, sums, tokens = to.shape
    each, lanes = min(sums, SUMS), 1 + (width % 2 == 0)
    groups, tiles, stripes = -(-sums // each), -(-tokens // TOKENS), -(-width // (32 * lanes))
    text = define(SUMS=each, GROUPS=groups, TILES=tiles, STRIPES=stripes, VALUES=len(values), CALLS=weights.shape[1])
    text += define(
        S=sums, D=width, R=rows, T=tokens, TOKENS=TOKENS, EACH=TOKENS // 8, LANES=lanes, WIDTH=32 * lanes, GROUP=GROUP
    )
    kinds = {C[gate.dtype] for gate in gates if gate} or {"float"}
    text += f"#define GATE {kinds.pop()}\n#define VALUE {C[values[0].dtype]}\n"
    text += f"#define BEFORE {'keep[s0 + s] * before[place]' if others else '0.0f'}\n"
    named = [("weights", weights), *zip(("keep", "before"), others, strict=False), ("made", to)]
    addresses = (*(view.buffer for view in values), *(gate.buffer if gate else "" for gate in gates))
    source = text + head(256, named, "long long* addresses") + BANK
    return launched(source, rows * groups * tiles * stripes, 256, [view for _, view in named], addresses)
