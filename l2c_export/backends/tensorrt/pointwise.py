"""Sums and products of TensorRT 8.6: which of its two compilers makes them.

A chain of pointwise layers by itself goes to one that compiles a kernel for each of several layouts, 0.2 to 0.6 s each: 1.4 to
2.2 s for the gated sum of DiT-XL/2 on an H200.  Myelin, which compiles whole networks, needs 0.5 s for it, and what it makes
takes 2.5 us instead of 3.1 (scripts/results/tensorrt_h200.json).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .types import kinds

POINTWISE = ("ELEMENTWISE", "UNARY", "ACTIVATION")
BESIDE = ("CAST", "CONSTANT", "SHUFFLE")  # what may stand beside them and leaves them to the first compiler


def give_to_myelin(trt: Any, network: Any) -> None:
    """Put a gather that changes nothing before a chain of pointwise layers: Myelin takes whatever has one."""
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    chain = [layer for layer in layers if layer.type in kinds(trt, POINTWISE)]
    if len(chain) < 2 or any(layer.type not in kinds(trt, POINTWISE + BESIDE) for layer in layers):
        return
    constants = {layer.get_output(0).name for layer in layers if layer.type == trt.LayerType.CONSTANT}
    for layer in chain:
        for i in range(layer.num_inputs):
            tensor = layer.get_input(i)
            if tensor.name not in constants and 1 in tuple(tensor.shape):
                first = network.add_constant((1,), trt.Weights(np.zeros(1, np.int32))).get_output(0)
                layer.set_input(i, network.add_gather(tensor, first, tuple(tensor.shape).index(1)).get_output(0))
                return
