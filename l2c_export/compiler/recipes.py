"""How the pipelines of diffusers make the inputs of their transformers of a text: which encoders, and how they are joined."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from ..artefact.text import TextBlock, TextOutput, TextSource
from ..errors import UsageError

CLIP, CLIP_PROJECTED, T5, BERT = "CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel", "BertModel"


class TextPart(NamedTuple):
    """An encoder of a pipeline: its class, the tokens that it is given, and what is read of it."""

    kind: str
    tokens: int
    outputs: tuple[TextOutput, ...]  # sorted
    masked: bool = False


class TextRecipe(NamedTuple):
    """The encoders by their names, and the blocks of every input."""

    parts: Mapping[str, TextPart]
    blocks: Mapping[str, tuple[TextBlock, ...]]
    lowercase: bool = False


# of the tokens of a prompt, those that CLIP is given, and the class of every part that is there
RecipeOf = Callable[[int, int, Mapping[str, str]], TextRecipe]


def block(tokens: int, *sources: tuple[str, TextOutput]) -> tuple[TextBlock, ...]:
    return (TextBlock(tokens=tokens, sources=tuple(TextSource(encoder=e, output=o) for e, o in sources)),)


def pixart(tokens: int, short: int, present: Mapping[str, str]) -> TextRecipe:
    """T5, or a BERT in its place, which is told what is padding; texts are written small."""
    kind = BERT if present.get("text_encoder") == BERT else T5
    blocks = {
        "prompt_embeds": block(tokens, ("text_encoder", "last")),
        "prompt_attention_mask": block(tokens, ("text_encoder", "mask")),
    }
    return TextRecipe({"text_encoder": TextPart(kind, tokens, ("last",), masked=True)}, blocks, lowercase=True)


def sd3(tokens: int, short: int, present: Mapping[str, str]) -> TextRecipe:
    """Two CLIPs side by side, and T5 behind them; where that is left out its tokens are 0."""
    if tokens <= short:
        raise UsageError(f"tokens={tokens}: this pipeline gives {short} of them to CLIP, and the others to T5: use more")
    clip = TextPart(CLIP_PROJECTED, short, ("penultimate", "pooled"))
    third = {"text_encoder_3": TextPart(T5, tokens - short, ("last",))} if "text_encoder_3" in present else {}
    sides = ("text_encoder", "text_encoder_2")
    rest: tuple[tuple[str, TextOutput], ...] = (("text_encoder_3", "last"),) if third else ()
    return TextRecipe(
        {**dict.fromkeys(sides, clip), **third},
        {
            "prompt_embeds": block(short, *((name, "penultimate") for name in sides)) + block(tokens - short, *rest),
            "pooled_prompt_embeds": block(1, *((name, "pooled") for name in sides)),
        },
    )


def flux(tokens: int, short: int, present: Mapping[str, str]) -> TextRecipe:
    """T5, and what CLIP makes of the whole."""
    return TextRecipe(
        {"text_encoder": TextPart(CLIP, short, ("pooled",)), "text_encoder_2": TextPart(T5, tokens, ("last",))},
        {
            "prompt_embeds": block(tokens, ("text_encoder_2", "last")),
            "pooled_prompt_embeds": block(1, ("text_encoder", "pooled")),
        },
    )


RECIPES: Mapping[str, RecipeOf] = {"pixart": pixart, "sd3": sd3, "flux": flux}  # by family
