"""What a file of weights is that holds no model of ours, as far as the names of its tensors tell."""

from __future__ import annotations

from collections.abc import Iterable

# the first mark that a name contains, and what has it
AS_FOLDER = "give the folder of its pipeline of diffusers as model=.."
MARKS = (
    ("lora", "this is a LoRA: merge it into its model, and give that"),
    ("double_blocks.", f"this looks like FLUX or another model of double blocks: {AS_FOLDER}"),
    ("single_transformer_blocks.", f"this looks like FLUX: {AS_FOLDER}"),
    ("caption_projection.", f"this looks like a text-to-image transformer of diffusers: {AS_FOLDER}"),
    ("joint_blocks.", f"this looks like Stable Diffusion 3: {AS_FOLDER}"),
    ("down_blocks.", "this looks like a U-Net or an autoencoder of diffusers: neither is supported as weights=.."),
    ("input_blocks.", "this looks like a U-Net: it is not supported"),
    ("encoder.down.", "this looks like an autoencoder: give its folder with vae=.."),
    ("text_model.", "this looks like a text encoder: give the transformer"),
    (
        "transformer_blocks.",
        "these are names of diffusers, whose architecture is in a folder: give that of the pipeline with model='FOLDER'",
    ),
    (".prob", "this looks like a router: give it with schedule=.."),
)


def what(names: Iterable[str]) -> str:
    """The end of a sentence: what this seems to be and what to do."""
    keys = sorted(names)
    for mark, sentence in MARKS:
        if any(mark in name for name in keys):
            return sentence
    return f"this begins with {keys[0]}: give weights of one of them" if keys else "this holds no tensors: give other weights"
