"""LoRAs that are merged into captured transformers, against diffusers' own modules that were fused by peft, or by hand."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.usefixtures("one_thread")
