"""A compiled PixArt, FLUX and Sana, which tests only read."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
from prompted import PIPELINES, STEPS, TOKENS

from l2c_export.compiler.compile import compile_artefact
from l2c_export.compiler.request import Options

IMAGES = 2


class Compiled(NamedTuple):
    """A pipeline folder, its artefact, and a request."""

    folder: Path
    out: Path
    request: dict[str, Any]


def compiled(root: Path, family: str) -> Compiled:
    folder = PIPELINES[family].folder(root / "model")
    options = Options(
        schedule="every:2", steps=STEPS, model=str(folder), out=root / "out", batch=IMAGES, tokens=TOKENS,
        size=PIPELINES[family].size,
    )  # fmt: skip
    compile_artefact(options)
    request = {name: values.numpy() for name, values in PIPELINES[family].request(IMAGES).items()}
    return Compiled(folder, root / "out", request)


@pytest.fixture(scope="package")
def pixart(tmp_path_factory):
    return compiled(tmp_path_factory.mktemp("pixart"), "pixart")


@pytest.fixture(scope="package")
def flux(tmp_path_factory):
    return compiled(tmp_path_factory.mktemp("flux"), "flux")


@pytest.fixture(scope="package")
def sana(tmp_path_factory):
    return compiled(tmp_path_factory.mktemp("sana"), "sana")
