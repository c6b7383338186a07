"""What the pipelines of diffusers make of prompts, by transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch


def pipeline(folder: Path) -> Any:
    return diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True)


@torch.no_grad()
def encoded(pipe: Any, prompts: list[str], negative: list[str], tokens: int) -> dict[str, np.ndarray]:
    """The arrays of a request by its own names; `tokens` are those of the whole prompt."""
    kind = type(pipe).__name__
    if kind.startswith("PixArt"):
        encodings = pipe.encode_prompt(prompts, negative_prompt=negative, max_sequence_length=tokens)
        names = ["prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask"]
    elif kind.startswith("StableDiffusion3"):
        encodings = pipe.encode_prompt(prompts, None, None, negative_prompt=negative, max_sequence_length=tokens - 77)
        names = ["prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds"]
    else:
        encodings = pipe.encode_prompt(prompts, None, max_sequence_length=tokens)[:2]
        names = ["prompt_embeds", "pooled_prompt_embeds"]
    return {name: values.numpy() for name, values in zip(names, encodings, strict=True)}
