"""cache-dit's options (github.com/vipshop/cache-dit), where a steps mask says which steps are computed.

    cache_config:
      Fn_compute_blocks: 1
      Bn_compute_blocks: 0
      num_inference_steps: 28
      steps_computation_mask: fast

Cached is what the blocks add between the first Fn and the last Bn of them, which always run: `reuse` of `stack[F:L]`.
What is decided while a model runs (thresholds on residuals) has no effect where a mask is static.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import ScheduleError
from ..rules import MASKS, NESTED
from ..schedule import Schedule
from ..values import NUMBERED, STACK, block_numbers
from . import mask
from .imported import Imported, Known, Selection, of_level, whole

FORM = "the options of cache-dit"
TAKES: tuple[str, ...] = ()
FIRST, LAST = "Fn_compute_blocks", "Bn_compute_blocks"
# what changes what is computed, and is not read
REFUSED = ("enable_taylorseer", "taylorseer_order", "calibrator_config", "force_refresh_step_hint")
DYNAMIC = "enable_taylorseer"


def claims(content: Any) -> bool:
    """A `cache_config` with a mask, or a mask beside Fn or Bn."""
    if not isinstance(content, Mapping):
        return False
    if isinstance(content.get(NESTED), Mapping):
        return any(name in content[NESTED] for name in (MASKS[0], FIRST, LAST))
    return FIRST in content or LAST in content


def read(content: Any, chosen: Selection) -> Imported:
    """Raises ScheduleError."""
    options = content[NESTED] if isinstance(content.get(NESTED), Mapping) else content
    for key in REFUSED:
        if options.get(key) and (key != "taylorseer_order" or options.get(DYNAMIC)):
            raise ScheduleError(f"{key} of cache-dit is not read: leave it out, and give the steps mask alone")
    if MASKS[0] not in options:
        raise ScheduleError(f"it has no {MASKS[0]}, so which steps are computed is decided while it runs: add one")
    first, last = (whole(options.get(key, 0), key, 0, 2**14) for key in (FIRST, LAST))
    steps = mask.entries(options)
    missing = [f"{key} is 0" for key in (FIRST,) if key not in options]
    static = [f"{mask.POLICY} is {mask.STATIC}"] if mask.POLICY not in options else []
    ignored = sorted(str(key) for key in options if key not in {*mask.KEYS, FIRST, LAST, *REFUSED})
    without = [f"no effect of {', '.join(ignored)}"] if ignored else []
    return Imported(FORM, len(steps), functools.partial(schedule, steps, first, last), (*missing, *static, *without))


def schedule(steps_mask: list[int], first: int, last: int, known: Known, steps: int) -> Schedule:
    """Raises ScheduleError where no block is left to be cached."""
    if len(steps_mask) != (count := known.count(steps)):
        raise ScheduleError(f"the steps mask has {len(steps_mask)} entries, but {known.sampler} makes {count} calls")
    return of_level(known, steps, {n for n, entry in enumerate(steps_mask) if entry}, levels(known.sublayers, first, last))


def levels(sublayers: Sequence[str], first: int, last: int) -> tuple[str, ...]:
    """The ranges of blocks between the first and the last ones, of each list of blocks that a model has."""
    if not first and not last:
        return (STACK,)
    blocks = dict(zip(block_numbers(sublayers), map(_list_of, sublayers), strict=True))
    ranges = []
    for name, numbers in itertools.groupby(blocks, key=lambda block: blocks[block]):
        own = list(numbers)
        if first + last >= len(own):
            raise ScheduleError(
                f"{FIRST} {first} and {LAST} {last} leave none of the {len(own)} {name}: nothing would be cached: lower them"
            )
        ranges.append(f"stack[{own[0] + first}:{own[-1] + 1 - last}]")
    return tuple(ranges)


def _list_of(sublayer: str) -> str:
    """The list that a sublayer's block is in: "transformer_blocks" of "transformer_blocks.3.attn"."""
    match = NUMBERED.match(sublayer)
    return match[0].rpartition(".")[0] if match else sublayer.partition(".")[0]
