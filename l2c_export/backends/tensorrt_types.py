"""Types for TensorRT 8.6, which has no strongly typed networks: what the ONNX graph says is told to it layer by layer.

Left to itself, 8.6 takes the graph's types as hints.  Where half precision is allowed it would run float32 layers in it, and
it would compile every kernel of half precision in float32 as well, to see which is faster.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

MOVES = ("CAST", "CONSTANT", "SHAPE", "SHUFFLE", "SLICE", "GATHER", "CONCATENATION")  # layers that compute nothing


def state_types(trt: Any, network: Any) -> None:
    """Tell every layer the type that the graph has it in."""
    for layer, kind in stated(trt, network):
        layer.precision = kind
        for i in range(layer.num_outputs):
            if layer.get_output(i).dtype in (trt.float32, trt.float16):
                layer.set_output_type(i, kind)


def stated(trt: Any, network: Any) -> Iterator[tuple[Any, Any]]:
    """Every layer whose type is stated, and the type: all that compute, but for some normalisations.

    Layers that only move values take the type of what they are given; told it, 8.6 finds no implementation of a whole step in
    half precision ("Mismatched type").  Among products in half precision a normalisation is left alone: it computes its
    statistics in float32 by itself, and told to, 8.6 falls back to kernels that are six times slower (DiT-XL/2 on an H100).
    """
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    types = computed_in(trt, network, layers)
    out = kinds(trt, MOVES)
    if any(kind == trt.float16 and is_product(trt, layer) for layer, kind in zip(layers, types, strict=True)):
        out.add(trt.LayerType.NORMALIZATION)
    for layer, kind in zip(layers, types, strict=True):
        if kind in (trt.float32, trt.float16) and layer.type not in out:
            yield layer, kind


def fix_interface(trt: Any, network: Any) -> bool:
    """Have the network read and write its tensors as they are, if they are of one type; whether they are.

    Left free, 8.6 may copy them to another type or layout first.  At level 0, where it measures nothing, `gate * x` of DiT-XL/2
    took 25 us on an H100 so, and takes 2.4 with types and interface stated.
    """
    tensors = [network.get_input(i) for i in range(network.num_inputs)]
    tensors += [network.get_output(i) for i in range(network.num_outputs)]
    if len({tensor.dtype for tensor in tensors} & {trt.float32, trt.float16}) != 1:
        return False
    for tensor in tensors:
        tensor.allowed_formats = 1 << int(trt.TensorFormat.LINEAR)
    return True


def multiplies(trt: Any, network: Any) -> bool:
    """Whether a network has products of matrices."""
    return any(is_product(trt, network.get_layer(i)) for i in range(network.num_layers))


def is_product(trt: Any, layer: Any) -> bool:
    return layer.type in (trt.LayerType.MATRIX_MULTIPLY, trt.LayerType.CONVOLUTION)


def computed_in(trt: Any, network: Any, layers: Sequence[Any]) -> list[Any]:
    """The type that the graph has every layer in: of what it reads, as far as casts and inputs tell."""
    floats = (trt.float32, trt.float16)
    types = {network.get_input(i).name: network.get_input(i).dtype for i in range(network.num_inputs)}
    kinds = []
    for layer in layers:
        if layer.type == trt.LayerType.CAST:
            layer.__class__ = trt.ICastLayer
            kind = layer.to_type
        else:
            given = [layer.get_input(j) for j in range(layer.num_inputs)]
            read = [types[tensor.name] for tensor in given if tensor is not None and tensor.name in types]
            kind = next((t for t in read if t in floats), layer.get_output(0).dtype)
        for j in range(layer.num_outputs):
            output = layer.get_output(j)
            types[output.name] = kind if output.dtype in floats else output.dtype
        kinds.append(kind)
    return kinds


def kinds(trt: Any, names: Sequence[str]) -> set[Any]:
    """The library's own constants for kinds of layers."""
    return {getattr(trt.LayerType, name) for name in names}
