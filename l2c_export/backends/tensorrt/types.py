"""Types for TensorRT 8.6, which has no strongly typed networks: what the ONNX graph says is told to it layer by layer.

Left to itself, 8.6 takes the graph's types as hints.  Where half precision is allowed it would run float32 layers in it, and
it would compile every kernel of half precision in float32 as well, to see which is faster.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

MOVES = ("CAST", "CONSTANT", "SHAPE", "SHUFFLE", "SLICE", "GATHER", "CONCATENATION")  # layers that compute nothing
SUMS = ("NORMALIZATION", "SOFTMAX")  # layers that divide by a sum over many values


def state_types(trt: Any, network: Any) -> None:
    """Tell every layer the type that the graph has it in."""
    for layer, kind in stated(trt, network):
        layer.precision = kind
        for i in range(layer.num_outputs):
            if layer.get_output(i).dtype in (trt.float32, trt.float16):
                layer.set_output_type(i, kind)


def stated(trt: Any, network: Any) -> Iterator[tuple[Any, Any]]:
    """Every layer whose type is stated, and the type: all that compute, but for some normalisations and softmaxes.

    Layers that only move values take the type of what they are given; told it, 8.6 finds no implementation of a whole step in
    half precision ("Mismatched type").  Among products in half precision, a normalisation or softmax of such values is left
    alone; all recorded runs stay within 1.3e-2 of the largest latent so.  Told float32, it takes kernels that are six times
    slower for normalisations (DiT-XL/2 on an H100), and does not fuse attention: 49 us instead of 42 for DiT-XL/2, 79 instead
    of 54 for U-ViT-H/2 (H200).
    """
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    types, origins = computed_in(trt, network, layers)
    mixed = any(kind == trt.float16 and is_product(trt, layer) for layer, kind in zip(layers, types, strict=True))
    moves, sums = kinds(trt, MOVES), kinds(trt, SUMS)
    for layer, kind in zip(layers, types, strict=True):
        if kind not in (trt.float32, trt.float16) or layer.type in moves:
            continue
        if mixed and layer.type in sums and origins[layer.get_input(0).name] == trt.float16:
            continue
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


def computed_in(trt: Any, network: Any, layers: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
    """The type that the graph has every layer in, of what it reads, as far as casts and inputs tell; and by name, the type
    that every value was in before it was cast or moved.
    """
    floats, moves = (trt.float32, trt.float16), kinds(trt, MOVES)
    types = {network.get_input(i).name: network.get_input(i).dtype for i in range(network.num_inputs)}
    origins = dict(types)
    layer_types = []
    for layer in layers:
        inputs = [tensor for j in range(layer.num_inputs) if (tensor := layer.get_input(j)) is not None]
        if layer.type == trt.LayerType.CAST:
            layer.__class__ = trt.ICastLayer
            kind = layer.to_type
        else:
            dtypes = [types[tensor.name] for tensor in inputs if tensor.name in types]
            kind = next((t for t in dtypes if t in floats), layer.get_output(0).dtype)
        origin = inputs[0].name if inputs and layer.type in moves else ""
        for j in range(layer.num_outputs):
            output = layer.get_output(j)
            types[output.name] = kind if output.dtype in floats else output.dtype
            origins[output.name] = origins.get(origin, types[output.name])
        layer_types.append(kind)
    return layer_types, origins


def kinds(trt: Any, names: Sequence[str]) -> set[Any]:
    """The library's own constants for kinds of layers."""
    return {getattr(trt.LayerType, name) for name in names}
