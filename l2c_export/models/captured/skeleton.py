"""A transformer of diffusers without its weights: built from a configuration alone, whatever its size.

Parameters, and buffers that a checkpoint holds, have shapes and no numbers; other buffers and tensors of modules are computed.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from ...errors import ModelError
from ...support.extras import needs
from .leaves import with_leaves


class Unfilled(TorchFunctionMode):
    """What layers allocate for their weights has no memory; everything else is computed as always."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = dict(kwargs or {})
        return function(*args, **{**options, "device": "meta"} if function is torch.empty else options)


def skeleton(kind: str, config: Mapping[str, Any], mode: FakeTensorMode) -> nn.Module:
    """The module of class `kind`, of tensors of `mode`.  Raises ModelError for a configuration that makes none."""
    with torch.device("meta"):
        model = build(kind, config)
    computed = model_buffers(model).keys() - model.state_dict().keys()
    plain = {(name, key) for name, module in model.named_modules() for key, v in vars(module).items() if isinstance(v, Tensor)}
    with mode:
        model.to_empty(device="cpu")
    if computed or plain:
        with Unfilled():
            filled = build(kind, config)
        buffers = model_buffers(filled)
        for name, key in plain:
            setattr(model.get_submodule(name), key, getattr(filled.get_submodule(name), key))
        for name in computed:
            owner, _, last = name.rpartition(".")
            model.get_submodule(owner)._buffers[last] = buffers[name]
    return with_leaves(model).eval()


def build(kind: str, config: Mapping[str, Any]) -> nn.Module:
    """The module as diffusers makes it, with whatever weights the surroundings give it."""
    diffusers = needs("diffusers", "diffusers")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model: nn.Module = getattr(diffusers, kind).from_config(dict(config))
    except (AttributeError, TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
        raise ModelError(f"{kind}: its configuration makes no model: {str(error).splitlines()[0]}: check config.json") from None
    return model


def model_buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    return dict(model.named_buffers())
