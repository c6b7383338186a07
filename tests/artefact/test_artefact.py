"""The artefact on disk: whole or absent, checked before use, and never at the cost of somebody else's file."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import re
import shutil
from concurrent.futures import ProcessPoolExecutor

import msgspec
import numpy as np
import onnx
import pytest
import standalone
import torch
from helpers import Case, case
from hypothesis import given
from hypothesis import strategies as st
from manifests import changed
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch

import l2c_export
from l2c_export.artefact import staging, store, user_weights
from l2c_export.artefact.manifest import VERSION
from l2c_export.artefact.records import FILE, FileInfo
from l2c_export.compiler import emit, link
from l2c_export.compiler.compile import compile_artefact
from l2c_export.errors import ArtefactError, ModelError, WeightsError
from l2c_export.weights import random


@pytest.fixture
def copy(tiny, tmp_path):
    """An artefact of one's own to damage."""
    return shutil.copytree(tiny[0], tmp_path / "engines")


def tree(folder) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def generate(folder):
    return l2c_export.load(folder)([1, 2], seed=3).latents


def edit(folder, **changes) -> None:
    """Change the manifest as somebody would who knows the checksum."""
    store.write_json(folder / FILE, changed(store.read(folder, verify=False), **changes))


def checkpoint(path, chosen: Case, change=lambda tensors: None):
    """The case's weights with a change, as a file."""
    tensors = load_file(chosen.path / "model.safetensors")
    change(tensors)
    save_file(tensors, path)
    return str(path)


# damage

KINDS = ["manifest.json", "weights.safetensors", "schedule.json", "step-000.onnx", "prologue.onnx", "segments/*.onnx"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "longer", "flipped"])
def test_a_damaged_file_is_named(copy, kind, damage):
    path = sorted(copy.glob(kind))[0]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    changed = {"empty": b"", "truncated": data[:-7], "longer": path.read_bytes() + b"\0", "flipped": bytes(data)}
    path.unlink() if damage == "missing" else path.write_bytes(changed[damage])
    with pytest.raises(ArtefactError, match=path.name) as error:
        l2c_export.load(copy)
    assert "\n" not in str(error.value)
    assert re.search("run l2c[-_]export", str(error.value))


@given(st.integers(0, 10**6), st.integers(1, 255))
def test_no_changed_byte_of_a_manifest_is_believed(tiny, position, change):
    data = bytearray((tiny[0] / FILE).read_bytes())
    whole = store.parse(bytes(data), FILE)
    data[position % len(data)] ^= change
    with contextlib.suppress(ArtefactError):
        assert store.parse(bytes(data), FILE) == whole


NOT_MANIFESTS = [
    b"[]",
    b"null",
    b"3",
    b'"x"',
    b"[" * 10**5,
    b'{"a":' * 10**5,
    b"{}",
    b'{"format":1}',
    b'{"format":"l2c-export"}',
]


@given(st.binary(max_size=60) | st.sampled_from(NOT_MANIFESTS))
def test_other_bytes_are_no_manifest(data):
    with pytest.raises(ArtefactError, match=r"m\.json"):
        store.parse(data, "m.json")


@pytest.mark.parametrize("change", [{"unheard_of": 1}, {"batch": "2"}, {"calls": None}, {"batch": 1}], ids=str)
def test_a_manifest_with_other_fields_is_refused(copy, change):
    data = json.loads((copy / FILE).read_text())
    (copy / FILE).write_text(json.dumps({**data, **change}))
    with pytest.raises(ArtefactError, match=r"manifest\.json"):
        l2c_export.load(copy)


@pytest.mark.parametrize("version", [0, VERSION + 1, "1", None])
def test_another_format_version_is_named(copy, version):
    data = json.loads((copy / FILE).read_text())
    (copy / FILE).write_text(json.dumps({**data, "version": version, "new_in_this_version": []}))
    with pytest.raises(ArtefactError, match=r"manifest\.json"):
        l2c_export.load(copy)
    if version in (0, VERSION + 1):
        with pytest.raises(ArtefactError, match=f"format version {version}, this release reads 1 to {VERSION}"):
            l2c_export.load(copy)


