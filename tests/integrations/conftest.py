from __future__ import annotations

import diffusers
import pytest
from small_pipelines import images

import l2c_export


@pytest.fixture(scope="session")
def engines(world):
    """An artefact with a decoder."""
    return world.pictures()


@pytest.fixture(scope="module")
def ours(engines):
    return l2c_export.L2CPipeline.from_pretrained(engines)


@pytest.fixture
def live(world):
    pipe = diffusers.DiTPipeline.from_pretrained(world.folder, low_cpu_mem_usage=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def want(world):
    """What the pipeline itself draws."""
    return images(world.pipe)
