"""In which form a forecast is read is printed before anything is built."""

from __future__ import annotations

import pytest

import l2c_export

MODEL = {"model": "DiT-S/2", "steps": 50}


@pytest.mark.parametrize(("options", "says"), [
    ({"schedule": "every:5", "rule": "taylor:2"}, ["forecasts: 38 calls read sums out of 1 bank of 12"]),
    ({"schedule": "every:2", "rule": "taylor:1"},
     ["forecasts: 24 calls read sums that each call they read from has added up for them"]),
    ({"schedule": "every:5", "rule": "taylor:2", "level": "stack"},
     ["forecasts: 38 calls read values of earlier calls, which they add up themselves"]),
    ({"schedule": "every:5", "rule": "taylor:2", "fold": False},
     ["forecasts: 38 calls read values of earlier calls, which they add up themselves"]),
    ({"schedule": "every:5"}, []),
])  # fmt: skip
def test_the_form_follows_from_how_many_read(options, says):
    said = []
    l2c_export.dry_run(**MODEL, **options, report=said.append)
    assert [line for line in said if line.startswith("forecasts")] == says