def test_a_reformatted_manifest_is_still_the_same(copy):
    (copy / FILE).write_text(json.dumps(json.loads((copy / FILE).read_text()), indent=2))
    assert l2c_export.load(copy)


@pytest.mark.parametrize("name", ["../outside", "segments/../../outside", "/etc/hostname", "nul\0byte"])
def test_a_path_out_of_the_artefact_is_refused(copy, name):
    (copy.parent / "outside").write_bytes(b"secret")
    files = store.read(copy).files
    edit(copy, files={**files, name: FileInfo(bytes=6, sha256="0" * 64)})
    with pytest.raises(ArtefactError, match="outside the artefact"):
        l2c_export.load(copy)
    assert (copy.parent / "outside").read_bytes() == b"secret"


@pytest.mark.parametrize("part", ["segments", "graphs"])
def test_an_engine_that_is_not_among_the_files_is_not_loaded(copy, part):
    sound = store.read(copy)
    parts = dict(sound.all_graphs() if part == "graphs" else sound.denoiser.segments)
    name = next(iter(parts))
    parts[name] = msgspec.structs.replace(parts[name], file="../evil.onnx")
    edit(copy, **{part: parts})
    with pytest.raises(ArtefactError, match=r"does not list \.\./evil\.onnx"):
        l2c_export.load(copy, verify=False)


@pytest.mark.parametrize("place", ["nowhere", "file", "empty"])
def test_no_artefact_at_all(tmp_path, place):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        ArtefactError, match="is a file: give the artefact's" if place == "file" else "holds no complete artefact"
    ):
        l2c_export.load(tmp_path / place)


# the output folder


@pytest.mark.parametrize("foreign", ["thesis.tex", "segments/notes.txt", ".hidden", "deep/er/file", "empty folder"])
@pytest.mark.parametrize("old", [False, True])
def test_a_folder_with_foreign_files_is_refused_and_kept(tiny, tmp_path, foreign, old):
    folder, chosen = tiny
    out = tmp_path / "out"
    shutil.copytree(folder, out) if old else out.mkdir()
    path = out / foreign
    path.mkdir(parents=True) if foreign == "empty folder" else path.parent.mkdir(parents=True, exist_ok=True)
    path.is_dir() or path.write_text("mine")
    before = tree(out)
    with pytest.raises(ArtefactError, match=foreign.split("/")[0]):
        compile_artefact(chosen.options(out))
    assert tree(out) == before
    assert path.exists()


def test_readme_and_gitignore_stay(tiny, tmp_path):
    _, chosen = tiny
    for name in ("README.md", ".gitignore"):
        (tmp_path / name).write_text(name)
    compile_artefact(chosen.options(tmp_path))
    compile_artefact(chosen.options(tmp_path))
    assert generate(tmp_path).shape == (2, 4, 8, 8)
    assert [(tmp_path / n).read_text() for n in ("README.md", ".gitignore")] == ["README.md", ".gitignore"]


def test_a_manifest_cannot_make_us_delete_what_is_not_ours(copy, tiny):
    keep = [copy.parent / "keep", copy / "README.md", copy.parent / "folder" / "file"]
    keep[2].parent.mkdir()
    for path in keep:
        path.write_text("mine")
    (copy / "linked").symlink_to(keep[2].parent)
    hostile = {n: FileInfo(bytes=4, sha256="0" * 64) for n in ("../keep", str(keep[0]), "README.md", "linked/file")}
    edit(copy, files={**store.read(copy).files, **hostile})
    with pytest.raises(ArtefactError, match="linked, which is not ours"):
        compile_artefact(tiny[1].options(copy))
    (copy / "linked").unlink()
    compile_artefact(tiny[1].options(copy))
    assert [p.read_text() for p in keep] == ["mine"] * 3


