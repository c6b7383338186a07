"""Artefacts that are made of links, as in a hub's cache, and those that suffered on their way."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest

import l2c_export
from l2c_export.artefact import integrity, store
from l2c_export.artefact.records import FILE
from l2c_export.backends import builds
from l2c_export.backends.building import BuildSettings
from l2c_export.backends.tensorrt.builder import Builder
from l2c_export.compiler.compile import compile_artefact
from l2c_export.compiler.link import bind
from l2c_export.compiler.request import Options
from l2c_export.errors import ArtefactError

GOLDEN = Path(__file__).parents[1] / "golden" / "v2"
WEIGHTS = "weights.safetensors"
EXPORT = functools.partial(Options, "every:2", model=str(GOLDEN / "model.json"), weights="random:1", steps=4)


@pytest.fixture
def copy(tmp_path):
    return Path(shutil.copytree(GOLDEN / "engines", tmp_path / "engines"))


@pytest.fixture
def snapshot(tmp_path):
    """The artefact as huggingface_hub keeps it: every file is a link to a blob that is called after its hash."""
    root = tmp_path / "models--me--digits"
    folder = root / "snapshots" / "0a1b"
    (root / "blobs").mkdir(parents=True)
    for path in sorted((GOLDEN / "engines").rglob("*")):
        if path.is_file():
            blob = root / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
            shutil.copy(path, blob)
            place = folder / path.relative_to(GOLDEN / "engines")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(os.path.relpath(blob, place.parent))
    return folder


def blobs(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (folder.parents[1] / "blobs").iterdir()}


def recorded(folder, backend, link):
    with l2c_export.load(folder, backend, link=link) as pipe:
        latents = pipe([0, 2], 2.0, seed=7).latents
    want = np.load(GOLDEN / "latents.npy")
    return np.abs(latents - want).max() < 1e-5 * np.abs(want).max()


@pytest.mark.parametrize("link", ["shared", "static"])
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_snapshot_of_a_hub_runs(snapshot, backend, link):
    pytest.importorskip(backend)
    before = blobs(snapshot)
    assert recorded(snapshot, backend, link)
    assert store.read(snapshot) == store.read(GOLDEN / "engines")
    assert blobs(snapshot) == before


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_weights_may_be_one_copy_for_many(copy, tmp_path, backend):
    """ONNX Runtime by itself refuses weights outside a graph's folder."""
    pytest.importorskip(backend)
    (tmp_path / "shared").mkdir()
    shutil.move(copy / WEIGHTS, tmp_path / "shared" / "w")
    (copy / WEIGHTS).symlink_to(tmp_path / "shared" / "w")
    assert recorded(copy, backend, "shared")
    assert recorded(copy, backend, "static")


def test_what_a_link_leads_to_is_hashed(snapshot):
    blob = (snapshot / "step-000.onnx").resolve()
    data = bytearray(blob.read_bytes())
    data[99] ^= 1
    blob.write_bytes(data)
    with pytest.raises(ArtefactError, match=r"step-000\.onnx does not match its hash"):
        l2c_export.load(snapshot)


def test_unchecked_weights_are_no_link_out_of_the_folder(snapshot, copy):
    """They could be any file of that size."""
    with pytest.raises(ArtefactError, match=r"is a link out of the artefact, .*: load it without verify=False$"):
        l2c_export.load(snapshot, verify=False)
    (copy / WEIGHTS).rename(copy / "w")
    (copy / WEIGHTS).symlink_to("w")
    with l2c_export.load(copy, verify=False) as pipe:
        assert pipe([0], seed=0).latents.shape == (1, 4, 4, 4)


def onto(folder, monkeypatch, what):
    """The commands that change an artefact."""
    monkeypatch.setattr(Builder, "identity", ["links"])
    monkeypatch.setattr(Builder, "build", lambda self, model, *_: b"plan")
    if what == "link":
        bind(folder, "random:5")
    elif what == "export":
        compile_artefact(EXPORT(out=folder))
    else:
        pytest.importorskip("tensorrt_rtx")
        manifest = builds.build(folder, "tensorrt-rtx", BuildSettings(targets=("sm86",)))
        if what == "remove":
            builds.remove(folder, list(manifest.builds))


@pytest.mark.parametrize("what", ["link", "export", "build", "remove"])
def test_what_is_written_takes_a_links_place_and_never_goes_through_it(snapshot, monkeypatch, what):
    before = blobs(snapshot)
    onto(snapshot, monkeypatch, what)
    assert blobs(snapshot) == before
    manifest = store.read(snapshot)
    plain = {name for name in (FILE, *manifest.files) if not (snapshot / name).is_symlink()}
    new = {"link": {FILE, WEIGHTS}, "export": {FILE, *manifest.files}, "remove": {FILE}}
    new["build"] = {FILE, *(file for build in manifest.builds.values() for file in build.engines.values())}
    assert plain == new[what]


@pytest.mark.parametrize("what", ["link", "export", "build"])
def test_a_folder_that_is_a_link_is_not_written_to(copy, tmp_path, monkeypatch, what):
    (copy / "segments").rename(tmp_path / "segments")
    (copy / "segments").symlink_to(tmp_path / "segments")
    before = {path.name: path.read_bytes() for path in (tmp_path / "segments").iterdir()}
    with pytest.raises(ArtefactError, match=r"segments/\S+ is in a folder that is a link: put the folder itself there"):
        store.read(copy)
    if what == "link":
        onto(copy, monkeypatch, what)
    else:
        with pytest.raises(ArtefactError, match="segments"):
            onto(copy, monkeypatch, what)
    assert {path.name: path.read_bytes() for path in (tmp_path / "segments").iterdir()} == before
    assert not list(copy.glob(".l2c-*"))


