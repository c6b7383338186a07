"""Artefacts of every version that is read still load and make what they made; the same request makes the same bits."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

import l2c_export
from l2c_export.artefact import manifest, store
from l2c_export.artefact.manifest import VERSION, Manifest
from l2c_export.artefact.records import FILE
from l2c_export.artefact.upgrade import OLDEST
from l2c_export.errors import ArtefactError

GOLDEN = Path(__file__).parents[1] / "golden"
CPU = ("onnxruntime", "openvino")


@pytest.mark.parametrize("backend", CPU)
@pytest.mark.parametrize("link", ["shared", "static"])
@pytest.mark.parametrize("version", range(OLDEST, VERSION + 1))
def test_the_golden_artefacts_make_what_they_made(version, backend, link):
    recorded = np.load(GOLDEN / f"v{version}" / "latents.npy")
    with l2c_export.load(GOLDEN / f"v{version}" / "engines", backend, link=link) as pipe:
        assert np.abs(pipe([0, 2], 2.0, seed=7).latents - recorded).max() < 1e-5 * np.abs(recorded).max()


def test_there_is_a_golden_artefact_of_the_version_that_is_written():
    folder = GOLDEN / f"v{VERSION}"
    assert sum(path.stat().st_size for path in folder.rglob("*")) < 200_000
    assert str(VERSION) in (manifest.__doc__ or ""), "its history is written at the top of manifest.py"


def test_the_golden_artefact_is_made_by_the_documented_command(tmp_path, monkeypatch):
    """Its graphs and weights may differ from those of a later compiler; what they make may not."""
    sys.path.insert(0, str(GOLDEN))
    try:
        import make
    finally:
        sys.path.remove(str(GOLDEN))
    monkeypatch.setattr(make, "HERE", tmp_path)
    make.main()
    latents, recorded = (np.load(root / f"v{VERSION}" / "latents.npy") for root in (tmp_path, GOLDEN))
    assert np.abs(latents - recorded).max() < 1e-5 * np.abs(recorded).max()


class Later(Manifest, frozen=True, kw_only=True):
    """The manifest of a later release: with one more field, which has a default."""

    colour: str | None = None


def test_a_field_with_a_default_may_be_added_and_old_artefacts_still_load(monkeypatch):
    monkeypatch.setattr(store, "DECODER", msgspec.json.Decoder(Later))
    assert store.read(GOLDEN / f"v{VERSION}" / "engines").colour is None


def test_an_older_release_refuses_what_a_later_one_has_added(tmp_path, monkeypatch):
    folder = shutil.copytree(GOLDEN / f"v{VERSION}" / "engines", tmp_path / "e")
    manifest = store.read(folder)
    fields = {name: getattr(manifest, name) for name in manifest.__struct_fields__}
    store.write_json(folder / FILE, Later(**fields, colour="blue"))
    with pytest.raises(ArtefactError, match="unknown field `colour`"):
        l2c_export.load(folder)


def test_a_newer_version_is_named(tmp_path):
    folder = shutil.copytree(GOLDEN / f"v{VERSION}" / "engines", tmp_path / "e")
    raw = json.loads((folder / FILE).read_text())
    (folder / FILE).write_text(json.dumps({**raw, "version": VERSION + 1}))
    with pytest.raises(
        ArtefactError, match=f"format version {VERSION + 1}, this release reads {OLDEST} to {VERSION}: run l2c-export again"
    ):
        l2c_export.load(folder)


# determinism


def bits(pipe: l2c_export.runtime.pipeline.Pipeline) -> str:
    return hashlib.sha256(pipe([1, 0], 3.0, seed=11).latents.tobytes()).hexdigest()


@pytest.mark.parametrize("backend", CPU)
@pytest.mark.parametrize("link", ["shared", "static"])
def test_the_same_request_makes_the_same_bits_in_every_run_and_process(tiny, backend, link):
    folder, _ = tiny
    with l2c_export.load(folder, backend, link=link) as pipe:
        here = bits(pipe)
        pipe([2], seed=5)
        assert bits(pipe) == here
    with l2c_export.load(folder, backend, link=link) as again:
        assert bits(again) == here
    code = (
        "import hashlib, sys, l2c_export\n"
        "pipe = l2c_export.load(sys.argv[1], sys.argv[2], link=sys.argv[3])\n"
        "print(hashlib.sha256(pipe([1, 0], 3.0, seed=11).latents.tobytes()).hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", code, folder, backend, link], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == here


def test_the_same_inputs_make_the_same_artefact(tmp_path):
    from l2c_export.compiler.compile import compile_artefact
    from l2c_export.compiler.request import Options

    model = str(GOLDEN / f"v{VERSION}" / "model.json")
    manifests = [compile_artefact(Options("every:2", tmp_path / n, model, "random:1", steps=4)) for n in ("a", "b")]
    assert msgspec.json.encode(manifests[0]) == msgspec.json.encode(manifests[1]), "hashes of all files included"
