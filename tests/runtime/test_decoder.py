"""Latents become pictures in tiles, as in diffusers."""

from __future__ import annotations

import gc
import shutil
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from small_pipelines import LABELS, STEPS

import l2c_export
from l2c_export.artefact import store
from l2c_export.backends.choose import open_backend
from l2c_export.errors import ArtefactError, UsageError
from l2c_export.inspection.measure import measured_calls
from l2c_export.runtime import decoder
from l2c_export.runtime.decoder import Decoder, decode_tiles

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("size", [(8, 8), (20, 13), (9, 30), (4, 30)])
def test_tiles_are_joined_as_in_diffusers(world, backend, size):
    folder, vae = world.pictures(), world.pipe.vae
    described = store.read(folder).decoder
    assert (described.scale, described.tile) == (2, 16)
    z = np.random.default_rng(0).standard_normal((2, 4, *size)).astype(np.float32)
    vae.enable_tiling()
    with torch.no_grad():
        want = vae.decode(torch.from_numpy(z) / vae.config.scaling_factor).sample.numpy()
    vae.disable_tiling()
    opened = open_backend(backend).backend
    assert np.abs(Decoder(folder, described, opened, tile=16)(z) - want).max() < 1e-5
    whole = Decoder(folder, described, opened, tile=None)(z)
    assert whole.shape == want.shape
    if max(size) > 8:
        assert np.abs(whole - want).max() > 1e-3, "tiles normalise by themselves"


@pytest.mark.parametrize("tile", [2, 3, 5, 9, 10, 16, 25, 32])
@pytest.mark.parametrize("high", [64, 61])
def test_tiles_of_any_size_make_a_picture_of_its_size(tile, high):
    """With a decoder that only repeats, tiles change nothing."""
    z = np.random.default_rng(0).standard_normal((1, 3, high, 64)).astype(np.float32)

    def repeat(part):
        return part.repeat(8, axis=2).repeat(8, axis=3)

    assert np.abs(decode_tiles(repeat, z, tile, 8) - repeat(z)).max() < 1e-5


@pytest.mark.parametrize("tile", [0, 2, 15, -16])
def test_tiles_that_cannot_be(world, tile):
    with pytest.raises(UsageError, match=f"tile={tile}: must be a multiple of 2 pixels"):
        l2c_export.load(world.pictures(), tile=tile)  # before anything is generated


def test_without_a_decoder_there_are_no_tiles(world):
    with pytest.raises(UsageError, match="tile=16: this artefact has no decoder: compile it with with_vae=True"):
        l2c_export.load(world.compiled(), tile=16)


def test_a_closed_pipeline_has_no_decoder(world):
    pipe = l2c_export.load(world.pictures())
    pipe(LABELS, output_type="np")
    alive = weakref.ref(pipe.decoder._decoder)
    pipe.close()
    gc.collect()
    assert alive() is None


def test_a_loaded_decoder_is_found_from_anywhere_or_says_that_it_was_replaced(world, tmp_path, monkeypatch):
    shutil.copytree(world.pictures(), tmp_path / "e")
    monkeypatch.chdir(tmp_path)
    pipes = [l2c_export.load("e", link=link) for link in ("shared", "static", None)]
    monkeypatch.chdir("/")
    pictures = [pipe(LABELS, output_type="np").images for pipe in pipes[:2]]
    assert np.allclose(*pictures, atol=1e-4)
    (tmp_path / "e" / "manifest.json").unlink()
    with pytest.raises(ArtefactError, match="holds no complete artefact"):
        pipes[2](LABELS, output_type="np")
    shutil.rmtree(tmp_path / "e")
    shutil.copytree(world.compiled(), tmp_path / "e")
    with pytest.raises(ArtefactError, match=r"decoder.onnx was replaced since the artefact was loaded: load it again"):
        pipes[2](LABELS, output_type="np")
    assert np.array_equal(pipes[0](LABELS, output_type="np").images, pictures[0])


def test_a_decoder_has_the_threads_of_its_pipeline_and_says_where_it_computes(world, monkeypatch):
    asked = []
    monkeypatch.setattr(decoder, "reading_onnx", lambda backend, threads: asked.append(threads) or backend)
    with l2c_export.load(world.pictures(), threads=1) as pipe:
        assert pipe.decoder.on_host
        assert asked == [1]
        pipe.decode(np.zeros((1, 4, 8, 8), np.float32))
        pipe.decoder._decoder.on_host = False
        assert not pipe.decoder.on_host
    assert asked == [1]


def test_threads_decode_in_turn(world):
    z = np.random.default_rng(1).standard_normal((16, 1, 4, 8, 8)).astype(np.float32)
    with l2c_export.load(world.pictures(), threads=1) as pipe, ThreadPoolExecutor(4) as pool:
        alone = [pipe.decode(latents) for latents in z]
        for _ in range(3):
            assert all(map(np.array_equal, pool.map(pipe.decode, z), alone))


def test_measured_calls_decode_nothing(world, monkeypatch):
    monkeypatch.setattr(Decoder, "__call__", lambda *_: pytest.fail("the decoder ran"))
    assert len(measured_calls(world.pictures())) == STEPS
