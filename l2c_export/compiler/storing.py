"""How the weights of an artefact's components are to be stored: `--store TYPE` for all, `--store COMPONENT=TYPE` for one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ..errors import UsageError
from ..ir.dtypes import BYTES, width
from ..ir.precisions import DTYPES
from ..weights.stored import STORES

COMPONENTS = ("denoiser", "text", "decoder")
OF_DECODER = "fp16"  # its weights lie in its graph, which any library has to read
Storing = str | Sequence[str] | Mapping[str, str]  # "int8", ["fp16", "text=int8"] or {"text": "int8"}


class Stored(NamedTuple):
    """The type of each component's matrices in its file; None: as they are computed."""

    denoiser: str | None = None
    text: str | None = None
    decoder: str | None = None
    named: frozenset[str] = frozenset()  # components that were asked for by their names


def listed(stores: Storing) -> tuple[str, ...]:
    if isinstance(stores, Mapping):
        return tuple(f"{component}={kind}" for component, kind in stores.items())
    return (stores,) if isinstance(stores, str) else tuple(stores)


def parsed(stores: Sequence[str]) -> Stored:
    """What is asked for; what names no component is for all that are not named.  Raises UsageError."""
    asked: dict[str, str] = {}
    for one in stores:
        component, _, kind = one.rpartition("=")
        if kind not in STORES or (component and component not in COMPONENTS):
            said = " or ".join(f"{name}=" for name in COMPONENTS)
            raise UsageError(f"store={one!r}: use one of {', '.join(STORES)}, for one component behind {said}")
        if component in asked:
            raise UsageError(f"store={one!r}: {component or 'all'} is {asked[component]!r} already: give it once")
        if component == "decoder" and kind != OF_DECODER:
            raise UsageError(f"store={one!r}: a decoder's weights are part of its graph: use decoder={OF_DECODER}, or none")
        asked[component] = kind
    rest = asked.get("")
    return Stored(
        asked.get("denoiser", rest),
        asked.get("text", rest),
        asked.get("decoder", OF_DECODER if rest else None),
        frozenset(asked) - {""},
    )


def check_narrower(stored: Stored, component: str, precision: str) -> None:
    """Raises UsageError where nothing of a component would be stored narrower than it is computed."""
    kind: str | None = getattr(stored, component)
    if kind and width(STORES[kind]) >= BYTES[DTYPES[precision]]:
        raise UsageError(f"store={kind!r}: weights of {precision} are no wider than that: use int8, or leave it out")