def test_an_artefact_replaces_an_older_one_of_any_format(copy):
    data = json.loads((copy / FILE).read_text())
    (copy / FILE).write_text(json.dumps({**data, "version": 0}))
    chosen = case("dit_batch3_no_cfg")
    compile_artefact(chosen.options(copy))
    assert set(tree(copy)) == {FILE, *store.read(copy).files}
    assert len(l2c_export.load(copy)([1, 2, 3]).latents) == 3


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(tiny, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ArtefactError, match="cannot be written: Permission denied"):
        compile_artefact(tiny[1].options(tmp_path / "out"))


def test_a_file_in_the_way(tiny, tmp_path):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(ArtefactError, match=f"out='{out}'"):
            compile_artefact(tiny[1].options(out))
    assert (tmp_path / "file").read_text() == "mine"


# weights that do not fit: nothing changes


def poison(value):
    def change(tensors):
        tensors["blocks.1.mlp.fc2.weight"][3, 5] = value

    return change


def drop(*names):
    return lambda tensors: [tensors.pop(n) for n in names]


def add(**extra):
    return lambda tensors: tensors.update({n.replace("__", "."): np.zeros(shape, np.float32) for n, shape in extra.items()})


BAD = {
    "nan": (poison(np.nan), ["1 value of blocks.1.mlp.fc2.weight is NaN or infinite"]),
    "inf": (poison(-np.inf), ["blocks.1.mlp.fc2.weight is NaN or infinite"]),
    "missing": (drop("pos_embed", "blocks.0.attn.proj.bias"), ["blocks.0.attn.proj.bias is missing", "pos_embed is missing"]),
    "extra": (add(lora__up=(2,)), ["lora.up is not part of the model"]),
    "shape": (add(blocks__2__attn__proj__bias=(7,)), ["blocks.2.attn.proj.bias has shape [7], the model needs [32]"]),
    "many": (add(a=(1,), b=(1,), c=(1,), d=(1,), e=(1,)), ["a is not", "b is not", "c is not", "and 2 more"]),
}


@pytest.mark.parametrize("bad", BAD)
def test_weights_that_do_not_fit_leave_everything_as_it_was(tiny, copy, tmp_path, bad):
    _, chosen = tiny
    change, says = BAD[bad]
    path = checkpoint(tmp_path / "bad.safetensors", chosen, change)
    before = tree(copy)
    for act in (
        lambda: compile_artefact(chosen.options(copy, weights=path)),
        lambda: compile_artefact(chosen.options(tmp_path / "new" / "out", weights=path)),
        lambda: link.bind(copy, path),
    ):
        with pytest.raises(WeightsError) as error:
            act()
        assert all(s in str(error.value) for s in says), error.value
        assert "\n" not in str(error.value)
    assert tree(copy) == before
    assert not (tmp_path / "new" / "out").exists()
    assert generate(copy).shape == (2, 4, 8, 8)


