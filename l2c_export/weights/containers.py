"""Where in a training's checkpoint the model's tensors are: below which keys, and behind which prefix of their names.

A model is recognised by its first layer.  What stands before that layer's name, keys of containers or a prefix, is the model's
place; counters, optimizers and other parts beside it are left alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ..errors import WeightsError
from .pickled import Placeholder

FIRST = ("x_embedder.proj.weight", "patch_embed.proj.weight", "pos_embed.proj.weight")  # of DiT, U-ViT, and diffusers' DiT
WRAPPERS = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile
DEEPEST = 4  # containers in containers
TRAINING = re.compile(r"(^|\.)(opt|exp_avg|momentum|grad)")  # what an optimizer keeps has the model's names, too
ROUTER = re.compile(r"\d+\.prob")
COUNTERS = {"step", "steps", "global_step", "iteration", "epoch", "decay", "initted", "num_updates", "n_averaged"}
WHOLE = re.compile(r"u?int|[iu]\d|bool")  # types of whole numbers, as safetensors and PyTorch call them
SHOWN = 6  # keys in a message


Sorts = tuple[type, ...]


class ModelPlace(NamedTuple):
    """The keys of the containers, and the prefix of the names there."""

    keys: tuple[str, ...]
    prefix: str = ""

    @property
    def label(self) -> str:
        return ".".join((*self.keys, self.prefix)).rstrip(".")

    @property
    def is_average(self) -> bool:
        """Whether it is the moving average of a model's weights, as far as names say."""
        words = re.split(r"[._\W]", self.label.lower())
        return "ema" in words and "online" not in words


class Contained(NamedTuple):
    """A model's tensors by their own names, and its place, if others were there to take."""

    tensors: dict[str, Any]
    taken: str


def find(tree: Any, sorts: Sorts, path: object, remedy: str) -> Contained:
    """The one model among `tree`'s tensors, which are of the types `sorts`: the averaged one (EMA) if there is one.

    Raises WeightsError, naming what is there, for none and for several.
    """
    groups = dict(_groups(tree, sorts))
    places = [p for keys, names in groups.items() for p in _places(keys, names) if not TRAINING.search(p.label)]
    recognised = bool(places)
    if not recognised:
        places = [_plainest(groups, tree, path, remedy)]
    candidates = [p for p in places if p.is_average] or places
    if len(candidates) > 1:
        listed = ", ".join(p.label or "the file itself" for p in candidates)
        raise WeightsError(f"{path} holds several models ({listed}): save the one that you want as a file of its own")
    place = candidates[0]
    group = groups[place.keys]
    tensors = {n.removeprefix(place.prefix): t for n, t in group.items() if n.startswith(place.prefix)}
    if recognised:
        tensors = {n: t for n, t in tensors.items() if not _is_counter(n, t)}
    return Contained(tensors, place.label if len(places) > 1 else "")


def _is_counter(name: str, tensor: Any) -> bool:
    """Whether it counts steps or notes a state of the training: one number, of no layer."""
    kind = str(tensor.dtype).lower()
    return "." not in name and math.prod(tensor.shape) == 1 and (name in COUNTERS or bool(WHOLE.match(kind)))


def holds_model(tree: Any, sorts: Sorts) -> bool:
    """Whether weights of a known model are among the tensors."""
    return any(True for keys, names in _groups(tree, sorts) for _ in _places(keys, names))


def _groups(value: Any, sorts: Sorts, keys: tuple[str, ...] = (), seen: set[int] | None = None) -> Iterator[Any]:
    """Every mapping that holds tensors under names, with its keys.  One that is met twice is given once."""
    seen = set() if seen is None else seen
    mapping = value.items if isinstance(value, Placeholder) else value
    if not isinstance(mapping, Mapping) or id(mapping) in seen or len(keys) > DEEPEST:
        return
    seen.add(id(mapping))
    tensors = {n: v for n, v in mapping.items() if isinstance(n, str) and isinstance(v, sorts)}
    if tensors:
        yield keys, tensors
    for name, inner in mapping.items():
        if isinstance(name, str) and not isinstance(inner, sorts):
            yield from _groups(inner, sorts, (*keys, name), seen)


def _places(keys: tuple[str, ...], names: Mapping[str, Any]) -> Iterator[ModelPlace]:
    for first in FIRST:
        yield from (ModelPlace(keys, n.removesuffix(first)) for n in names if n == first or n.endswith(f".{first}"))


def _plainest(groups: Mapping[tuple[str, ...], Any], tree: Any, path: object, remedy: str) -> ModelPlace:
    """Where no known model is: the only tensors there are."""
    if any(ROUTER.fullmatch(n) for names in groups.values() for n in names):
        raise WeightsError(
            f"{path} is not a checkpoint: expected named tensors of a model, but it is a router: give it with schedule=.."
        )
    keys = [k for k in groups if not TRAINING.search(ModelPlace(k).label)]
    keys = [k for k in keys if not k] or [k for k in keys if ModelPlace(k).is_average] or keys
    if len(keys) != 1:
        raise WeightsError(f"{path} is not a checkpoint: expected named tensors, but it holds {_described(tree)}: {remedy}")
    names = list(groups[keys[0]])
    prefix = ""
    while wrapper := next((w for w in WRAPPERS if all(n.startswith(prefix + w) for n in names)), ""):
        prefix += wrapper
    return ModelPlace(keys[0], prefix)


def _described(tree: Any) -> str:
    """The keys of a file, or what it is instead of a mapping."""
    if isinstance(tree, Placeholder):
        is_module = isinstance(tree.state, Mapping) and "_modules" in tree.state
        return f"a whole module ({tree.kind}) instead of its state_dict()" if is_module else f"an object of {tree.kind}"
    if not isinstance(tree, Mapping):
        return f"a {type(tree).__name__}"
    modules = [k for k, v in tree.items() if isinstance(v, Placeholder) and "_modules" in (v.state or ())]
    keys = [str(key)[:40] for key in list(tree)[:SHOWN]]
    more = f" and {len(tree) - SHOWN} more" if len(tree) > SHOWN else ""
    return f"{', '.join(keys) or 'nothing'}{more}" + (
        f" ({modules[0]} is a whole module instead of its state_dict())" if modules else ""
    )
