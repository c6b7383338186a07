"""The weights of diffusers' DiTTransformer2DModel under the names of the DiT family.

Every tensor of ours has a recipe: query, key and value are separate there, every block has embedders of its own (the released
checkpoints hold the same ones in each), and the position embedding is not stored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np

from ...errors import ModelError, WeightsError
from ...support.words import counted
from ...weights.checkpoint import Checkpoint
from ...weights.recipe import Recipe
from .model_index import PIPELINE, TRANSFORMER, config

TABLE = "y_embedder.embedding_table"  # the only layer without a bias
# our layers -> those of theirs whose tensors they are made of: of every block, of its embedders, and outside
LAYERS: dict[str, tuple[str, ...]] = {
    "attn.qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "attn.proj": ("attn1.to_out.0",),
    "mlp.fc1": ("ff.net.0.proj",),
    "mlp.fc2": ("ff.net.2",),
    "adaLN_modulation.1": ("norm1.linear",),
}
EMBEDDERS: dict[str, tuple[str, ...]] = {
    "t_embedder.mlp.0": ("norm1.emb.timestep_embedder.linear_1",),
    "t_embedder.mlp.2": ("norm1.emb.timestep_embedder.linear_2",),
    TABLE: ("norm1.emb.class_embedder.embedding_table",),
}
OUTSIDE: dict[str, tuple[str, ...]] = {
    "x_embedder.proj": ("pos_embed.proj",),
    "final_layer.adaLN_modulation.1": ("proj_out_1",),
    "final_layer.linear": ("proj_out_2",),
}
EMBEDDED = re.compile(r"transformer_blocks\.\d+\.norm1\.emb\.")
POSITIONS = "pos_embed.pos_embed"  # a buffer of theirs that they compute, whether a file has it or not
# What must be so for it to be a DiT; diffusers ignores options of other models, which older configurations have.
NEEDED: dict[str, Any] = {
    "norm_type": "ada_norm_zero",
    "activation_fn": "gelu-approximate",
    "norm_elementwise_affine": False,
    "attention_bias": True,
}


Size = Annotated[int, msgspec.Meta(ge=1, le=2**20)]  # more than any model has


class TransformerConfig(msgspec.Struct, frozen=True):
    """What of the transformer's `config.json` shapes a DiT."""

    num_attention_heads: Size = 16
    attention_head_dim: Size = 72
    in_channels: Size = 4
    out_channels: Size | None = None
    num_layers: Size = 28
    sample_size: Size = 32
    patch_size: Size = 2
    num_embeds_ada_norm: Size = 1000
    norm_eps: float = 1e-5

    @property
    def width(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    def arch(self, block_embeddings: bool) -> dict[str, Any]:
        """The same as an architecture of the DiT family."""
        return {
            "input_size": self.sample_size,
            "patch_size": self.patch_size,
            "in_channels": self.in_channels,
            "hidden_size": self.width,
            "depth": self.num_layers,
            "num_heads": self.num_attention_heads,
            "num_classes": self.num_embeds_ada_norm,
            "learn_sigma": self.out_channels == 2 * self.in_channels,
            "mlp_eps": self.norm_eps,
            "frequency_shift": 1,
            "block_embeddings": block_embeddings,
        }

    @staticmethod
    def of(arch: Mapping[str, Any]) -> TransformerConfig:
        """The configuration that has this architecture.  Raises ModelError if there is none."""
        try:
            options = {
                "num_attention_heads": arch["num_heads"],
                "attention_head_dim": arch["hidden_size"] // arch["num_heads"],
                "in_channels": arch["in_channels"],
                "out_channels": arch["in_channels"] * (2 if arch["learn_sigma"] else 1),
                "num_layers": arch["depth"],
                "sample_size": arch["input_size"],
                "patch_size": arch["patch_size"],
                "num_embeds_ada_norm": arch["num_classes"],
                "norm_eps": arch["mlp_eps"],
            }
            return msgspec.convert(options, TransformerConfig)
        except (KeyError, TypeError, ZeroDivisionError, msgspec.ValidationError) as error:
            raise ModelError(f"no transformer of diffusers has this architecture ({error}): compile the model again") from None


def read_config(path: Path, kind: str = TRANSFORMER, pipeline: str | None = None) -> TransformerConfig:
    """A transformer's configuration, read as diffusers reads it for the class `kind`.  Raises ModelError if it is no DiT."""
    options = config(path)
    if (
        kind != TRANSFORMER and options.get("norm_type") != NEEDED["norm_type"]
    ):  # diffusers tells by it what the older class means
        options = {"norm_type": "layer_norm", **options}
    pipeline_words = f" (of a {pipeline})" if pipeline not in (None, PIPELINE) else ""
    return shape_of(options, f"{path}{pipeline_words}")


def shape_of(options: Mapping[str, Any], where: str) -> TransformerConfig:
    """What a transformer's options say.  Raises ModelError if it is no DiT."""
    for option, value in NEEDED.items():
        if options.get(option, value) != value:
            raise ModelError(f"{where}: {option} = {options[option]!r} is not supported: a DiT has {value!r}")
    try:
        shape = msgspec.convert(
            {k: v for k, v in options.items() if k in TransformerConfig.__struct_fields__}, TransformerConfig
        )
    except msgspec.ValidationError as error:
        raise ModelError(f"{where} does not describe a DiT: {error}") from None
    if shape.out_channels not in (None, shape.in_channels, 2 * shape.in_channels):
        raise ModelError(f"{where}: out_channels = {shape.out_channels}: must be once or twice the {shape.in_channels} inputs")
    return shape


def for_model(stored: Checkpoint, family: str, arch: Mapping[str, Any]) -> Checkpoint:
    """The same under the names of a model that was read from a folder, if it has those of diffusers: a fine-tuned transformer.

    Raises WeightsError where it is of another model.
    """
    of_diffusers = any(name.startswith("transformer_blocks.") for name in stored.shapes)
    if family != "dit" or not of_diffusers or not arch.get("frequency_shift"):
        return stored
    shape = TransformerConfig.of(arch)
    check_blocks(stored, shape)
    if not arch["block_embeddings"] and not same_embedders(stored, shape):
        raise WeightsError(
            f"{stored.path}: its blocks differ in how they embed the timestep: compile it from its pipeline folder"
        )
    return renamed(stored, shape, bool(arch["block_embeddings"]))


def check_blocks(stored: Checkpoint, shape: TransformerConfig) -> None:
    """Refuse a depth that the weights do not have, before anything of that length is made."""
    blocks = {name.split(".")[1] for name in stored.shapes if name.startswith("transformer_blocks.")}
    if len(blocks) != shape.num_layers:
        raise WeightsError(
            f"{stored.path} does not fit its model: it has {counted(len(blocks), 'block')}, not {shape.num_layers} (num_layers)"
        )


def same_embedders(stored: Checkpoint, shape: TransformerConfig) -> bool:
    """Whether all blocks embed timestep and label with the same weights."""
    names = [n for n in stored.shapes if n.startswith("transformer_blocks.0.norm1.emb.")]
    for name in names:
        first = stored.read(name)
        for i in range(1, shape.num_layers):
            other = name.replace(".0.", f".{i}.", 1)
            if stored.shapes.get(other) != first.shape or not np.array_equal(stored.read(other), first):
                return False
    return True


def recipes(depth: int, block_embeddings: bool) -> dict[str, Recipe]:
    """What every tensor of the DiT family is made of.  Embedders that all blocks share are those of the first."""
    blocks = [(f"blocks.{i}.", f"transformer_blocks.{i}.", LAYERS) for i in range(depth)]
    embedded = range(depth) if block_embeddings else range(1)
    embedders = [(f"blocks.{i}." if block_embeddings else "", f"transformer_blocks.{i}.", EMBEDDERS) for i in embedded]
    recipe_of = {"pos_embed": Recipe.of(POSITIONS)}
    for ours, theirs, layers in [("", "", OUTSIDE), *blocks, *embedders]:
        for layer, sources in layers.items():
            for part in ("weight",) if layer == TABLE else ("weight", "bias"):
                recipe_of[f"{ours}{layer}.{part}"] = Recipe.of(*(f"{theirs}{source}.{part}" for source in sources))
    return recipe_of


def renamed(stored: Checkpoint, shape: TransformerConfig, block_embeddings: bool) -> Checkpoint:
    """The weights under the DiT family's names.  Raises WeightsError for tensors that no DiT has."""
    recipe_of = recipes(shape.num_layers, block_embeddings)
    checkpoint = with_positions(stored, shape).by_recipe(recipe_of)
    used = {source.tensor for recipe in recipe_of.values() for source in recipe.sources}
    for name in sorted(stored.shapes):
        if name not in used and (block_embeddings or not EMBEDDED.match(name)):
            raise WeightsError(f"{stored.path} does not fit its model: {name} is not part of a DiT")
    return checkpoint


def with_positions(stored: Checkpoint, shape: TransformerConfig) -> Checkpoint:
    """The same with the position embedding, which is computed."""
    embedding = position_embedding(shape)
    return stored._replace(
        shapes={**stored.shapes, POSITIONS: embedding.shape},
        read=lambda name: embedding if name == POSITIONS else stored.read(name),
    )


def position_embedding(shape: TransformerConfig) -> np.ndarray:
    """Sines and cosines of the column, then of the row, of every patch: (1, T, D) float32, from float64."""
    side, quarter = shape.sample_size // shape.patch_size, shape.width // 4
    frequencies = 1 / 10000 ** (np.arange(quarter) / quarter)
    angles = np.arange(side)[:, None] * frequencies
    axis = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    rows, columns = np.repeat(np.arange(side), side), np.tile(np.arange(side), side)
    return np.concatenate([axis[columns], axis[rows]], axis=1)[None].astype(np.float32)
