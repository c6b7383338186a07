"""The decoder of an autoencoder of diffusers (KL, Tiny or DC) -> ONNX: latents in, pixels out, at any height and width."""

from __future__ import annotations

import contextlib
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from ...artefact.records import DecoderRecord
from ...errors import ModelError
from ...models.diffusers.model_index import autoencoder_kind
from ...support.extras import needs
from ...support.log import quiet
from ...support.words import first_line
from ...weights import finder
from ...weights.stored import LEAST
from .opset import EXPORTED, downgrade

LINEAR = "SanaMultiscaleLinearAttention"  # of an AutoencoderDC
EXAMPLE = (6, 10)  # the height and width of the latents that it is traced with


class Decoding(torch.nn.Module):
    """Latents (1, C, h, w) as the sampler makes them -> pixels (1, 3, scale h, scale w) around -1..1."""

    def __init__(self, autoencoder: Any, record: DecoderRecord) -> None:
        super().__init__()
        self.autoencoder: Any = autoencoder
        self.scaling_factor = record.scaling_factor
        self.deviation = _per_channel(record.latents_std or ())
        self.shift = _per_channel(record.latents_mean or ()) if record.latents_mean else record.shift_factor or None

    def forward(self, z: Tensor) -> Tensor:
        z = z if self.deviation is None else z * self.deviation
        z = z / self.scaling_factor
        z = z if self.shift is None else z + self.shift
        if getattr(self.autoencoder, "post_quant_conv", None) is not None:  # which a tiny one has not
            z = self.autoencoder.post_quant_conv(z)
        pixels: Tensor = self.autoencoder.decoder(z)
        return pixels


def _per_channel(values: tuple[float, ...]) -> Tensor | None:
    """(C,) -> (1, C, 1, 1)."""
    return torch.tensor(values, dtype=torch.float32).reshape(1, -1, 1, 1) if values else None


def normalise_by_hand(module: torch.nn.Module) -> None:
    """GroupNorm as means and products: its ONNX form, InstanceNormalization, is a plugin that needs cuDNN in TensorRT 8.6."""
    for name, child in module.named_children():
        if isinstance(child, torch.nn.GroupNorm):
            setattr(module, name, GroupNorm(child))
        else:
            normalise_by_hand(child)


class GroupNorm(torch.nn.Module):
    """What `torch.nn.GroupNorm` computes, for one image (1, C, h, w) or (1, C, n)."""

    def __init__(self, norm: torch.nn.GroupNorm) -> None:
        super().__init__()
        self.groups, self.eps = norm.num_groups, norm.eps
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x: Tensor) -> Tensor:
        grouped = x.reshape(1, self.groups, -1)
        centred = grouped - grouped.mean(-1, keepdim=True)
        variance = (centred * centred).mean(-1, keepdim=True)
        scaled = (centred / torch.sqrt(variance + self.eps)).reshape(x.shape)
        channels = (-1, *[1] * (x.ndim - 2))
        return scaled * self.weight.reshape(channels) + self.bias.reshape(channels)


def attend_linearly(attention: Any, x: Tensor) -> Tensor:
    """The attention of an AutoencoderDC, x (1, C, h, w): what diffusers computes, linearly in the number of places however few
    these are; there it takes the quadratic form of the same sums for small pictures, which a graph for all sizes cannot.
    """
    _, _, height, width = x.shape
    places = x.movedim(1, -1)
    qkv = torch.cat([attention.to_q(places), attention.to_k(places), attention.to_v(places)], dim=3).movedim(-1, 1)
    scales = torch.cat([qkv, *(block(qkv) for block in attention.to_qkv_multiscale)], dim=1)
    query, key, value = scales.reshape(1, -1, 3 * attention.attention_head_dim, height * width).chunk(3, dim=2)
    query, key = attention.nonlinearity(query), attention.nonlinearity(key)
    weighted = (value @ key.transpose(-1, -2)) @ query
    total = key.sum(-1, keepdim=True).transpose(-1, -2) @ query
    mean = weighted / total.clamp(min=attention.eps)  # the exporter drops + 1e-15; a total of 0 is of nothing
    output: Tensor = attention.to_out(mean.reshape(1, -1, height, width).movedim(1, -1))
    is_last = attention.norm_type == "rms_norm"  # of the channels, which are last there
    output = attention.norm_out(output).movedim(-1, 1) if is_last else attention.norm_out(output.movedim(-1, 1))
    return output + x if attention.residual_connection else output


def load(folder: Path) -> Any:
    """The autoencoder in `folder`, in float32, whichever way its weights are stored.  Raises ModelError."""
    diffusers = needs("diffusers", "diffusers")
    file, kind = finder.find(folder), autoencoder_kind(folder)
    options = {"variant": file.variant or None, "use_safetensors": file.suffix == "safetensors"}
    try:
        # it warns of what it has written into a tiny one's configuration itself
        with quiet("diffusers"), contextlib.redirect_stdout(io.StringIO()):
            known = getattr(diffusers, kind)
            autoencoder = known.from_pretrained(folder, local_files_only=True, low_cpu_mem_usage=False, **options)
    except Exception as error:  # a damaged configuration ends in errors of all kinds
        raise ModelError(f"{folder} cannot be read as an {kind}: {_reason(error)}") from None
    return autoencoder.float().eval()


def write(folder: Path, record: DecoderRecord, channels: int, target: Path) -> None:
    """Export the decoder to `target`, with its weights inside, in float32."""
    model = Decoding(load(folder), record)
    normalise_by_hand(model)
    for module in model.modules():
        if type(module).__name__ == LINEAR:
            setattr(module, "processor", attend_linearly)  # noqa: B010  (no tensor, nor a module)
    axes = {2: torch.export.Dim("H"), 3: torch.export.Dim("W")}
    try:
        # of torchvision, and renamed axes
        with quiet("torch.onnx"), contextlib.redirect_stdout(io.StringIO()):
            program = torch.onnx.export(
                model,
                (torch.zeros(1, channels, *EXAMPLE),),
                dynamo=True,
                opset_version=EXPORTED,
                dynamic_shapes=(axes,),
                input_names=["z"],
                output_names=["image"],
                verbose=False,
            )
    except Exception as error:
        raise ModelError(f"{folder}: its decoder does not run: {_reason(error)}") from None
    assert program is not None
    target.parent.mkdir(parents=True, exist_ok=True)
    proto = downgrade(program.model_proto, "decoder")
    target.write_bytes((halved(proto) if record.stored else proto).SerializeToString())


def halved(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same with float16 for the weights of its products, each widened where the graph begins.

    Raises ModelError for those that do not fit.
    """
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or len(tensor.dims) < 2 or math.prod(tensor.dims) < LEAST:
            continue
        name = tensor.name
        with np.errstate(over="ignore"):
            values = numpy_helper.to_array(tensor).astype(np.float16)
        if not np.isfinite(values).all():
            raise ModelError(f"its decoder's {name} does not fit into float16: store the decoder as it is")
        tensor.CopyFrom(numpy_helper.from_array(values, f"{name}/stored"))
        casts.append(onnx.helper.make_node("Cast", [tensor.name], [name], name=name, to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.checker.check_model(model, full_check=True)
    return model


def _reason(error: Exception) -> str:
    """An error of another library in one line, the last cause where there are several."""
    while error.__cause__ and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return first_line(error)
