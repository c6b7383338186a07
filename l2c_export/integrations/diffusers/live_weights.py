"""The transformer of a live pipeline as a checkpoint: its own weights, whatever PyTorch and diffusers have put around them.

What computes the same is looked through: torch.compile, offloading by accelerate, fused projections, a merged LoRA.  What does
something else than its weights say, or keeps them so coarsely that they cannot be told from others, is refused in one line.
"""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import UsageError
from ...support.tensors import is_tensor
from ...weights.checkpoint import Checkpoint
from ...weights.layout import Shapes
from ...weights.recipe import Recipe, TensorSource

MODELS = ("DiTTransformer2DModel", "Transformer2DModel")
# how far a weight may be from itself, relatively, after both sides have rounded it
ROUNDING = {"float64": 2.0**-21, "float32": 2.0**-21, "float16": 2.0**-10, "bfloat16": 2.0**-7}
# what computes attention as it is defined; others may do something else with the same weights
PROCESSORS = (
    "AttnProcessor", "AttnProcessor2_0", "AttnProcessorNPU", "FusedAttnProcessor2_0", "SlicedAttnProcessor",
    "XFormersAttnProcessor", "XLAFlashAttnProcessor2_0", "JointAttnProcessor2_0", "FusedJointAttnProcessor2_0",
    "XFormersJointAttnProcessor", "FluxAttnProcessor", "FluxAttnProcessor2_0", "FusedFluxAttnProcessor2_0",
)  # fmt: skip
AROUND = re.compile(r"\b(_orig_mod|base_layer)\.")  # torch.compile and adapters around a layer
ADAPTER = re.compile(r"\.lora_\w+\.|\.lora_\w+$")
FUSED = {
    "to_qkv": ("to_q", "to_k", "to_v"), "to_kv": ("to_k", "to_v"),
    "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj"),
}  # fmt: skip
HOOKS = ("_hf_hook", "_diffusers_hook")  # of accelerate and diffusers: they move weights and call the own forward
NAME = "pipe.transformer"


def unwrap(transformer: Any, model: object = None) -> Any:
    """The transformer itself, of the class `model`, else a DiT.  Raises UsageError for another model, or for one with a
    forward of its own."""
    while hasattr(transformer, "_orig_mod"):
        transformer = transformer._orig_mod
    kind, models = type(transformer), MODELS if model is None else (str(model),)
    if not any(c.__name__ in models and _is_diffusers(c) for c in kind.__mro__):
        raise UsageError(f"{NAME} is a {kind.__name__}: compiled calls need a {models[0]} of diffusers to compare with")
    home = next(c for c in kind.__mro__ if "forward" in vars(c))
    if home.__name__ not in models or not _is_diffusers(vars(home)["forward"]):
        raise UsageError(
            f"{NAME} is a {kind.__name__} with a forward of its own, which compiled calls would not use: give a "
            f"{models[0]} as diffusers has it"
        )
    return transformer


def check_config(transformer: Any, compiled: str, folder: Path) -> None:
    """Refuse a transformer whose configuration is not what was compiled (JSON), with the class's defaults for both."""
    usual = {
        n: p.default for n, p in inspect.signature(type(transformer).__init__).parameters.items() if p.default is not p.empty
    }
    live = {name: value for name, value in dict(transformer.config).items() if not name.startswith("_")}
    ours, theirs = {**usual, **json.loads(compiled)}, {**usual, **live}
    for name in sorted(ours.keys() | theirs.keys()):
        value, wanted = (json.loads(json.dumps(config.get(name), default=str)) for config in (theirs, ours))
        if value != wanted:
            raise UsageError(f"{NAME} has {name} {value}, {folder} was compiled for {wanted}: compile it again")


def checkpoint(transformer: Any, folder: Path) -> tuple[Checkpoint, float]:
    """The weights of an unwrapped transformer, read as they are used, and how coarse they are."""
    _check_layers(transformer, folder)
    state = {AROUND.sub("", name): tensor for name, tensor in _state(transformer).items() if not ADAPTER.search(name)}
    coarse = max((_rounding(name, tensor, folder) for name, tensor in state.items()), default=0.0)
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    stored = Checkpoint(Path(NAME), shapes, lambda name: np.asarray(state[name].detach().float().cpu().numpy()))
    return stored.by_recipe(_split(shapes)), coarse