@pytest.mark.parametrize("data", [b"", b"not weights", b"\xff" * 100, None], ids=["empty", "text", "ones", "cut"])
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_files_that_are_no_weights(copy, tiny, tmp_path, data, suffix):
    good = (tiny[1].path / "model.safetensors").read_bytes()
    path = tmp_path / f"w.{suffix}"
    path.write_bytes(good[: len(good) // 2] if data is None else data)
    before = tree(copy)
    with pytest.raises(WeightsError, match=rf"w\.{suffix}"):
        link.bind(copy, str(path))
    assert tree(copy) == before


def test_an_interrupted_export_leaves_the_old_artefact(copy, tiny, monkeypatch):
    before = tree(copy)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(emit, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compile_artefact(tiny[1].options(copy))
    assert tree(copy) == before


# linking


def test_weights_can_come_later(tiny, tmp_path):
    chosen, said = tiny[1], []
    compile_artefact(chosen.options(tmp_path / "e", weights=None), said.append)
    assert any("no weights yet" in line and "l2c_export.link" in line for line in said)
    with pytest.raises(ArtefactError, match=r"no weights yet: bind them with l2c_export.link\('.*/e', weights='PATH'\)$"):
        l2c_export.load(tmp_path / "e")
    link.bind(tmp_path / "e", str(chosen.path / "model.safetensors"))
    compile_artefact(chosen.options(tmp_path / "f"), fingerprinted=False)  # which linking has no PyTorch for
    assert tree(tmp_path / "e") == tree(tmp_path / "f"), "linked later or compiled with them: the same bytes"


def test_swapping_weights_changes_the_result_and_nothing_else(copy, tiny, tmp_path):
    link.bind(copy, str(tiny[1].path / "model.safetensors"))  # the first one drops the fingerprint
    before, x = tree(copy), generate(copy)
    running = l2c_export.load(copy)
    finetune = checkpoint(tmp_path / "tuned + more.safetensors", tiny[1], lambda t: t["final_layer.linear.bias"].__iadd__(0.1))
    link.bind(copy, finetune)
    after, y = tree(copy), generate(copy)
    assert {n for n in before if before[n] != after[n]} == {"manifest.json", "weights.safetensors"}
    assert set(after) == set(before)
    bound = store.read(copy).denoiser.weights
    assert (bound.source, bound.loras) == ("tuned + more.safetensors", ()), "what a file is called says nothing of LoRAs"
    assert np.abs(y - x).max() > 0.01
    assert np.array_equal(running([1, 2], seed=3).latents, x), "who runs already keeps the old weights"
    link.bind(copy, str(tiny[1].path / "model.safetensors"))
    assert tree(copy) == before


def test_random_weights_follow_their_seed_and_are_marked(copy):
    link.bind(copy, "random:7")
    x = generate(copy)
    assert store.read(copy).denoiser.weights.random == 7
    link.bind(copy, "random:8")
    assert not np.array_equal(generate(copy), x)
    link.bind(copy, "random:7")
    assert np.array_equal(generate(copy), x)
    assert np.isfinite(x).all()


def test_the_weights_are_a_plain_safetensors_file(tiny):
    folder, chosen = tiny
    stored, original = load_file(folder / "weights.safetensors"), load_file(chosen.path / "model.safetensors")
    assert stored.keys() == original.keys()
    assert all(np.array_equal(stored[n], original[n]) for n in original)


def test_the_weights_begin_at_a_cache_line(tiny):
    with open(tiny[0] / "weights.safetensors", "rb") as file:
        assert (8 + int.from_bytes(file.read(8), "little")) % 64 == 0


def test_a_checkpoint_may_be_called_random(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [random.random_seed(text) for text in ("random", "random:7", "random.pt", "w.pt")] == [0, 7, None, None]
    (tmp_path / "random").write_text("")
    assert random.random_seed("random") is None


def test_random_weights_differ_from_tensor_to_tensor_and_norms_are_around_one():
    shapes = dict.fromkeys(("a.weight", "b.weight", "norm1.weight", "norm1.bias"), (64, 64))
    tensors = dict(random.random(shapes, 3))
    assert abs(tensors["a.weight"].std() - 0.02) < 1e-3
    assert {round(float(value.mean()), 2) for value in tensors.values()} == {0, 1}
    assert round(float(tensors["norm1.weight"].mean()), 2) == 1
    assert not np.array_equal(tensors["a.weight"], tensors["b.weight"])


def test_the_artefact_is_little_more_than_its_weights(tiny):
    folder, _ = tiny
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    assert size <= 1.02 * (folder / "weights.safetensors").stat().st_size + 2 * 2**20


DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_checkpoints_of_every_float_type(tiny, tmp_path, dtype, suffix):
    folder, chosen = tiny
    manifest = store.read(folder, verify=False)
    tensors = {n: torch.from_numpy(v).to(dtype) for n, v in load_file(chosen.path / "model.safetensors").items()}
    path = tmp_path / f"w.{suffix}"
    save_torch(tensors, path) if suffix == "safetensors" else torch.save({"ema": tensors}, path)
    for name, value in user_weights.tensors(path, manifest):
        assert value.dtype == np.float32
        assert np.array_equal(value, tensors[name].float().numpy()), name


def test_a_type_that_is_not_a_plain_float_is_named(tiny, copy, tmp_path):
    tensors = {n: torch.from_numpy(v) for n, v in load_file(tiny[1].path / "model.safetensors").items()}
    for dtype in (torch.float8_e4m3fn, torch.int64):
        others = {**tensors, "pos_embed": tensors["pos_embed"].to(dtype)}
        save_torch(others, tmp_path / "w.safetensors")
        torch.save(others, tmp_path / "w.pt")
        for name in ("w.safetensors", "w.pt"):
            with pytest.raises(WeightsError, match="pos_embed has dtype"):
                link.bind(copy, str(tmp_path / name))


def test_weights_of_another_family(tiny, tmp_path):
    unet = str(case("uvit_tiny_random0").path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"blocks\.0\.adaLN_modulation\.1\.bias is missing"):
        compile_artefact(tiny[1].options(tmp_path / "out", weights=unet))
    with pytest.raises(ModelError, match="is for a dit model, but the model is a uvit"):
        compile_artefact(tiny[1].options(tmp_path / "out", weights=unet, model=None))
    assert not (tmp_path / "out").exists()


# every step graph is a model of its own


@pytest.fixture(scope="module")
def elsewhere():
    """A process of its own: plain sessions want their own threads, which a process with a shared pool does not allow."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield pool


@pytest.mark.parametrize("name", ["dit_tiny_odd_resetN", "uvit_tiny_variant"])
def test_every_graph_passes_the_checker_and_runs_by_itself(name, tmp_path, elsewhere):
    chosen, folder = case(name), tmp_path / "e"
    compile_artefact(chosen.options(folder))
    for path in folder.rglob("*.onnx"):
        onnx.checker.check_model(str(path), full_check=True)
    x, labels = (chosen.golden[n][: chosen.config["batch"]] for n in ("x_T", "y"))
    alone = elsewhere.submit(standalone.denoise, folder, x, labels.tolist(), chosen.scale).result()
    ours = l2c_export.load(folder)(labels, chosen.scale, latents=x).latents
    assert np.abs(alone - ours).max() < 1e-5 * np.abs(ours).max()


def test_an_artefact_may_lie_inside_the_folder_of_another(tiny, tmp_path):
    """engines/demo, and later engines/."""
    chosen = tiny[1]
    compile_artefact(chosen.options(tmp_path / "engines" / "demo"))
    before = tree(tmp_path / "engines" / "demo")
    for _ in range(2):
        compile_artefact(chosen.options(tmp_path / "engines"))
    assert tree(tmp_path / "engines" / "demo") == before
    assert store.read(tmp_path / "engines")
    (tmp_path / "engines" / "thesis").mkdir()
    (tmp_path / "engines" / "thesis" / "manifest.json").write_text("{}")
    with pytest.raises(ArtefactError, match="holds thesis, which is not ours"):
        compile_artefact(chosen.options(tmp_path / "engines"))


def test_a_file_elsewhere_is_not_blamed_on_the_output_folder(tmp_path):
    with pytest.raises(ArtefactError) as caught, staging.staged(tmp_path / "out"):
        (tmp_path / "gone").read_bytes()
    assert str(caught.value) == f"{tmp_path / 'gone'}: No such file or directory: check the file and its disk"


def test_a_manifest_that_cannot_be_read_is_not_called_missing(tmp_path):
    """Who compiles again then would replace a good artefact."""
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(ArtefactError, match=r"manifest.json: cannot be read: Is a directory: check its permissions"):
        store.read(tmp_path)


def test_a_manifest_that_could_not_be_read_again_takes_no_place(tiny, tmp_path):
    """JSON has no NaN: msgspec writes null, which is no number."""
    manifest = store.read(tiny[0])
    (tmp_path / "manifest.json").write_text("the old one")
    call = msgspec.structs.replace(manifest.program().calls[0], coefficients=(float("nan"), 0.0, 0.0))
    with pytest.raises(ArtefactError, match=r"would not be read again: .*coefficients\[0\]"):
        store.write_json(tmp_path / "manifest.json", changed(manifest, calls=(call, *manifest.program().calls[1:])))
    assert (tmp_path / "manifest.json").read_text() == "the old one"
