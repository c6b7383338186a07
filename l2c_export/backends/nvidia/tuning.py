"""How long the candidates of a product take, with weights that come from memory, as in a loop over many layers."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING

from ...ir.dtypes import BYTES
from ..contract import ALIGNED, Run
from ..cuda.device import Cuda

if TYPE_CHECKING:
    from .products import Prepared, Products, ProductShape

PAST_CACHES = 2**27  # bytes of weights, one after the other
MOST, ROUNDS = 16, 5  # weights; and how often they are gone through


def seconds(products: Products, memory: Cuda, shape: ProductShape, prepared: Prepared) -> list[float]:
    """Of each candidate: the median of some rounds through several weights."""
    size, factor = BYTES[shape.dtype], BYTES[shape.factor]
    numbers = ((shape.columns, shape.inner, factor), (shape.rows, shape.inner, factor), (shape.rows, shape.columns, size))
    bytes_of = [_aligned(math.prod(sizes)) for sizes in numbers]
    copies = max(1, min(MOST, PAST_CACHES // bytes_of[0]))
    block = memory.allocate(copies * bytes_of[0] + bytes_of[1] + 2 * bytes_of[2] + _aligned(4 * shape.columns))
    x = block.pointer + copies * bytes_of[0]
    out = x + bytes_of[1]
    residual, bias = out + bytes_of[2], out + 2 * bytes_of[2]
    medians = []
    for n in range(len(prepared.candidates)):
        prepared.algorithm = prepared.candidates[n : n + 1]
        arguments = bias if shape.bias else 0, residual if shape.residual else 0, out
        runs = [products.run(prepared, x, block.pointer + copy * bytes_of[0], *arguments) for copy in range(copies)]

        def work(runs: list[Run] = runs) -> None:
            for run in runs:
                run()

        work()
        memory.finish()
        replay = memory.capture(work)
        times = []
        for _ in range(ROUNDS):
            clock = memory.clock()
            clock.mark()
            replay()
            clock.mark()
            times.append(clock.seconds()[0])
        medians.append(statistics.median(times))
    return medians


def _aligned(size: int) -> int:
    return -(-size // ALIGNED) * ALIGNED
