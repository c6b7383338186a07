"""An adapter for a class of diffusers that has none of its own: as far as the names of its arguments say what they are."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor

from ...errors import ModelError
from ...ir.inputs import RequestInput, class_labels
from ...support.extras import needs
from .adapter import Adapter, Config, array_input, mask

WIDTHS = ("joint_attention_dim", "caption_channels", "text_embed_dim", "cap_feat_dim", "cross_attention_dim")
OPTIONAL = inspect.Parameter.empty
TOKENS = 256  # of a prompt
# What an argument is called in a request, by its name.
REQUESTED = {
    "encoder_hidden_states": "prompt_embeds", "encoder_attention_mask": "prompt_attention_mask",
    "pooled_projections": "pooled_prompt_embeds", "class_labels": "class_labels", "guidance": "embedded_guidance",
}  # fmt: skip


def by_signature(kind: str) -> Adapter:
    """The adapter of class `kind`.  Raises ModelError for arguments, or a configuration, that do not say what they are."""
    own = getattr(needs("diffusers", "diffusers"), kind, None)
    if own is None:
        raise ModelError(f"diffusers has no {kind}: use another release of it")
    arguments = {p.name: p for p in inspect.signature(own.forward).parameters.values() if p.name != "self"}
    known = {"hidden_states", "timestep", "return_dict", *REQUESTED}
    unknown = [name for name, p in arguments.items() if p.default is OPTIONAL and name not in known]
    if unknown or not {"hidden_states", "timestep"} <= arguments.keys():
        raise without_adapter(kind, f"nothing says what {', '.join(unknown) or 'its arguments'} stand for")
    read = {argument: name for argument, name in REQUESTED.items() if argument in arguments}

    def call(model: Any, x: Tensor, t: Tensor, **request: Tensor) -> Tensor:
        told = {argument: request[name] for argument, name in read.items() if name in request}
        told |= {name: values.to(x.dtype) for name, values in told.items() if name == "encoder_attention_mask"}
        prediction: Tensor = model(hidden_states=x, timestep=t / 1000 if from_0_to_1(model) else t, **told, return_dict=False)[
            0
        ]
        return prediction

    def inputs(config: Config, tokens: int) -> tuple[RequestInput, ...]:
        embedded = bool(config.get("guidance_embeds"))
        wanted = [name for name in read.values() if name != "embedded_guidance"]
        declared = tuple(declaration(kind, name, config, tokens, not embedded) for name in wanted)
        return (*declared, *((RequestInput(name="embedded_guidance", known="guidance"),) if embedded else ()))

    def guidance(config: Config) -> tuple[str, float]:
        return ("embedded", 3.5) if config.get("guidance_embeds") else ("all", 4.5)

    return Adapter(call, inputs, TOKENS, small, lambda config: None, guidance=guidance)


def declaration(kind: str, name: str, config: Config, tokens: int, unconditional: bool) -> RequestInput:
    """An input with the width that the configuration has for it."""
    if name == "prompt_attention_mask":
        return mask(name, tokens, unconditional)
    keys = {"class_labels": ("num_embeds_ada_norm", "num_classes"), "pooled_prompt_embeds": ("pooled_projection_dim",)}
    width = next((config[key] for key in keys.get(name, WIDTHS) if isinstance(config.get(key), int)), None)
    if width is None:
        raise without_adapter(kind, f"its configuration does not say how wide {name} are")
    if name == "class_labels":
        return class_labels(width, width if unconditional else None)
    return array_input(name, (width,) if name == "pooled_prompt_embeds" else (tokens, width), unconditional)


def small(config: Config) -> Config:
    """With fewer layers of each kind; what else could be smaller, nothing says."""
    return {key: min(2, value) for key, value in config.items() if "layers" in key and isinstance(value, int)}


def from_0_to_1(model: Any) -> bool:
    """Whether its timesteps are levels of noise, which it multiplies by 1000 itself."""
    return any(getattr(m, "scale", 1) == 1000 for m in model.modules() if type(m).__name__ in ("Timesteps", "Sinusoid"))


def without_adapter(kind: str, why: str) -> ModelError:
    return ModelError(f"{kind} has no adapter, and {why}: write one (bring your own transformer, in models/README.md)")
