"""An autoencoder of diffusers, as far as its configuration says: what its decoder takes and makes; without torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from ..errors import ModelError
from ..models.diffusers.model_index import AUTOENCODER, PIPELINE, TINY_AUTOENCODER, autoencoder_kind, config
from ..weights import finder
from .integrity import sha256
from .records import DecoderRecord

FILE = "vae/decoder.onnx"

SIDE = 512  # of the tiles of an AutoencoderTiny or AutoencoderDC, in pixels, which have no size of their own

Size = Annotated[int, msgspec.Meta(ge=1, le=2**20)]


class Config(msgspec.Struct, frozen=True):
    """What of an AutoencoderKL's `config.json` is needed here, with the defaults of diffusers."""

    latent_channels: Size = 4
    out_channels: Size = 3
    block_out_channels: Annotated[tuple[int, ...], msgspec.Meta(min_length=1)] = (64,)
    sample_size: Size | Annotated[tuple[Size, ...], msgspec.Meta(min_length=1)] = 32
    scaling_factor: float = 0.18215
    shift_factor: float | None = None
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None

    @property
    def side(self) -> int:
        """Of the pictures that it was trained for, in pixels."""
        return self.sample_size if isinstance(self.sample_size, int) else self.sample_size[0]

    @property
    def moments(self) -> dict[str, Any]:
        """What moves its latents, beside the factor: the options that are set."""
        options = {
            "shift_factor": self.shift_factor or None,
            "latents_mean": self.latents_mean,
            "latents_std": self.latents_std,
        }
        return {name: value for name, value in options.items() if value is not None}


class TinyConfig(msgspec.Struct, frozen=True):
    """The same of an AutoencoderTiny's."""

    latent_channels: Size = 4
    out_channels: Size = 3
    decoder_block_out_channels: Annotated[tuple[int, ...], msgspec.Meta(min_length=1)] = (64, 64, 64, 64)
    upsampling_scaling_factor: Literal[2] = 2
    scaling_factor: float = 1.0
    shift_factor: float | None = 0.0

    @property
    def alike(self) -> Config:
        """What an AutoencoderKL with such latents says."""
        return Config(
            latent_channels=self.latent_channels,
            out_channels=self.out_channels,
            block_out_channels=self.decoder_block_out_channels,
            sample_size=SIDE,
            scaling_factor=self.scaling_factor,
            shift_factor=self.shift_factor,
        )


class DeepConfig(msgspec.Struct, frozen=True):
    """The same of an AutoencoderDC's (arXiv 2410.10733)."""

    latent_channels: Size = 32
    in_channels: Size = 3
    decoder_block_out_channels: Annotated[tuple[int, ...], msgspec.Meta(min_length=1)] = (128, 256, 512, 512, 1024, 1024)
    scaling_factor: float = 1.0

    @property
    def alike(self) -> Config:
        """What an AutoencoderKL with such latents says."""
        return Config(
            latent_channels=self.latent_channels,
            out_channels=self.in_channels,
            block_out_channels=self.decoder_block_out_channels,
            sample_size=SIDE,
            scaling_factor=self.scaling_factor,
        )


def read(folder: Path) -> Config:
    """Raises ModelError for a folder that describes none."""
    path, kind = folder / "config.json", autoencoder_kind(folder)
    try:
        options = config(path)
        if kind == AUTOENCODER:
            return msgspec.convert(options, Config)
        if kind == TINY_AUTOENCODER:
            return msgspec.convert(options, TinyConfig).alike
        return msgspec.convert(options, DeepConfig).alike
    except msgspec.ValidationError as error:
        raise ModelError(f"{path} does not describe an {kind}: {error}") from None


def describe(folder: Path, channels: int, of_pipeline: bool) -> DecoderRecord:
    """What the runtime has to know of a decoder.

    A DiTPipeline divides its latents by the factor and does no more (`of_pipeline`); to the latents of another model the
    shift, or the mean and deviation, are applied, too.  Raises ModelError if it is of other latents than `channels` wide.
    """
    shape = read(folder)
    if shape.latent_channels != channels:
        raise ModelError(f"{folder}: decodes {shape.latent_channels} channels, but the model's latents have {channels}")
    if not shape.scaling_factor:
        raise ModelError(f"{folder}: scaling_factor is 0: latents are divided by it")
    moments = {} if of_pipeline else shape.moments
    _check_moments(folder, moments, channels)
    return DecoderRecord(
        file=FILE,
        scale=2 ** (len(shape.block_out_channels) - 1),
        channels=shape.out_channels,
        scaling_factor=shape.scaling_factor,
        tile=shape.side,
        made_from=digest(folder, moments),
        **moments,
    )


def _check_moments(folder: Path, moments: Mapping[str, Any], channels: int) -> None:
    both = {"latents_mean", "latents_std"}
    if not moments or moments.keys() == {"shift_factor"}:
        return
    if moments.keys() != both:
        raise ModelError(
            f"{folder}: {' and '.join(moments)} alone do not say how its latents are meant: shift_factor, or latents_mean with "
            "latents_std do; set the others to null in its config.json"
        )
    if wrong := next((name for name in both if len(moments[name]) != channels), None):
        raise ModelError(f"{folder}: {wrong} has {len(moments[wrong])} numbers for {channels} channels: save it again")


def digest(folder: Path, moments: Mapping[str, Any]) -> str:
    """A sha256 of all that a decoder is made from: equal ones are the same decoder."""
    options = {name: value for name, value in config(folder / "config.json").items() if not name.startswith("_")}
    files = finder.files(folder, finder.find(folder))
    content = [options, dict(moments), [sha256(file) for file in files]]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def said(folder: Path, described: DecoderRecord) -> str:
    """One line for the user: which decoder, and what is done to its latents."""
    line = f"decoder from {folder}: latents / {described.scaling_factor:g}"
    if described.latents_mean:
        line += " x latents_std + latents_mean"
    if described.shift_factor:
        line += f" + {described.shift_factor:g} (shift_factor)"
    ignored = [name for name in read(folder).moments if not getattr(described, name)]
    return line + (f"; {' and '.join(ignored)} ignored as a {PIPELINE} does (vae=.. applies it)" if ignored else "")
