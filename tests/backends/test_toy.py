"""A backend over numpy in one file, with one entry in the list of descriptors.  Run as a script it is an `l2c` that has it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from l2c_export.backends import descriptors
from l2c_export.backends.descriptor import CPU, Descriptor, Site
from l2c_export.backends.host import OnHost

ROOT = Path(__file__).parents[2]
TOY = Descriptor(name="toy", home=__name__, library="onnx", extra="export", precisions=("fp32",), sites=(Site(CPU, "onnx"),))


class ToyEngine(ReferenceEvaluator):
    def bind(self, inputs, outputs):
        def run():
            with np.errstate(over="ignore", invalid="ignore"):  # in the branch that its Sigmoid does not take
                results = self.run(list(outputs), dict(inputs))
            for array, values in zip(outputs.values(), results, strict=True):
                array[...] = values

        return run


class ToyBackend(OnHost):
    name = "toy"

    def describe(self):
        return f"numpy {np.__version__}"

    def load(self, segment):
        return ToyEngine(onnx.load_from_string(segment.read()))

    def link(self, path, nodes, segments, outputs, weights):
        return ToyEngine(onnx.load(path))


def open_backend(name, request):
    return ToyBackend()


@pytest.mark.parametrize("link", ["shared", "static"])
def test_a_toy_is_compiled_for_run_and_verified(link, tmp_path, monkeypatch):
    from helpers import case

    import l2c_export
    from l2c_export.compiler.compile import compile_artefact

    monkeypatch.setattr(descriptors, "BACKENDS", (*descriptors.BACKENDS, TOY))
    chosen = case("dit_tiny_odd_resetN")
    compile_artefact(chosen.options(tmp_path / "e", backend="toy", link=link))
    pipe = l2c_export.load(tmp_path / "e")
    assert (pipe.device, pipe.link, pipe.backend) == ("cpu", link, f"toy (numpy {np.__version__}), as asked")
    assert l2c_export.verify(pipe, golden=chosen.path).passed
    assert len(pipe([1, 2], seed=3).latents) == 2
    with pytest.raises(l2c_export.UsageError, match=r"precision='fp16': backend='toy' has none: use backend='tensorrt or .*"):
        chosen.options(tmp_path / "e", backend="toy", precision="fp16")


@pytest.mark.parametrize(("words", "says"), [
    ("doctor", f"toy yes {onnx.__version__} .* toy: numpy {np.__version__} "), ("run --help", "One of auto, .*, toy[.]"),
    ("bench --help", "openvino, toy,"), ("run engines --backend toys", "toys: use one of auto, .*, toy "),
    ("build engines --backend toy", "toy: use one of tensorrt, tensorrt-rtx, cuda "),
])  # fmt: skip
def test_the_command_line_knows_it(words, says):
    command = [sys.executable, "-m", "tests.backends.test_toy", *words.split()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert re.search(says, " ".join((done.stdout + done.stderr).split()))


if __name__ == "__main__":
    descriptors.BACKENDS += (TOY,)
    from l2c_export.cli.main import main

    main()
