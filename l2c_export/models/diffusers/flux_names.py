"""The modules of FLUX.1 under the names of its own code, in which kohya's LoRAs are: whose rows are which of diffusers'.

Query, key and value are one product there, in single blocks with the MLP's first layer; the last layer's modulation has shift
before scale, diffusers' scale before shift.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

DOUBLE, SINGLE = "double_blocks", "single_blocks"


class RowsOf(NamedTuple):
    """A module of diffusers, and the rows of the other one that it has: parts (from, to) of `whole`."""

    module: str
    parts: tuple[tuple[int, int], ...] = ((0, 1),)
    whole: int = 1

    def rows(self, count: int) -> tuple[tuple[int, int], ...] | None:
        """The same of so many rows; None where they cannot be parted."""
        if count % self.whole:
            return None
        return tuple((first * count // self.whole, last * count // self.whole) for first, last in self.parts)


def _thirds(*modules: str) -> tuple[RowsOf, ...]:
    return tuple(RowsOf(module, ((n, n + 1),), 3) for n, module in enumerate(modules))


BLOCKS: Mapping[str, tuple[str, Mapping[str, tuple[RowsOf, ...]]]] = {
    DOUBLE: ("transformer_blocks", {
        "img_attn.qkv": _thirds("attn.to_q", "attn.to_k", "attn.to_v"),
        "img_attn.proj": (RowsOf("attn.to_out.0"),),
        "img_mlp.0": (RowsOf("ff.net.0.proj"),),
        "img_mlp.2": (RowsOf("ff.net.2"),),
        "img_mod.lin": (RowsOf("norm1.linear"),),
        "txt_attn.qkv": _thirds("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
        "txt_attn.proj": (RowsOf("attn.to_add_out"),),
        "txt_mlp.0": (RowsOf("ff_context.net.0.proj"),),
        "txt_mlp.2": (RowsOf("ff_context.net.2"),),
        "txt_mod.lin": (RowsOf("norm1_context.linear"),),
    }),
    SINGLE: ("single_transformer_blocks", {
        "linear1": (RowsOf("attn.to_q", ((0, 1),), 7), RowsOf("attn.to_k", ((1, 2),), 7), RowsOf("attn.to_v", ((2, 3),), 7),
                    RowsOf("proj_mlp", ((3, 7),), 7)),
        "linear2": (RowsOf("proj_out"),),
        "modulation.lin": (RowsOf("norm.linear"),),
    }),
}  # fmt: skip
OUTSIDE: Mapping[str, tuple[RowsOf, ...]] = {
    "img_in": (RowsOf("x_embedder"),),
    "txt_in": (RowsOf("context_embedder"),),
    "time_in.in_layer": (RowsOf("time_text_embed.timestep_embedder.linear_1"),),
    "time_in.out_layer": (RowsOf("time_text_embed.timestep_embedder.linear_2"),),
    "vector_in.in_layer": (RowsOf("time_text_embed.text_embedder.linear_1"),),
    "vector_in.out_layer": (RowsOf("time_text_embed.text_embedder.linear_2"),),
    "guidance_in.in_layer": (RowsOf("time_text_embed.guidance_embedder.linear_1"),),
    "guidance_in.out_layer": (RowsOf("time_text_embed.guidance_embedder.linear_2"),),
    "final_layer.adaLN_modulation.1": (RowsOf("norm_out.linear", ((1, 2), (0, 1)), 2),),
    "final_layer.linear": (RowsOf("proj_out"),),
}


def modules(name: str) -> tuple[RowsOf, ...]:
    """What a module of FLUX's own code is in diffusers; nothing for any other.  Dots of `name` may be underscores."""
    flat = name.replace(".", "_")
    if match := re.fullmatch(rf"({DOUBLE}|{SINGLE})_(\d+)_(\w+)", flat):
        theirs, layers = BLOCKS[match[1]]
        before = f"{theirs}.{match[2]}."
        known, flat = layers, match[3]
    else:
        before, known = "", OUTSIDE
    targets = next((rows for layer, rows in known.items() if layer.replace(".", "_") == flat), ())
    return tuple(rows._replace(module=before + rows.module) for rows in targets)
