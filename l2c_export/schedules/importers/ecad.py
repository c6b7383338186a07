"""ECAD (arXiv 2506.15682): for every step, block and component whether it is computed; for PixArt and for FLUX.

    {"cache_schedule": {"num_blocks": 28, "num_inference_steps": 20,
                        "schedule": {"000": {"0": {"attn1": true, "attn2": true, "ff": true}, ..}, ..}}}

Steps are counted in sampling order.  What has never been computed is computed whatever the file says.  FLUX has blocks "0",
"1", .. and, beyond them, "single_0", .. whose three components are finer than most cuts of the model: `single_attn` and
`single_proj_mlp` are what `single_proj_out` is made of, so the three are one sublayer unless one of the first two is reused
where the last is computed.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from ...errors import ScheduleError
from ..schedule import Schedule
from .imported import Imported, Known, Selection, of_sublayers, whole

FORM = "a schedule of ECAD"
TAKES: tuple[str, ...] = ()
BOX, CUSTOM = "cache_schedule", "custom_compute_"
# component -> part of a block's module
PIXART = {"attn1": "attn1", "attn2": "attn2", "ff": "ff"}
DOUBLE = {"full_attn": "attn", "full_ff": "ff", "full_ff_context": "ff_context"}
SINGLE = {"single_attn": "attn", "single_proj_mlp": "proj_mlp", "single_proj_out": "proj_out"}
OUT = "proj_out"  # of a single block; the others are what it is computed from
Computed = dict[str, list[bool]]  # of a module, in every step


def claims(content: Any) -> bool:
    return isinstance(content, Mapping) and BOX in content


def read(content: Any, chosen: Selection) -> Imported:
    """Raises ScheduleError."""
    box = content[BOX]
    if not isinstance(box, Mapping) or not isinstance(box.get("schedule"), Mapping):
        raise ScheduleError(f"{BOX} has no schedule: give a file that ECAD wrote")
    count = whole(box.get("num_inference_steps"), "num_inference_steps", 1)
    steps = {_step(key): blocks for key, blocks in box["schedule"].items()}
    if len(steps) != len(box["schedule"]):
        raise ScheduleError(f"two of the {len(box['schedule'])} steps have one number: list each once, as 000, 001, ..")
    if odd := sorted({*steps} ^ {*range(count)}):
        raise ScheduleError(f"step {odd[0]} is {'missing' if odd[0] < count else 'more'} of {count} steps: list each once")
    family = "flux" if "num_single_blocks" in box else "pixart"
    computed: Computed = {}
    for step in range(count):
        _add(computed, step, steps[step], family)
    lengths = {name: len(flags) for name, flags in computed.items()}
    if short := next((name for name, length in lengths.items() if length != count), None):
        raise ScheduleError(f"{short} is not in every step: list every block in each")
    return Imported(f"{FORM} for {family}", count, functools.partial(schedule, family, computed), _made_for(content))


def _step(key: object) -> int:
    if not isinstance(key, str) or not key.isdecimal() or len(key) > 6:
        raise ScheduleError(f"{key!r} is no step: use 000, 001, ..")
    return int(key)


def _add(computed: Computed, step: int, blocks: Any, family: str) -> None:
    """What a step says of every module."""
    if not isinstance(blocks, Mapping):
        raise ScheduleError(f"step {step} lists no blocks: give an object of them")
    for block, flags in blocks.items():
        single = isinstance(block, str) and block.startswith("single_")
        number = str(block).removeprefix("single_")
        if not number.isdecimal() or len(number) > 5 or (single and family != "flux"):
            raise ScheduleError(f"step {step}: {block!r} is no block of {family}: use 0, 1, .. (and single_0, .. of flux)")
        parts = PIXART if family == "pixart" else SINGLE if single else DOUBLE
        for component in flags if isinstance(flags, Mapping) else {}:
            if str(component).startswith(CUSTOM):
                raise ScheduleError(
                    f"step {step}, block {block}: {component} (T-GATE) computes with part of the prompt, which no schedule can "
                    "say: leave it out"
                )
        if not isinstance(flags, Mapping) or set(flags) != set(parts):
            raise ScheduleError(f"step {step}, block {block}: the components must be {', '.join(parts)}: list each once")
        for component, flag in flags.items():
            if not isinstance(flag, bool):
                raise ScheduleError(f"step {step}, block {block}: {component} is {flag!r}: use true to compute, false to reuse")
            name = f"{'single_' if single else ''}transformer_blocks.{int(number)}.{parts[component]}"
            run = computed.setdefault(name, [])
            if len(run) != step:
                raise ScheduleError(f"step {step}, block {block}: {name} is not in every step: list every block in each")
            run.append(flag or step == 0)


def _made_for(content: Mapping[str, Any]) -> tuple[str, ...]:
    """What the file says of the pictures that it was made for."""
    config = content.get("config")
    config = config if isinstance(config, Mapping) else {}
    said = [f"{key} {config[key]}" for key in ("height", "width", "guidance_scale") if type(config.get(key)) in (int, float)]
    return (f"it was made for {', '.join(said)}",) if said else ()


def schedule(family: str, computed: Computed, known: Known, steps: int) -> Schedule:
    """Raises ScheduleError for another model, or one whose sublayers are not cut as the file needs it."""
    if known.family != family:
        raise ScheduleError(f"it is for a {family}, but the model is a {known.family}: check model=..")
    if known.count(steps) != steps:
        raise ScheduleError(f"it has {steps} steps, but {known.sampler} makes {known.count(steps)} calls: use another")
    own = computed if set(computed) == set(known.sublayers) else joined(computed)
    if odd := sorted({*own} ^ {*known.sublayers}):
        where = "not in the model" if odd[0] in own else "not in the file"
        raise ScheduleError(f"{odd[0]} is {where}: check model=..")
    return of_sublayers(known, steps, [[name for name in known.sublayers if own[name][n]] for n in range(steps)])


def joined(computed: Computed) -> Computed:
    """With each single block as one sublayer, the output that it ends in.  Raises ScheduleError where it is used in parts."""
    for name, flags in computed.items():
        block, _, part = name.rpartition(".")
        if not name.startswith("single_") or part == OUT:
            continue
        for step, (flag, out) in enumerate(zip(flags, computed[f"{block}.{OUT}"], strict=True)):
            if out and not flag:
                raise ScheduleError(
                    f"call {step} computes {block}.{OUT} from a reused {name}, but the model's single blocks are not cut: cut "
                    f"them in three with cut=.."
                )
    return {name: flags for name, flags in computed.items() if not name.startswith("single_") or name.endswith(f".{OUT}")}
