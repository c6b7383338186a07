"""Linear layers of the same input as one: queries, keys and values are one product, whose weight is theirs joined."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from ...ir.graph import Primitive
from ...ir.signatures import MOST_PARTS

Weights = Mapping[str, tuple[str, ...]]  # tensors that are one weight, joined along their rows, by the input that it is


class Joined(NamedTuple):
    """Primitives, and the tensors of every input of theirs that is a weight."""

    primitives: tuple[Primitive, ...]
    weights: Weights


def joined(primitives: Sequence[Primitive], weights: Weights, shapes: Mapping[str, tuple[int, ...]]) -> Joined:
    """The same values by fewer products.  `shapes` are those of tensors that a checkpoint has; others stay alone."""
    reads = Counter(name for primitive in primitives for name in primitive.inputs)
    groups: dict[tuple[object, ...], list[Primitive]] = defaultdict(list)
    for primitive in primitives:
        own = [weights.get(name, ()) for name in primitive.inputs[1:]]
        if primitive.op == "linear" and dict(primitive.attributes)["parts"] == 1 and all(len(t) == 1 for t in own):
            names = [name for (name,) in own]
            alone = all(name in shapes for name in names) and all(reads[name] == 1 for name in primitive.inputs[1:])
            key = (primitive.inputs[0], *(shapes.get(name) for name in names)) if alone else (primitive.outputs,)
            groups[key].append(primitive)
    left, result = dict(weights), list[Primitive]()
    into: dict[tuple[str, ...], Primitive | None] = {}  # by outputs: what stands for a primitive; None: another's
    for group in (g for g in groups.values() if 1 < len(g) <= MOST_PARTS):
        first, *others = group
        outputs = tuple(name for primitive in group for name in primitive.outputs)
        into[first.outputs] = msgspec.structs.replace(first, attributes=(("parts", len(group)),), outputs=outputs)
        into.update(dict.fromkeys((primitive.outputs for primitive in others), None))
        for n, name in enumerate(first.inputs[1:], 1):
            left[name] = tuple(weights[primitive.inputs[n]][0] for primitive in group)
            for primitive in others:
                del left[primitive.inputs[n]]
    for primitive in primitives:
        kept = into.get(primitive.outputs, primitive)
        result += [] if kept is None else [kept]
    return Joined(tuple(result), left)


def name_of(tensors: Sequence[str]) -> str:
    """`blocks.0.attn.to_q+to_k+to_v.weight` of three tensors; its own of one."""
    parts = [name.split(".") for name in tensors]
    differ = [n for n, words in enumerate(zip(*parts, strict=False)) if len(set(words)) > 1]
    if len({len(words) for words in parts}) > 1 or len(differ) > 1:
        return "+".join(tensors)
    return ".".join("+".join(dict.fromkeys(words)) for words in zip(*parts, strict=True))
