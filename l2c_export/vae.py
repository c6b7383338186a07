"""The decoder of an AutoencoderKL of diffusers -> ONNX: latents in, pixels out, at any height and width."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from .backends import needs
from .diffusers_folder import config
from .errors import ModelError
from .manifest import Decoder
from .segments import EXPORTED, downgrade, quiet

KIND = "AutoencoderKL"
FILE = "vae/decoder.onnx"
EXAMPLE = (6, 10)  # the height and width of the latents that it is traced with


class Config(msgspec.Struct, frozen=True):
    """What of the autoencoder's `config.json` is needed here."""

    latent_channels: int
    out_channels: int
    block_out_channels: tuple[int, ...]
    sample_size: int
    scaling_factor: float


def describe(folder: Path, channels: int) -> Decoder:
    """What the runtime has to know of it.  Raises ModelError if it is none, or of other latents than `channels` wide."""
    found = config(folder / "config.json")
    if found.get("_class_name") != KIND:
        raise ModelError(f"{folder}: {found.get('_class_name')} is not supported: only {KIND} is")
    try:
        shape = msgspec.convert({"scaling_factor": 0.18215, **found}, Config)
    except msgspec.ValidationError as error:
        raise ModelError(f"{folder}/config.json does not describe an {KIND}: {error}") from None
    if shape.latent_channels != channels:
        raise ModelError(f"{folder}: decodes {shape.latent_channels} channels, but the model's latents have {channels}")
    scale = 2 ** (len(shape.block_out_channels) - 1)
    return Decoder(
        file=FILE, scale=scale, channels=shape.out_channels, scaling_factor=shape.scaling_factor, tile=shape.sample_size
    )


class Decoding(torch.nn.Module):
    """Latents (1, C, h, w) as the sampler makes them -> pixels (1, 3, scale h, scale w) around -1..1."""

    def __init__(self, autoencoder: Any, scaling_factor: float) -> None:
        super().__init__()
        self.autoencoder: Any = autoencoder
        self.scaling_factor = scaling_factor

    def forward(self, z: Tensor) -> Tensor:
        z = z / self.scaling_factor
        if self.autoencoder.post_quant_conv is not None:
            z = self.autoencoder.post_quant_conv(z)
        pixels: Tensor = self.autoencoder.decoder(z)
        return pixels


def write(folder: Path, described: Decoder, channels: int, target: Path) -> None:
    """Export the decoder to `target`, with its weights inside, in float32."""
    diffusers = needs("diffusers", "diffusers")
    try:
        autoencoder = diffusers.AutoencoderKL.from_pretrained(folder, local_files_only=True, low_cpu_mem_usage=False)
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"{folder} cannot be read as an {KIND}: {str(error).splitlines()[0]}") from None
    model = Decoding(autoencoder.float().eval(), described.scaling_factor)
    axes = {2: torch.export.Dim("H"), 3: torch.export.Dim("W")}
    with quiet():
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
    assert program is not None
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(downgrade(program.model_proto, "decoder").SerializeToString())
