"""Pipelines with text encoders, compiled with them, which tests only read."""

from __future__ import annotations

import pytest
from texts import Exported, exported


def made(tmp_path_factory, family: str, **options: object) -> Exported:
    root = tmp_path_factory.mktemp(family)
    return exported(family, root / "model", root / "out", **options)


@pytest.fixture(scope="package")
def pixart(tmp_path_factory):
    return made(tmp_path_factory, "pixart", with_vae=True)


@pytest.fixture(scope="package")
def sd3(tmp_path_factory):
    return made(tmp_path_factory, "sd3")


@pytest.fixture(scope="package")
def flux(tmp_path_factory):
    return made(tmp_path_factory, "flux")
