"""Kernels that are written by hand, for primitives that are sums over something else than a row."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ...ir.graph import Primitive
from .kernels import Kernel
from .prelude import C
from .views import ArrayView

SHARED = 48 * 2**10  # bytes of a block


def define(**constants: int | float) -> str:
    return "".join(f"#define {name} {value!r}{'f' if isinstance(value, float) else ''}\n" for name, value in constants.items())


def head(threads: int, parameters: Sequence[tuple[str, ArrayView]], first: str = "") -> str:
    signature = ", ".join([*([first] if first else []), *(f"{C[view.dtype]}* {name}" for name, view in parameters)])
    return f'extern "C" __global__ void __launch_bounds__({threads}) kernel({signature}) {{\n'


def launched(source: str, blocks: int, threads: int, views: Sequence[ArrayView], addresses: tuple[str, ...] = ()) -> Kernel:
    """The last view is what is written."""
    buffers = tuple(view.buffer for view in views)
    return Kernel(source, blocks, threads, buffers, frozenset(buffers[-1:]), {}, addresses)


CONVOLUTION = """
  const int item = blockIdx.x * 128 + threadIdx.x;
  if (item >= COUNT) return;
  const int x = item % OW, y = item / OW % OH, o = item / (OW * OH) % OC, n = item / (OW * OH * OC);
  float sum = START;
  for (int i = 0; i < IC; i++)
    for (int a = 0; a < KH; a++)
      for (int b = 0; b < KW; b++) {
        const int v = y + a - PADDING, u = x + b - PADDING;
        if (v >= 0 && v < IH && u >= 0 && u < IW)
          sum += number(picture[((n * CHANNELS + (DEPTH ? o : i)) * IH + v) * IW + u]) *
                 number(weight[((o * IC + i) * KH + a) * KW + b]);
      }
  put(out[item], sum);
}
"""


def convolution(primitive: Primitive, inputs: Sequence[ArrayView], to: ArrayView) -> Kernel:
    """conv2d and depthwise: a thread an entry."""
    picture, weight, *bias = inputs
    padding = dict(primitive.attributes)["padding"]
    assert isinstance(padding, int)
    (_, channels, ih, iw), (_, oc, oh, ow), (_, ic, kh, kw) = picture.shape, to.shape, weight.shape
    count = math.prod(to.shape)
    text = define(COUNT=count, OC=oc, OH=oh, OW=ow, IC=ic, IH=ih, IW=iw, KH=kh, KW=kw, PADDING=padding, CHANNELS=channels,
                  DEPTH=int(primitive.op == "depthwise"))  # fmt: skip
    text += f"#define START {'number(bias[o])' if bias else '0.0f'}\n"
    named = [("picture", picture), ("weight", weight), *(("bias", b) for b in bias), ("out", to)]
    return launched(text + head(128, named) + CONVOLUTION, -(-count // 128), 128, [view for _, view in named])


ATTENTION = """
  __shared__ float queries[QUERIES][SIZE + 1], keys[32][SIZE + 1];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int t0 = blockIdx.x % TILES * QUERIES, h = blockIdx.x / TILES % HEADS, r = blockIdx.x / (TILES * HEADS);
  for (int i = threadIdx.x; i < QUERIES * SIZE; i += 256) {
    const int t = t0 + i / SIZE, d = i % SIZE;
    queries[i / SIZE][d] = t < T ? number(q[Q0 + r * QR + t * QT + h * SIZE + d]) * SCALE : 0.0f;
  }
  const float least = __int_as_float(0xff800000);
  float sums[EACH][WIDE] = {}, top[EACH], total[EACH], p[EACH];
  for (int m = 0; m < EACH; m++) top[m] = least, total[m] = 0.0f;
  for (int s0 = 0; s0 < S; s0 += 32) {
    __syncthreads();
    for (int i = threadIdx.x; i < 32 * SIZE; i += 256) {
      const int s = s0 + i / SIZE, d = i % SIZE;
      keys[i / SIZE][d] = s < S ? number(k[K0 + r * KR + s * KT + h * SIZE + d]) : 0.0f;
    }
    __syncthreads();
#pragma unroll
    for (int m = 0; m < EACH; m++) {
      const int n = warp * EACH + m, t = t0 + n, s = s0 + lane;
      float score = 0.0f;
      for (int d = 0; d < SIZE; d++) score += queries[n][d] * keys[lane][d];
      score = s < S && t < T ? score + MASK : least;
      float best = score;
      for (int o = 16; o; o >>= 1) best = fmaxf(best, __shfl_xor_sync(~0u, best, o));
      best = fmaxf(best, top[m]);
      const float before = best == least ? 1.0f : expf(top[m] - best);
      p[m] = score == least ? 0.0f : expf(score - best);
      float sum = p[m];
      for (int o = 16; o; o >>= 1) sum += __shfl_xor_sync(~0u, sum, o);
      total[m] = total[m] * before + sum, top[m] = best;
      for (int w = 0; w < WIDE; w++) sums[m][w] *= before;
    }
    __syncthreads();
    for (int i = threadIdx.x; i < 32 * SIZE; i += 256) {
      const int s = s0 + i / SIZE, d = i % SIZE;
      keys[i / SIZE][d] = s < S ? number(v[V0 + r * VR + s * VT + h * SIZE + d]) : 0.0f;
    }
    __syncthreads();
#pragma unroll
    for (int m = 0; m < EACH; m++)
      for (int s = 0; s < 32; s++) {
        const float weight = __shfl_sync(~0u, p[m], s);
#pragma unroll
        for (int w = 0; w < WIDE; w++) sums[m][w] += lane + 32 * w < SIZE ? weight * keys[s][lane + 32 * w] : 0.0f;
      }
  }
