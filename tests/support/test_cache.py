"""The user's cache: what was made once is made again only if it was damaged or changed."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from l2c_export.support import cache


def test_what_was_made_is_kept_under_its_key(empty_cache):
    calls = []

    def make():
        calls.append(1)
        return b"engine"

    assert [cache.cached("plans", key, make) for key in (["a", 1], ["a", 1], ["a", 2])] == [b"engine"] * 3
    assert len(calls) == 2


@pytest.mark.parametrize("damage", [lambda d: d[:-1], lambda d: d[:5], lambda d: b"", lambda d: d[:40] + b"X" + d[41:]])
def test_a_damaged_entry_is_made_again(empty_cache, damage):
    data = bytes(range(100))
    cache.cached("plans", "k", lambda: data)
    (path,) = (empty_cache / "plans").iterdir()
    path.write_bytes(damage(path.read_bytes()))
    assert cache.cached("plans", "k", lambda: data) == data
    assert cache.cached("plans", "k", lambda: b"not again") == data


def test_the_cache_has_a_bound_and_what_was_used_last_stays(empty_cache, monkeypatch):
    monkeypatch.setattr(cache, "LIMIT", 350)
    for n, key in enumerate("abc"):
        cache.cached("plans", key, lambda: bytes(68))
        path = next(p for p in (empty_cache / "plans").iterdir() if p.stat().st_mtime > 10**6)
        os.utime(path, (n, n))
    cache.cached("plans", "a", bytes)  # used
    cache.cached("plans", "d", lambda: bytes(68))
    cache.cached("plans", "e", lambda: bytes(68))
    calls = []
    for key in "ade":
        cache.cached("plans", key, lambda: (calls.append(1), bytes(68))[1])
    assert not calls, "b went, then c"
    assert sum(entry.bytes for entry in cache.entries()) == 300


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("L2C_CACHE", str(tmp_path / "file"))
    assert cache.cached("plans", "k", lambda: b"made") == b"made"
    assert not list(cache.entries())
    assert cache.prune(0) == []


def test_a_cache_that_cannot_be_read_costs_time_only(empty_cache, monkeypatch):
    """As where a container's user has the home folder of root."""

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "rglob", refuse)
    assert cache.cached("plans", "k", lambda: b"made") == b"made"
    assert not list(cache.entries())


def test_the_command_shows_and_empties_the_cache(empty_cache):
    from click.testing import CliRunner

    from l2c_export.cli.main import l2c

    cache.cached("plans", "k", lambda: bytes(2**20))
    shown = CliRunner().invoke(l2c, ["cache", "--json"])
    kinds = msgspec.json.decode(shown.stdout)["kinds"]
    assert kinds == {"plans": {"entries": 1, "bytes": 2**20 + 32}}
    assert "plans" in CliRunner().invoke(l2c, ["cache"]).stdout
    done = CliRunner().invoke(l2c, ["cache", "--prune"])
    assert done.stderr == "removed 1 entry, 1.0 MB\n"
    assert not list(cache.entries())
