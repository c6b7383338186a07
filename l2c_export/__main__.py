from __future__ import annotations

from .cli.main import l2c

l2c(prog_name="python -m l2c_export")
