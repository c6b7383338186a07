"""The decoder as an ONNX file."""

from __future__ import annotations

import onnx
import pytest

from l2c_export.artefact import store

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_decoder_is_written_for_the_oldest_parser(world):
    """TensorRT 8.6 reads opset 17, and the shape of all axes where that of some is asked for."""
    model = onnx.load(world.pictures() / store.read(world.pictures()).decoder.file)
    assert [o.version for o in model.opset_import] == [17]
    assert any(n.op_type == "Shape" for n in model.graph.node)
    assert not any(n.attribute for n in model.graph.node if n.op_type == "Shape")
