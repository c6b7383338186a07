"""The processors and the memory that a process may use."""

from __future__ import annotations

import os

import pytest

from l2c_export.support import machine


@pytest.mark.parametrize(("files", "share"), [
    ({"cpu.max": "50000 100000"}, 0.5), ({"cpu.max": "max 100000"}, None), ({"cpu.max": ""}, None), ({}, None),
    ({"cpu/cpu.cfs_quota_us": "250000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2.5),
    ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
])  # fmt: skip
def test_a_container_has_the_cores_that_its_limit_allows(tmp_path, monkeypatch, files, share):
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert machine.quota(tmp_path) == share
    monkeypatch.setattr(machine, "quota", lambda _: share)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)), raising=False)
    assert machine.cores() == {0.5: 1, None: 4, 2.5: 2}[share]
