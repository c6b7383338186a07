"""The DiT family's tensors out of diffusers': by the recipes, and by code that concatenates."""

from __future__ import annotations

import re
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from l2c_export.errors import ModelError, WeightsError
from l2c_export.ir.dtypes import Types
from l2c_export.models import families
from l2c_export.models.diffusers import pipeline_folder
from l2c_export.models.diffusers.tensor_names import TransformerConfig, position_embedding, recipes, renamed
from l2c_export.weights import layout
from l2c_export.weights.checkpoint import Checkpoint, open_checkpoint
from l2c_export.weights.recipe import records

LINEAR = {
    "attn.proj": "attn1.to_out.0", "mlp.fc1": "ff.net.0.proj", "mlp.fc2": "ff.net.2", "adaLN_modulation.1": "norm1.linear",
}  # fmt: skip
EMBEDDER = "norm1.emb.timestep_embedder.linear"
OUTSIDE = {
    "x_embedder.proj": "pos_embed.proj",
    "final_layer.adaLN_modulation.1": "proj_out_1",
    "final_layer.linear": "proj_out_2",
}


def converted(state: dict[str, np.ndarray], shape: TransformerConfig, block_embeddings: bool) -> dict[str, np.ndarray]:
    """The weights of the DiT family, line by line."""
    tensors = {"pos_embed": position_embedding(shape)}
    for part in ("weight", "bias"):
        for ours, theirs in OUTSIDE.items():
            tensors[f"{ours}.{part}"] = state[f"{theirs}.{part}"]
        for i in range(shape.num_layers):
            block = f"transformer_blocks.{i}."
            heads = [state[f"{block}attn1.to_{head}.{part}"] for head in "qkv"]
            tensors[f"blocks.{i}.attn.qkv.{part}"] = np.concatenate(heads)
            for ours, theirs in LINEAR.items():
                tensors[f"blocks.{i}.{ours}.{part}"] = state[f"{block}{theirs}.{part}"]
            if block_embeddings or i == 0:
                at = f"blocks.{i}." if block_embeddings else ""
                for ours, theirs in ((0, 1), (2, 2)):
                    tensors[f"{at}t_embedder.mlp.{ours}.{part}"] = state[f"{block}{EMBEDDER}_{theirs}.{part}"]
                table = f"{block}norm1.emb.class_embedder.embedding_table.weight"
                tensors[f"{at}y_embedder.embedding_table.weight"] = state[table]
    return tensors


def transformer(depth: int, heads: int, shared: bool, seed: int, **options) -> diffusers.DiTTransformer2DModel:
    torch.manual_seed(seed)
    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=heads, attention_head_dim=8, num_layers=depth, num_embeds_ada_norm=10, **options
    )
    for block in model.transformer_blocks[1:] if shared else ():
        block.norm1.emb.load_state_dict(model.transformer_blocks[0].norm1.emb.state_dict())
    return model


SIZES = {"in_channels": 4, "out_channels": 8, "sample_size": 8}


@pytest.mark.parametrize("form", ["float32", "bfloat16", "float16", "shards", "pickle"])
@pytest.mark.parametrize(("depth", "heads", "shared"), [(1, 2, True), (2, 3, False), (3, 2, True)])
def test_folders_give_the_bits_that_concatenation_gives(tmp_path, form, depth, heads, shared):
    model = transformer(depth, heads, shared, seed=depth, **SIZES)
    model = model.to(getattr(torch, form)) if form in ("bfloat16", "float16") else model
    options = {"max_shard_size": "20KB"} if form == "shards" else {}
    model.save_pretrained(tmp_path, safe_serialization=form != "pickle", **options)
    folder = pipeline_folder.read(tmp_path)
    shape = TransformerConfig.of(folder.arch)
    assert folder.arch["block_embeddings"] is not shared
    want = converted({n: t.float().numpy() for n, t in model.state_dict().items()}, shape, not shared)
    family = families.build("dit", folder.arch)
    assert folder.checkpoint().shapes == family.tensors() == {name: value.shape for name, value in want.items()}
    for name, value in folder.checkpoint().tensors(family.tensors()):
        assert np.array_equal(value.view(np.uint32), want[name].view(np.uint32)), name
    for dtype in ("float32", "bfloat16", "float16"):
        places = layout.Layout(records(family.tensors(), Types(dtype), folder.checkpoint().recipes))
        for file, tensors in (("made", folder.checkpoint().tensors(family.tensors())), ("want", sorted(want.items()))):
            layout.write(tmp_path / file, places, tensors)
        assert (tmp_path / "made").read_bytes() == (tmp_path / "want").read_bytes()


