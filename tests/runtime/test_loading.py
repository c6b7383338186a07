"""`l2c_export.load`: what it takes, what it refuses, and what a pipeline says of itself."""

from __future__ import annotations

import shutil

import pytest
from folders import replace
from recorded import close

import l2c_export
from l2c_export.errors import ArtefactError, L2CError, UsageError
from l2c_export.runtime import opening


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_an_artefact_may_be_named_as_text_and_its_weights_be_trusted(tiny, tmp_path):
    folder = shutil.copytree(tiny[0], tmp_path / "e")
    flip(folder / "weights.safetensors")
    with pytest.raises(ArtefactError, match=r"weights\.safetensors does not match its hash"):
        l2c_export.load(str(folder))
    assert l2c_export.load(str(folder), verify=False)([1]).latents.shape == (1, 4, 8, 8)
    flip(folder / "step-000.onnx")
    with pytest.raises(ArtefactError, match=r"step-000\.onnx does not match its hash"):
        l2c_export.load(str(folder), verify=False)


@pytest.mark.parametrize(("asked", "says"), [
    ({"backend": "tensorflow"}, "unknown backend 'tensorflow': known are auto, .*onnxruntime"),
    ({"backend": "onnxruntime", "device": "tpu"}, "device 'tpu'.*use cpu"),
    ({"threads": 0}, "threads=0: must be at least 1"),
])  # fmt: skip
def test_what_cannot_be_loaded_is_named(tiny, asked, says):
    with pytest.raises(L2CError, match=says):
        l2c_export.load(tiny[0], **asked)


@pytest.mark.parametrize("link", ["shared", "static"])
def test_an_artefact_can_be_linked_in_the_other_way_when_it_is_loaded(pipe, tiny, link):
    other = l2c_export.load(tiny[0], "onnxruntime", link=link)
    assert other.link == link
    assert close(other([1, 2]).latents, pipe([1, 2]).latents)


def test_a_pipeline_says_what_it_runs_on(pipe, tiny):
    assert pipe.backend.startswith("onnxruntime (CPU, ")
    assert pipe.backend.endswith("), as asked")
    assert "the first that works here" in l2c_export.load(tiny[0], "auto").backend


def test_who_loads_while_the_artefact_is_replaced_is_told(copy, other, monkeypatch):
    opened = opening.open_backend

    def meanwhile(*arguments):
        replace(copy, other)
        return opened(*arguments)

    monkeypatch.setattr(opening, "open_backend", meanwhile)
    with pytest.raises(ArtefactError, match="was replaced since it was loaded: load it again"):
        l2c_export.load(copy)


def test_what_is_parsed_is_what_was_hashed(copy, monkeypatch):
    """A file that changes between the check and its use is refused by the second look at the same bytes."""
    load_engines = opening.load_engines

    def swapped(folder, manifest, backend, link):
        segment = folder / next(iter(manifest.denoiser.segments.values())).file
        segment.write_bytes(segment.read_bytes()[:-1] + b"\0")
        return load_engines(folder, manifest, backend, link)

    monkeypatch.setattr(opening, "load_engines", swapped)
    with pytest.raises(ArtefactError, match="does not match its hash"):
        l2c_export.load(copy)


@pytest.mark.parametrize("folder", ["\0", "e\0", b"engines", 5, None], ids=repr)
def test_no_folder_has_this_name(folder):
    for load in (l2c_export.load, l2c_export.L2CPipeline.from_pretrained):
        with pytest.raises(UsageError, match="no folder can have this name"):
            load(folder)