def mark(transformer: Any) -> tuple[tuple[Any, ...], ...]:
    """Something that is another one when a weight or a layer was exchanged, or changed in place."""
    layers = ((n, id(m), id(getattr(m, "processor", None)), id(vars(m).get("forward"))) for n, m in transformer.named_modules())
    weights = ((n, id(p), 0 if p.is_inference() else p._version) for n, p in transformer.named_parameters())
    return (*layers, *weights)


def _is_diffusers(thing: Any) -> bool:
    return str(getattr(thing, "__module__", "")).startswith("diffusers.")


def is_let_go(transformer: Any) -> bool:
    """Whether nothing of it is left but its shapes, as after `.to("meta")`."""
    return all(p.device.type == "meta" for p in transformer.parameters()) and not any(
        hasattr(module, "_hf_hook") for module in transformer.modules()
    )


def _check_layers(transformer: Any, folder: Path) -> None:
    for name, module in transformer.named_modules():
        forward = vars(module).get("forward")  # hooks and torch.compile put one there that calls the class's
        if forward and not any(hasattr(module, hook) for hook in HOOKS) and not hasattr(forward, "_torchdynamo_orig_callable"):
            raise UsageError(
                f"{NAME} has a forward of its own ({name or 'the whole'}), which compiled calls would not use: call enable_l2c "
                "before it is changed, or without that"
            )
        if hasattr(module, "base_layer") and bool(getattr(module, "merged", False)) == bool(
            getattr(module, "disable_adapters", False)
        ):
            raise UsageError(
                f"{NAME} carries an adapter such as a LoRA ({name}), which {folder} was compiled without: merge it "
                f"(fuse_lora or merge_and_unload), and run l2c_export.link({str(folder)!r}, lora='..') with the same"
            )
        kind = type(getattr(module, "processor", None))
        if kind is not type(None) and (kind.__name__ not in PROCESSORS or not _is_diffusers(kind)):
            raise UsageError(
                f"{NAME} has the attention processor {kind.__name__} ({name}), which compiled calls would not use: "
                "set one of diffusers', such as AttnProcessor2_0"
            )


def _state(transformer: Any) -> dict[str, Any]:
    """The tensors by name, those that are offloaded from where they are kept meanwhile."""
    tensors = dict(transformer.state_dict())
    modules = dict(transformer.named_modules())
    for name, tensor in tensors.items():
        if is_tensor(tensor) and tensor.device.type == "meta":
            tensors[name] = _offloaded(modules, name)
    return tensors


def _offloaded(modules: dict[str, Any], name: str) -> Any:
    """An offloaded tensor: the hook of its module, or of one around that, knows where it is."""
    parts = name.split(".")
    for cut in range(len(parts) - 1, -1, -1):
        hook = getattr(modules[".".join(parts[:cut])], "_hf_hook", None)
        for part in getattr(hook, "hooks", (hook,)):
            offloaded = getattr(part, "weights_map", None)
            inside = ".".join(parts[cut:])
            if offloaded is not None and inside in offloaded:
                return offloaded[inside]
    raise UsageError(f"{NAME} has no weights ({name} is on the meta device): load the pipeline with them before enable_l2c")


def _split(shapes: Shapes) -> dict[str, Recipe]:
    """Fused projections, which are what computes where there are some, as those that they were made of."""
    recipes = {}
    for name in sorted(shapes, key=lambda name: _layer(name) in FUSED):
        heads = FUSED.get(_layer(name), ())
        rows = shapes[name][0] // max(len(heads), 1) if heads else 0
        for i, head in enumerate(heads):
            recipes[name.replace(f".{_layer(name)}.", f".{head}.")] = Recipe((TensorSource(name, i * rows, (i + 1) * rows),))
        if not heads:
            recipes[name] = Recipe.of(name)
    return recipes


def _layer(name: str) -> str:
    """The module that a tensor is of, by the last part of its name."""
    return name.split(".")[-2] if "." in name else ""


def _rounding(name: str, tensor: Any, folder: Path) -> float:
    kind = str(getattr(tensor, "dtype", type(tensor).__name__)).removeprefix("torch.")
    is_plain = is_tensor(tensor) and type(tensor).__module__ in ("torch", "torch.nn.parameter")
    if not is_plain or kind not in ROUNDING:
        words = kind if is_plain or not is_tensor(tensor) else type(tensor).__name__
        raise UsageError(
            f"{NAME} keeps {name} as {words}, which is too coarse to be told from other weights: call enable_l2c before "
            f"quantising or layerwise casting, with the weights of {folder}"
        )
    return ROUNDING[kind]
