"""The demo model, `--model demo`: a small DiT that draws digits, with schedules that were learned for it.

Its files are part of the package.  `scripts/train_demo.py` trained it, `l2c train` learned its schedules.
"""

from __future__ import annotations

from pathlib import Path

NAME = "demo"
GUIDANCE_SCALE = 1.5  # used where none is given
CONFIG, WEIGHTS = (Path(__file__).with_name(name) for name in ("config.json", "model.safetensors"))
# what --schedule may name beside files and rules; the first is used where none is given
SCHEDULES = {"demo": Path(__file__).with_name("schedule.json"), "demo:aggressive": Path(__file__).with_name("aggressive.json")}
