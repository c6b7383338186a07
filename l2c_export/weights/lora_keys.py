"""What a tensor's name in a LoRA's file says: of which module it is, and which part of what is added to its weight.

Trainings write `transformer.blocks.0.attn.to_q.lora_A.weight` (peft, diffusers), `.lora.down.weight` (diffusers, before that),
`.lora_down.weight` (kohya), whose names of modules may have underscores for dots: `lora_unet_blocks_0_attn_to_q`.
"""

from __future__ import annotations

import re
from typing import NamedTuple

DOWN, UP, ALPHA = "down", "up", "alpha"
PARTS = {"lora_A": DOWN, "lora_B": UP, "lora_down": DOWN, "lora_up": UP, "lora.down": DOWN, "lora.up": UP}
KEY = re.compile(r"(?P<module>.+)\.(?:(?P<part>lora_[AB]|lora_down|lora_up|lora\.down|lora\.up)(?:\.default)?\.weight|alpha)")
# what stands before a module of the transformer; peft's own files have the first
BEFORE = re.compile(
    r"(?P<peft>base_model\.model\.)?(?:transformer\.|(?:model\.)?diffusion_model\.|(?P<flat>lora_(?:unet|transformer)_))?"
)
TEXT = re.compile(r"(?:base_model\.model\.)?(?P<encoder>text_encoder(?:_\d)?|text_encoders\.\w+|lora_te\d?)[._]")
# what else is added to weights under such names
OTHERS = {
    "hada_": "a LoHa", "lokr_": "a LoKr", "dora_scale": "a DoRA", "lora_magnitude_vector": "a DoRA", "oft_": "an OFT",
    "boft_": "a BOFT", "ia3_": "an (IA)3", "vera_": "a VeRA", "lora_embedding_": "a LoRA of an embedding",
    "lora_mid": "a LoRA with a third factor", "lora_B.bias": "a LoRA of biases", "lora_up.bias": "a LoRA of biases",
    ".diff": "a difference of whole tensors",
}  # fmt: skip


class LoraKey(NamedTuple):
    """A part of what is added to the weight of `module`; a flat name has underscores for dots."""

    module: str
    part: str
    flat: bool
    peft: bool  # whose scale lies in another file


def parsed(name: str) -> LoraKey | None:
    """What a tensor's name says; None for one that no LoRA has."""
    match = KEY.fullmatch(name)
    before = BEFORE.match(name)
    assert before
    if match is None or before.end() >= match.end("module"):
        return None
    module = name[before.end() : match.end("module")]
    return LoraKey(module, PARTS[match["part"]] if match["part"] else ALPHA, bool(before["flat"]), bool(before["peft"]))


def encoder(name: str) -> str:
    """The text encoder that a tensor is for; empty for one that is for the transformer."""
    match = TEXT.match(name)
    return match["encoder"] if match else ""


def other_kind(name: str) -> str:
    """What it is a part of instead of a LoRA: "a LoHa", or else nothing."""
    return next((words for part, words in OTHERS.items() if part in name), "")
