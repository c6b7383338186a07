"""The demo model, `--model demo`: a small DiT that draws digits, with schedules that were learned for it.

Its files are part of the package.  `scripts/train_demo.py` trained it, `l2c train` learned its schedules.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import ScheduleError

NAME = "demo"
GUIDANCE_SCALE = 1.5  # used where none is given
CONFIG, WEIGHTS = (Path(__file__).with_name(name) for name in ("config.json", "model.safetensors"))
# what --schedule may name beside files and rules; the first is used where none is given
SCHEDULES = {"demo": Path(__file__).with_name("schedule.json"), "demo:aggressive": Path(__file__).with_name("aggressive.json")}


def files(model: str | None, weights: str | None) -> tuple[str | None, str | None]:
    """What `--model` and `--weights` name: for the demo model its own files, but for weights that are given."""
    return (str(CONFIG), weights or str(WEIGHTS)) if model == NAME else (model, weights)


def schedule(name: str | None) -> str:
    """What `--schedule` names where the model is the demo's.  Raises ScheduleError for a schedule that it does not have."""
    name = name or NAME
    if name.startswith(f"{NAME}:") and name not in SCHEDULES:
        raise ScheduleError(f"schedule={name!r}: the demo model has {' and '.join(SCHEDULES)}; use one of them")
    return str(SCHEDULES.get(name, name))
