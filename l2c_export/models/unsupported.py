"""Transformers of diffusers that are not captured, and what each of them would need."""

from __future__ import annotations

LENGTHS = "the lengths of its prompts decide which operations it has"
WHY = {
    "CogView3PlusTransformer2DModel": "its sampler, CogVideoXDPMScheduler, draws noise, and its request tells sizes and crops",
    "CogView4Transformer2DModel": "its request tells sizes and crops, for which it has no adapter",
    "ErnieImageTransformer2DModel": LENGTHS,
    "HiDreamImageTransformer2DModel": "which of its experts compute, its values decide",
    "HunyuanDiT2DModel": "it reads the embeddings of two encoders and a size, for which it has no adapter",
    "Lumina2Transformer2DModel": LENGTHS,
    "OmniGenTransformer2DModel": "it is a language model, which reads tokens and pictures",
    "ZImageTransformer2DModel": LENGTHS,
}
OLD = ("Transformer2DModel", "DiTTransformer2DModel")  # those of a DiT, which is written by hand


def why(kind: object) -> str:
    """What keeps a class from being captured; nothing where that can be tried."""
    name = str(kind)
    if name.endswith("Transformer3DModel"):
        return "its latents have five axes, and those that are captured have four: pictures, no videos"
    if name.endswith("Transformer1DModel"):
        return "its latents are of sound, and those that are captured are of pictures"
    return WHY.get(name, "")


def tried(kind: object) -> bool:
    """Whether a class without an adapter is captured by its signature."""
    return isinstance(kind, str) and kind.endswith("Transformer2DModel") and kind not in OLD and not why(kind)
