"""What peft notes beside a LoRA: by how much its products are multiplied, and whether there is more to it than products."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

import msgspec
import safetensors

from ..errors import WeightsError
from ..support import file_kind
from ..support.files import small

NOTED = "lora_adapter_metadata"  # where diffusers keeps it in a .safetensors file
BESIDE = "adapter_config.json"  # where peft does
PLAIN = re.compile(r"\^?[\w.-]+")  # a name or the end of one, which peft reads as a regular expression
AGAIN = "download or save it again"


class LoraSettings(msgspec.Struct, frozen=True):
    """Peft's LoraConfig, as far as it decides what is added to a weight."""

    lora_alpha: float
    alpha_pattern: dict[str, float] = {}
    peft_type: str = "LORA"
    use_rslora: bool = False
    use_dora: bool = False
    lora_bias: bool = False
    init_lora_weights: bool | str = True  # some begin with another weight than the model's

    def factor(self, module: str, rank: int) -> float:
        """What the product of a module, of this rank, is multiplied by."""
        alpha = next((alpha for key, alpha in self.alpha_pattern.items() if _names(key, module)), self.lora_alpha)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    @property
    def unsupported(self) -> str:
        """What of it is more than a product that is added; or nothing."""
        if self.peft_type.rpartition(".")[2] != "LORA":
            return f"peft_type {self.peft_type!r}"
        if isinstance(self.init_lora_weights, str) and self.init_lora_weights not in ("gaussian", "orthogonal", "eva"):
            return f"init_lora_weights {self.init_lora_weights!r}"
        if pattern := next((key for key in self.alpha_pattern if not PLAIN.fullmatch(key)), None):
            return f"alpha_pattern {pattern!r}"
        return next((f"{name} True" for name in ("use_dora", "lora_bias") if getattr(self, name)), "")


def read(path: Path, peft: bool) -> LoraSettings | None:
    """Those of a LoRA's file; None where there are none.  Raises WeightsError.

    They lie in the file itself or, where its names are `peft`'s own, beside it.
    """
    if not peft:
        settings, place = _noted(path), str(path)
    elif (path.parent / BESIDE).is_file():
        settings, place = _decoded(small(path.parent / BESIDE), str(path.parent / BESIDE)), str(path.parent / BESIDE)
    else:
        raise WeightsError(f"{path}: {BESIDE} is missing beside it, which says the scale of a LoRA of peft: {AGAIN}")
    if settings and settings.unsupported:
        raise WeightsError(f"{place}: {settings.unsupported} is not supported: only a plain LoRA is, merge it first")
    return settings


def _noted(path: Path) -> LoraSettings | None:
    if file_kind.of(path) != file_kind.SAFETENSORS:
        return None
    with safetensors.safe_open(path, framework="numpy") as file:
        text = (file.metadata() or {}).get(NOTED)
    return None if text is None else _decoded(text.encode(), str(path))


def _decoded(text: bytes, where: str) -> LoraSettings | None:
    """Where several models have some, those of the transformer have its name before theirs."""
    try:
        content = msgspec.json.decode(text, type=dict[str, object])
        own = {key.removeprefix("transformer."): value for key, value in content.items() if key.startswith("transformer.")}
        fields = own or content
        if not own and all("." in key for key in content):
            return None  # only of text encoders
        settings = msgspec.convert(_whole(fields), LoraSettings)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise WeightsError(f"{where}: what it notes of its LoRA is damaged: {error}: {AGAIN}") from None
    if not all(map(math.isfinite, (settings.lora_alpha, *settings.alpha_pattern.values()))):
        raise WeightsError(f"{where}: lora_alpha is not finite: {AGAIN}")
    return settings


def _names(key: str, module: str) -> bool:
    """Whether a key of a pattern means a module: it is the end of its name, or all of it."""
    return module == key[1:] if key.startswith("^") else f".{module}".endswith(f".{key}")


def _whole(content: Mapping[str, object]) -> dict[str, object]:
    """Without what is null: the usual value is meant."""
    return {key: value for key, value in content.items() if value is not None}
