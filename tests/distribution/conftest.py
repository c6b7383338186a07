"""Registries that are there for a test; nobody's own credentials, and no waiting."""

from __future__ import annotations

import pytest
from folders import tree


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """No credentials of whoever runs the tests, no proxies, and pauses of nothing."""
    from l2c_export.distribution import patience

    for name in ("REGISTRY_AUTH_FILE", "AWS_PROFILE", "AWS_CONFIG_FILE", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setattr(patience, "PAUSES", (0, 0, 0, 0))


@pytest.fixture
def unchanged(tmp_path):
    """Look that a folder is as it was, and that nothing was left beside it."""

    def remember(folder):
        before = tree(folder) if folder.exists() else None
        beside = sorted(path.name for path in folder.parent.iterdir())

        def look():
            assert (tree(folder) if folder.exists() else None) == before
            assert sorted(path.name for path in folder.parent.iterdir()) == beside

        return look

    return remember