BROKEN = {
    "dangling": (lambda p: p.symlink_to("../nowhere"), r"is a link to \.\./nowhere, which is not there: copy what the links"),
    "loop": (lambda p: p.symlink_to(p.name), "is a link that leads back to itself"),
    "link to a folder": (lambda p: p.symlink_to(p.parent), "is a link to a folder, not a file"),
    "link to a device": (lambda p: p.symlink_to("/dev/zero"), "is a link to a device or a pipe, not a file"),
    "pipe": (os.mkfifo, "is a device or a pipe, not a file"),
}


@pytest.mark.parametrize("name", [FILE, WEIGHTS, "step-000.onnx"])
@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("verify", [True, False])
def test_what_is_no_file_is_refused_without_waiting_for_it(copy, name, kind, verify):
    make, says = BROKEN[kind]
    (copy / name).unlink()
    make(copy / name)
    with pytest.raises(ArtefactError, match=says) as error:
        l2c_export.load(copy, verify=verify)
    assert str(copy / name) in str(error.value)
    assert "\n" not in str(error.value)
    if name == FILE:  # nor do those who would replace it wait
        with pytest.raises(ArtefactError):
            compile_artefact(EXPORT(out=copy))


# an artefact as it travels


def crlf(path):
    path.write_bytes(path.read_bytes().replace(b",", b",\r\n"))


def test_a_manifest_may_have_other_line_ends(copy):
    """Its checksum is of what it says."""
    crlf(copy / FILE)
    assert recorded(copy, "onnxruntime", "shared")


def write(data):
    return lambda path: path.write_bytes(data)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:x\nsize 3\n"
PAGE = b"\n<!DOCTYPE html>\n<html><title>404</title></html>"
AGAIN = "download the file itself"
IS_POINTER = f"is a pointer of Git LFS, not what it points to: {AGAIN}, as with git lfs pull"
TRAVELLED = {
    "pointer": (
        WEIGHTS,
        write(POINTER),
        IS_POINTER,
    ),
    "pointer manifest": (
        FILE,
        write(POINTER),
        IS_POINTER,
    ),
    "page": ("step-000.onnx", write(PAGE), "is a web page, perhaps of an error or a login: download the file itself"),
    "cut": (WEIGHTS, lambda p: p.write_bytes(p.read_bytes()[:1000]), "has 1000 bytes, expected 23968: copy the artefact again"),
    "missing": ("step-001.onnx", Path.unlink, "is missing: the artefact is incomplete; copy the artefact again"),
    "other case": ("segments", lambda p: p.rename(p.with_name("SEGMENTS")), r"is missing, but there is \S+/SEGMENTS: its name"),
    "no folder": ("segments", shutil.rmtree, "is missing: the artefact is incomplete; copy the artefact again"),
}


@pytest.mark.parametrize("kind", TRAVELLED)
def test_what_has_become_of_a_file_on_its_way_is_said_in_one_line(copy, kind):
    name, change, says = TRAVELLED[kind]
    change(copy / name)
    with pytest.raises(ArtefactError, match=says) as error:
        l2c_export.load(copy)
    assert "\n" not in str(error.value)
    assert name in str(error.value)


@pytest.mark.parametrize("text", [b'{"calls":\n[]}\n', b'{"calls":\n[]}'], ids=["ended", "open end"])
def test_line_ends_that_git_has_changed_are_named(copy, text):
    path, files = copy / "schedule.json", store.read(copy).files
    path.write_bytes(text)
    described = msgspec.structs.replace(store.read(copy, verify=False), files={**files, path.name: integrity.info(path)})
    store.write_json(copy / FILE, described)
    assert store.read(copy)
    path.write_bytes(b"\r\n".join(text.split(b"\n")) + b"\r" * (not text.endswith(b"\n")))
    with pytest.raises(ArtefactError, match=r"schedule\.json has other line ends: .*core\.autocrlf false"):
        store.read(copy)


@pytest.mark.parametrize("name", [FILE, "step-000.onnx", WEIGHTS])
def test_a_file_that_this_user_may_not_read(copy, name, monkeypatch):
    """As docker copies it: root's, mode 600."""
    real = open

    def refused(path, *positional, **named):
        if str(path) == str(copy / name):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *positional, **named)

    monkeypatch.setattr("builtins.open", refused)
    with pytest.raises(ArtefactError, match=rf"{name}:? cannot be read: Permission denied: check its permissions"):
        l2c_export.load(copy)


LITTER = (
    ".DS_Store",
    "segments/.DS_Store",
    "._step-000.onnx",
    ".gitattributes",
    ".cache/huggingface/x",
    "__MACOSX/a",
    ".git/HEAD",
)


def test_what_file_managers_and_hubs_leave_there_is_in_nobodys_way(copy):
    for name in LITTER:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text("left")
    assert recorded(copy, "onnxruntime", "shared")
    bind(copy, "random:5")
    compile_artefact(EXPORT(out=copy))
    assert [(copy / name).read_text() for name in LITTER] == ["left"] * len(LITTER)


def test_the_folder_above_or_a_file_in_it_is_told_from_the_artefact(copy):
    with pytest.raises(ArtefactError, match=rf"holds no complete artefact .*: give {copy}, which has one"):
        l2c_export.load(copy.parent)
    with pytest.raises(ArtefactError, match=rf"step-000\.onnx is a file: give the artefact's folder, {copy}"):
        l2c_export.load(copy / "step-000.onnx")