@pytest.mark.parametrize(
    "change", [{"num_heads": 0}, {"num_heads": "2"}, {"hidden_size": None}, {"depth": 2.5}, {"patch_size": -1}], ids=str
)
def test_an_architecture_that_no_transformer_has_is_refused(change):
    arch = TransformerConfig().arch(False)
    assert TransformerConfig.of({**arch, "mlp_eps": 1e-5}) == TransformerConfig(out_channels=4)
    for spoilt in ({**arch, **change}, {name: value for name, value in arch.items() if name not in change}):
        with pytest.raises(ModelError, match="no transformer of diffusers has this architecture"):
            TransformerConfig.of(spoilt)


@pytest.mark.parametrize("block_embeddings", [False, True])
def test_recipes_are_those_of_the_family_whatever_the_weights(block_embeddings):
    shape = TransformerConfig(num_attention_heads=2, attention_head_dim=8, num_layers=3, out_channels=8)
    family = families.build("dit", shape.arch(block_embeddings))
    table = recipes(3, block_embeddings)
    assert table.keys() == family.tensors().keys()
    used = [source.tensor for recipe in table.values() for source in recipe.sources]
    assert len(used) == len(set(used)), "no tensor is used twice"
    heads = [source.tensor for source in table["blocks.1.attn.qkv.bias"].sources]
    assert heads == [f"transformer_blocks.1.attn1.to_{head}.bias" for head in "qkv"]


def changed(change):
    """A released transformer's shapes, with some of them changed; nothing is read."""
    shapes = {name: tuple(t.shape) for name, t in transformer(2, 2, True, 0, **SIZES).state_dict().items()}
    change(shapes)
    return Checkpoint(Path("w"), shapes, lambda name: pytest.fail("read"))


QUERY = "transformer_blocks.1.attn1.to_q.weight"


@pytest.mark.parametrize(("change", "block_embeddings", "says"), [
    (lambda s: s.pop(QUERY), False, f"for blocks.1.attn.qkv.weight: {QUERY} is missing"),
    (lambda s: s.update({QUERY: (16, 8)}), False, "transformer_blocks.1.attn1.to_k.weight gives [16, 16], "
     f"{QUERY} [16, 8]: not along axis 0"),
    (lambda s: s.update(extra=(1,)), False, "extra is not part of a DiT"),
    (lambda s: s.update({"transformer_blocks.1.norm1.emb.x": (1,)}), True, "transformer_blocks.1.norm1.emb.x is not part of"),
], ids=["missing", "other width", "surplus", "an embedder's"])  # fmt: skip
def test_other_models_are_refused_by_name_before_anything_is_read(change, block_embeddings, says):
    config = TransformerConfig(num_attention_heads=2, attention_head_dim=8, num_layers=2, out_channels=8, sample_size=8)
    with pytest.raises(
        WeightsError, match=rf"w does not fit its model(, for|: ).*{re.escape(says.removeprefix('for '))}"
    ) as error:
        renamed(changed(change), config, block_embeddings)
    assert "\n" not in str(error.value)


def test_a_stored_position_embedding_is_of_no_account(tmp_path):
    model = transformer(1, 2, True, 0, **SIZES)
    save_file({**model.state_dict(), "pos_embed.pos_embed": torch.zeros(1, 16, 16)}, tmp_path / "w")
    config = TransformerConfig(num_attention_heads=2, attention_head_dim=8, num_layers=1, out_channels=8, sample_size=8)
    got = renamed(open_checkpoint(tmp_path / "w"), config, False).read("pos_embed")
    assert np.abs(got - model.pos_embed.pos_embed.numpy()).max() < 1e-6
