"""The decoder as an ONNX file."""

from __future__ import annotations

import diffusers
import numpy as np
import onnx
import prompted
import pytest
import torch

from l2c_export.artefact import autoencoder, store
from l2c_export.backends.choose import open_backend
from l2c_export.backends.contract import Request
from l2c_export.compiler.onnx import decoder
from l2c_export.compiler.request import Options
from l2c_export.compiler.source import resolve
from l2c_export.runtime.decoder import Decoder

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_decoder_is_written_for_the_oldest_parser(world):
    """TensorRT 8.6 reads opset 17, and the shape of all axes where that of some is asked for."""
    model = onnx.load(world.pictures() / store.read(world.pictures()).decoder.file)
    assert [o.version for o in model.opset_import] == [17]
    assert any(n.op_type == "Shape" for n in model.graph.node)
    assert not any(n.attribute for n in model.graph.node if n.op_type == "Shape")


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """A Sana pipeline with an AutoencoderDC, and its exported decoder."""
    folder = prompted.sana(tmp_path_factory.mktemp("sana"))
    torch.manual_seed(0)
    kept = diffusers.AutoencoderDC(
        latent_channels=4, attention_head_dim=4, scaling_factor=0.41, encoder_block_out_channels=(8,) * 3,
        encoder_layers_per_block=(1,) * 3, encoder_qkv_multiscales=((),) * 3, decoder_block_out_channels=(8, 8, 16),
        decoder_block_types=("ResBlock", "EfficientViTBlock", "EfficientViTBlock"), decoder_layers_per_block=(1, 1, 1),
        decoder_qkv_multiscales=((), (), (5,)),
    ).eval()  # fmt: skip
    kept.save_pretrained(folder / "vae")
    index = (folder / "model_index.json").read_text()
    (folder / "model_index.json").write_text(index.replace("AutoencoderKL", "AutoencoderDC"))
    source = resolve(Options(schedule="every:2", steps=2, model=str(folder), out=folder / "out", with_vae=True, tokens=6))
    record = autoencoder.describe(source.vae, 4, source.own_vae)
    decoder.write(source.vae, record, 4, folder / record.file)
    return folder, record, kept


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_deep_autoencoder_decodes_as_in_diffusers(deep, backend):
    """Also pictures so small that diffusers takes the quadratic form of attention."""
    folder, record, kept = deep
    assert (record.scale, record.scaling_factor, record.tile) == (4, 0.41, 512)
    whole = Decoder(folder, record, open_backend(backend, Request()).backend, None)
    for height, width in ((8, 12), (5, 3), (2, 1)):
        z = prompted.numbers(3, 1, 4, height, width)
        with torch.no_grad():
            wanted = kept.decode(z / 0.41).sample.numpy()
        assert prompted.error(whole(z.numpy()), wanted) < 1e-5


def test_places_that_attend_to_nothing_are_0_and_not_nan(deep):
    """The exporter takes + 1e-15 for + 0, and then divides by it."""
    folder, record, _ = deep
    model = onnx.load(folder / record.file)
    assert sum(node.op_type == "Clip" for node in model.graph.node) == 2
    assert np.isfinite(
        Decoder(folder, record, open_backend("onnxruntime", Request()).backend, None)(np.zeros((1, 4, 6, 6), np.float32))
    ).all()


def test_a_deep_autoencoder_decodes_in_tiles(deep):
    folder, record, _ = deep
    backend = open_backend("onnxruntime", Request()).backend
    z = prompted.numbers(3, 1, 4, 24, 24).numpy()
    whole, tiled = (Decoder(folder, record, backend, tile)(z) for tile in (None, 64))
    assert tiled.shape == whole.shape == (1, 3, 96, 96)
    assert 1e-4 < prompted.error(tiled, whole) < 0.5