#pragma unroll
  for (int m = 0; m < EACH; m++) {
    const int t = t0 + warp * EACH + m;
#pragma unroll
    for (int w = 0; w < WIDE; w++) {
      const int d = lane + 32 * w;
      if (t < T && d < SIZE) put(out[((r * T + t) * HEADS + h) * SIZE + d], sums[m][w] / total[m]);
    }
  }
}
"""


def head_size(primitive: Primitive, q: ArrayView) -> int:
    heads = dict(primitive.attributes)["heads"]
    assert isinstance(heads, int)
    return q.shape[2] // heads


def attention(primitive: Primitive, inputs: Sequence[ArrayView], to: ArrayView) -> Kernel | None:
    """sdpa with numbers of float32 inside: eight warps a block, of one head, with the softmax of what was seen so far.

    None for heads that are too large for it.
    """
    q, k, v, *mask = inputs
    size = head_size(primitive, q)
    heads, (rows, tokens, _), others = q.shape[2] // size, q.shape, k.shape[1]
    per_warp = next((n for n in (2, 1) if (8 * n + 32) * (size + 1) * 4 <= SHARED), 0)
    if not per_warp:
        return None
    tiles = -(-tokens // (8 * per_warp))
    text = define(QUERIES=8 * per_warp, EACH=per_warp, SIZE=size, WIDE=-(-size // 32), HEADS=heads, T=tokens, S=others,
                  TILES=tiles, SCALE=size**-0.5, Q0=q.offset, QR=q.strides[0], QT=q.strides[1], K0=k.offset, KR=k.strides[0],
                  KT=k.strides[1], V0=v.offset, VR=v.strides[0], VT=v.strides[1])  # fmt: skip
    added = "0.0f"
    if mask:
        index = (
            "r" if mask[0].shape[0] > 1 else "0",
            "h" if mask[0].shape[1] > 1 else "0",
            "t" if mask[0].shape[2] > 1 else "0",
        )
        added = f"number(mask[{mask[0].place((*index, 's'))}])"
    text += f"#define MASK {added}\n"
    named = [("q", q), ("k", k), ("v", v), *(("mask", m) for m in mask), ("out", to)]
    return launched(text + head(256, named) + ATTENTION, rows * heads * tiles, 256, [view for _, view in named])


LINEAR = """
  __shared__ float products[SIZE + 1][SIZE];
  const int h = blockIdx.x % HEADS, r = blockIdx.x / HEADS;
  const int at = r * T * HEADS * SIZE + h * SIZE;
  for (int i = threadIdx.x; i < (SIZE + 1) * SIZE; i += 256) {
    const int a = i / SIZE, b = i % SIZE;
    float sum = 0.0f;
    for (int t = 0; t < T; t++) {
      const float key = fmaxf(number(k[at + t * HEADS * SIZE + b]), 0.0f);
      sum += a < SIZE ? number(v[at + t * HEADS * SIZE + a]) * key : key;
    }
    products[a][b] = sum;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < T * SIZE; i += 256) {
    const int t = i / SIZE, a = i % SIZE;
    float sum = 0.0f, total = 0.0f;
    for (int b = 0; b < SIZE; b++) {
      const float query = fmaxf(number(q[at + t * HEADS * SIZE + b]), 0.0f);
      sum += products[a][b] * query, total += products[SIZE][b] * query;
    }
    put(out[at + t * HEADS * SIZE + a], sum / (total + 1e-15f));
  }
}
"""


def linear_attention(primitive: Primitive, inputs: Sequence[ArrayView], to: ArrayView) -> Kernel | None:
    """A block a head.  None for heads that are too large for it."""
    size = head_size(primitive, inputs[0])
    heads, (rows, tokens, _) = to.shape[2] // size, to.shape
    if (size + 1) * size * 4 > SHARED:
        return None
    named = list(zip(("q", "k", "v", "out"), (*inputs, to), strict=True))
    text = define(SIZE=size, HEADS=heads, T=tokens) + head(256, named) + LINEAR
    return launched(text, rows * heads, 256, [view for _, view in named])
