"""The kernel of a bank of sums (`models/bank.py`), which reads dozens of values at once, by a table of their addresses."""

from __future__ import annotations

from collections.abc import Sequence

from ...ir.graph import Primitive
from .by_hand import define, head, launched
from .kernels import Kernel
from .prelude import C
from .views import ArrayView

SUMS = 12  # at most, that a block makes at once
TOKENS = 32  # that a block makes, of 32 channels

BANK = """
  __shared__ float tile[32][33];
  __shared__ int first[SUMS], last[SUMS];  // the calls that a sum is for: one, but for what no rule of ours makes
  const int x = threadIdx.x % 32, y = threadIdx.x / 32;
  int block = blockIdx.x;
  const int s0 = block % GROUPS * SUMS; block /= GROUPS;
  const int t0 = block % TILES * TOKENS; block /= TILES;
  const int d0 = block % STRIPES * 32, d = min(d0 + x, D - 1), r = block / STRIPES;
  for (int s = y; s < SUMS; s += 8) {
    int least = CALLS, most = -1;
    for (int w = x; w < CALLS; w += 32)
      if (s0 + s < S && weights[(s0 + s) * CALLS + w] != 0.0f) least = min(least, w), most = max(most, w);
    for (int o = 16; o; o >>= 1) {
      least = min(least, __shfl_xor_sync(~0u, least, o));
      most = max(most, __shfl_xor_sync(~0u, most, o));
    }
    if (x == 0) first[s] = least, last[s] = most;
  }
  __syncthreads();
  int passes = 1;
  for (int s = 0; s < SUMS; s++) passes = max(passes, last[s] - first[s] + 1);
  for (int pass = 0; pass < passes; pass++) {
    int gate[SUMS];  // where the gates of a sum's call are
#pragma unroll
    for (int s = 0; s < SUMS; s++) gate[s] = ((first[s] + pass <= last[s] ? first[s] + pass : 0) * R + r) * D + d;
    float sums[EACH][SUMS] = {};
#pragma unroll 2
    for (int j = 0; j < GATED; j++) {  // nothing is asked between the loads: they are under way at once
      const VALUE* value = (const VALUE*)addresses[j] + r * T * D + d;
      const GATE* gates = (const GATE*)addresses[VALUES + j];
      float v[EACH], g[SUMS];
#pragma unroll
      for (int n = 0; n < EACH; n++) v[n] = number(value[min(t0 + y * EACH + n, T - 1) * D]);
#pragma unroll
      for (int s = 0; s < SUMS; s++) g[s] = number(gates[gate[s]]);
#pragma unroll
      for (int s = 0; s < SUMS; s++)
#pragma unroll
        for (int n = 0; n < EACH; n++) sums[n][s] += g[s] * v[n];
    }
    for (int j = GATED; j < VALUES; j++) {
      const VALUE* value = (const VALUE*)addresses[j] + r * T * D + d;
#pragma unroll
      for (int n = 0; n < EACH; n++) {
        const float v = number(value[min(t0 + y * EACH + n, T - 1) * D]);
#pragma unroll
        for (int s = 0; s < SUMS; s++) sums[n][s] += v;
      }
    }
#pragma unroll
    for (int s = 0; s < SUMS; s++) {
      const float weight = first[s] + pass <= last[s] ? weights[(s0 + s) * CALLS + first[s] + pass] : 0.0f;
      __syncthreads();
#pragma unroll
      for (int n = 0; n < EACH; n++) tile[x][y * EACH + n] = weight * sums[n][s];
      __syncthreads();
      float old[4];
#pragma unroll
      for (int c = 0; c < 4; c++) {
        const int place = ((r * D + min(d0 + y + 8 * c, D - 1)) * S + min(s0 + s, S - 1)) * T + min(t0 + x, T - 1);
        old[c] = pass ? made[place] : BEFORE;
      }
#pragma unroll
      for (int c = 0; c < 4; c++) {
        const int e = d0 + y + 8 * c, place = ((r * D + e) * S + s0 + s) * T + t0 + x;
        if (e < D && t0 + x < T && s0 + s < S) made[place] = tile[y + 8 * c][x] + old[c];
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
    each = min(sums, SUMS)
    groups, tiles, stripes = -(-sums // each), -(-tokens // TOKENS), -(-width // 32)
    text = define(SUMS=each, GROUPS=groups, TILES=tiles, STRIPES=stripes, VALUES=len(values), CALLS=weights.shape[1])
    text += define(S=sums, D=width, R=rows, T=tokens, TOKENS=TOKENS, EACH=TOKENS // 8)
    text += define(GATED=len(gates))
    text += f"#define GATE {C[gates[0].dtype] if gates else 'float'}\n#define VALUE {C[values[0].dtype]}\n"
    text += f"#define BEFORE {'keep[min(s0 + s, S - 1)] * before[place]' if others else '0.0f'}\n"
    named = [("weights", weights), *zip(("keep", "before"), others, strict=False), ("made", to)]
    addresses = tuple(view.buffer for view in (*values, *gates))
    source = text + head(256, named, "long long* addresses") + BANK
    return launched(source, rows * groups * tiles * stripes, 256, [view for _, view in named], addresses)
