"""Models of the hub: found in its cache, downloaded as far as they are needed."""

from __future__ import annotations

import shutil

import pytest
from click.testing import CliRunner

from l2c_export.cli.main import l2c
from l2c_export.compiler.compile import compile_artefact
from l2c_export.compiler.request import Options

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def hub(world, tmp_path, monkeypatch):
    """A cache that holds the pipeline as someone/small."""
    home = tmp_path / "hub/models--someone--small"
    shutil.copytree(world.folder, home / "snapshots/0123abc")
    (home / "refs").mkdir()
    (home / "refs/main").write_text("0123abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def test_a_hub_id_is_found_in_the_local_cache(hub):
    options = Options(schedule="every:2", steps=4, model="someone/small", out=hub / "e", backend="onnxruntime")
    manifest = compile_artefact(options)
    assert manifest.denoiser.name == "small"
    assert manifest.denoiser.weights.source == "diffusion_pytorch_model.safetensors"


def test_a_hub_id_that_is_not_there_says_what_to_download_and_where(hub):
    done = CliRunner().invoke(l2c, f"export --schedule every:2 --steps 4 --model someone/else --out {hub}/e".split())
    assert done.exit_code == 1
    (line,) = done.stderr.splitlines()
    assert "'someone/else'" in line
    assert f"hf download someone/else (it goes to {hub}/hub)" in line
