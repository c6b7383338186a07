"""Write the golden artefact of the current format version: `python tests/golden/make.py`.

It is committed, and so is what it made, so that a later release shows that it still loads it.  Make a new one (and keep the old
one as long as its version is read) when `manifest.VERSION` changes, and never to make a test pass.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

import l2c_export
from l2c_export.artefact.manifest import VERSION
from l2c_export.compiler.compile import compile_artefact
from l2c_export.compiler.request import Options

HERE = Path(__file__).parent
ARCH = {"input_size": 4, "patch_size": 2, "in_channels": 4, "hidden_size": 8, "depth": 2, "num_heads": 2, "num_classes": 3}


def main() -> None:
    folder = HERE / f"v{VERSION}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    model = folder / "model.json"
    model.write_text(json.dumps({"family": "dit", "arch": ARCH}) + "\n")
    engines = folder / "engines"
    compile_artefact(Options("every:2", engines, str(model), "random:1", steps=4, batch=2, backend="onnxruntime"))
    with l2c_export.load(engines) as pipe:
        np.save(folder / "latents.npy", pipe([0, 2], 2.0, seed=7).latents)


if __name__ == "__main__":
    main()
