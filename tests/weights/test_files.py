"""Files as they come: what they are is decided by what is in them, and each reader says what it was given instead."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from l2c_export.compiler.request import Options
from l2c_export.compiler.source import resolve
from l2c_export.errors import L2CError, ScheduleError, WeightsError
from l2c_export.schedules import routers
from l2c_export.support import file_kind
from l2c_export.weights.checkpoint import open_checkpoint

ARCH = {"input_size": 8, "hidden_size": 32, "depth": 2, "num_heads": 2, "num_classes": 10}
MODEL = {"family": "dit", "arch": ARCH}
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 2700000000\n"
PAGE = b"\n<!DOCTYPE html><html>Login</html>"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A good file of every kind, under names that say nothing."""
    folder = tmp_path_factory.mktemp("world")
    tensors = {"x_embedder.proj.weight": torch.randn(32, 4, 2, 2), "pos_embed": torch.randn(1, 16, 32)}
    save_file(tensors, folder / "safetensors")
    torch.save(tensors, folder / "zip")
    torch.save(tensors, folder / "legacy", _use_new_zipfile_serialization=False)
    torch.save({"routers": {f"{i}.prob": torch.zeros(4) for i in range(4)}}, folder / "router")
    (folder / "model").write_text(json.dumps(MODEL))
    chosen = Options(schedule="every:2", steps=4, model=str(folder / "model"), weights="random")
    (folder / "schedule").write_bytes(resolve(chosen).schedule.to_json())
    (folder / "scheduler").write_text(json.dumps({"_class_name": "DDIMScheduler", "clip_sample": False}))
    (folder / "index").write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(tensors, "safetensors")}))
    (folder / "mask").write_text("[1, 0, 0, 1]")
    return folder, tensors


def asked(folder, **options):
    return resolve(Options(**{"schedule": "every:2", "steps": 4, "model": str(folder / "model"), **options}))


# names say nothing


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy", "index"])
@pytest.mark.parametrize("name", ["blob", "w.pt", "w.safetensors", "W.SAFETENSORS", "w.json", "w.bin"])
def test_weights_are_read_whatever_they_are_called(world, tmp_path, kind, name):
    folder, tensors = world
    shutil.copy(folder / kind, tmp_path / name)
    shutil.copy(folder / "safetensors", tmp_path / "safetensors")
    checkpoint = open_checkpoint(tmp_path / name)
    assert checkpoint.shapes == {n: tuple(t.shape) for n, t in tensors.items()}
    assert all(np.array_equal(checkpoint.read(n), t.numpy()) for n, t in tensors.items())


@pytest.mark.parametrize("name", ["blob", "s.txt", "s.json", "s.pt", "s.JSON"])
def test_schedules_routers_models_and_schedulers_are_read_whatever_they_are_called(world, tmp_path, name):
    folder, _ = world
    path = tmp_path / name

    def named(kind):
        shutil.copy(folder / kind, path)
        return str(path)

    plain = asked(folder, weights="random")
    assert asked(folder, schedule=named("schedule"), steps=None, weights="random").schedule.calls == plain.schedule.calls
    assert len(asked(folder, schedule=named("router"), steps=None, weights="random").schedule.calls) == 4
    assert [len(c.reused) for c in asked(folder, schedule=named("mask"), steps=None, weights="random").schedule.calls] == [
        0,
        4,
        4,
        0,
    ]
    assert asked(folder, model=named("model"), weights="random").family.arch == plain.family.arch
    assert asked(folder, sampler=named("scheduler"), weights="random").schedule.sampler == "DDIMScheduler"


@pytest.mark.parametrize("kind", ["schedule", "mask", "model", "scheduler", "index"])
def test_a_byte_order_mark_changes_nothing_and_utf_16_is_named(world, tmp_path, kind):
    folder, _ = world
    shutil.copy(folder / "safetensors", tmp_path / "safetensors")
    option = {"mask": "schedule", "scheduler": "sampler", "index": "weights"}.get(kind, kind)
    more = {"weights": "random", **({"steps": None} if option == "schedule" else {})}

    def reading(text):
        (tmp_path / "x.json").write_bytes(text)
        if kind == "index":
            return open_checkpoint(tmp_path / "x.json").shapes
        return asked(folder, **{**more, option: str(tmp_path / "x.json")}).schedule

    text = (folder / kind).read_text()
    assert reading(text.encode("utf-8-sig")) == reading(text.encode())
    with pytest.raises(L2CError, match="UTF-16, as PowerShell writes it: give it in UTF-8"):
        reading(text.encode("utf-16"))


# other kinds


def archive(**entries):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, data in entries.items():
            file.writestr(name.replace("__", "/").replace("_pkl", ".pkl").replace("_npy", ".npy"), data)
    return buffer.getvalue()


def scripted():
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), buffer)
    return buffer.getvalue()


def array():
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


def tar():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        file.addfile(tarfile.TarInfo("model.pt"))
    return buffer.getvalue()


def onnx_model():
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value], [value])
    return helper.make_model(graph, producer_name="pytorch").SerializeToString()


OTHERS = {
    "empty": (lambda: b"", "it is empty: download or save it again"),
    "pointer": (lambda: POINTER, "it is a pointer of Git LFS, not what it points to: download the file itself, as with git"),
    "page": (lambda: PAGE, "it is a web page, perhaps of an error or a login: download the file itself"),
    "denied": (lambda: b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "it is a web page"),
    "gguf": (lambda: b"GGUF\3\0\0\0" + bytes(64), "it is a GGUF file"),
    "npz": (lambda: archive(a_npy=array()), "it is an .npz archive of NumPy"),
    "npy": (array, "it is an .npy array of NumPy"),
    "zip": (lambda: archive(readme="x"), "it is a zip archive, but no checkpoint: give the file that is inside"),
    "script": (scripted, "it is a TorchScript archive: give its state_dict()"),
    "tar": (tar, "it is a tar archive: give the file that is inside"),
    "gzip": (lambda: b"\x1f\x8b\x08\0" + bytes(64), "it is packed with gzip: give the file that is inside"),
    "hdf5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(64), "it is an HDF5 file"),
    "tensorflow": (lambda: b"\0\1\2" * 30 + bytes.fromhex("57fb808b247547db"), "it is a checkpoint of TensorFlow"),
    "onnx": (onnx_model, "it is an ONNX model: give the checkpoint that it was exported from"),
    "pickle": (lambda: b"\x80\x04]\x94.", "it is a pickle, but not one of torch.save: give the state_dict"),
    "text": (lambda: "ein Brief an die Mütter\n".encode(), "it is a text: give"),
    "conflict": (lambda: b"<<<<<<< HEAD\n{}\n=======\n{}\n>>>>>>> x\n", "it is a text with the marks of a merge conflict"),
    "noise": (lambda: bytes(range(1, 256)), "it is of no kind that is known here: give"),
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("name", ["blob", "x.pt", "x.safetensors", "x.json"])
def test_a_file_of_another_kind_is_named_and_never_called_damaged(world, tmp_path, kind, name):
    make, says = OTHERS[kind]
    path = tmp_path / name
    path.write_bytes(make())
    for option in ("weights", "schedule", *(("model", "sampler") if kind not in ("text", "noise") else ())):
        with pytest.raises(L2CError) as error:
            asked(world[0], **{"weights": "random", option: str(path)})
        said = str(error.value)
        assert str(path) in said
        assert "damaged" not in said
        if option in ("weights", "schedule") and not (name == "x.json" and option == "schedule" and kind in ("text", "noise")):
            assert says in said, option


CONFUSED = {
    ("weights", "router"): "it is a router: give it with schedule=..",
    ("weights", "schedule"): "it is a schedule: give it with schedule=..",
    ("weights", "model"): "it is a description of a model: give it with model=..",
    ("weights", "scheduler"): "it is the configuration of a scheduler: give it with sampler=..",
    ("schedule", "safetensors"): "it is a .safetensors file: give weights with weights=..",
    ("schedule", "zip"): "instead of 0.prob, 1.prob, ..: give weights with weights=..",
    ("schedule", "legacy"): "instead of 0.prob, 1.prob, ..: give weights with weights=..",
    ("schedule", "model"): "it is a description of a model: give it with model=..",
    ("schedule", "scheduler"): "it is the configuration of a scheduler: give it with sampler=..",
    ("schedule", "index"): "it is an index of weights: give it with weights=..",
    ("model", "schedule"): "it is a schedule: give it with schedule=..",
    ("model", "scheduler"): "it is the configuration of a scheduler: give it with sampler=..",
    ("model", "index"): "it is an index of weights: give it with weights=..",
    ("model", "safetensors"): "it is a .safetensors file: give weights with weights=..",
    ("sampler", "schedule"): "it is a schedule: give it with schedule=..",
    ("sampler", "model"): "it is a description of a model: give it with model=..",
    ("sampler", "index"): "it is an index of weights: give it with weights=..",
}


@pytest.mark.parametrize(("option", "kind"), CONFUSED, ids="-".join)
def test_a_file_given_to_the_wrong_option_is_told_the_right_one(world, option, kind):
    folder, _ = world
    with pytest.raises(L2CError) as error:
        asked(folder, **{"weights": "random", option: str(folder / kind)})
    assert CONFUSED[option, kind] in str(error.value)


def test_a_truncated_file_keeps_its_kind(world, tmp_path):
    for kind in ("safetensors", "zip", "legacy"):
        data = (world[0] / kind).read_bytes()
        for share in (0.3, 0.6, 0.95):
            (tmp_path / "cut").write_bytes(data[: int(len(data) * share)])
            with pytest.raises(WeightsError, match="truncated") as error:
                open_checkpoint(tmp_path / "cut")
            assert "another" not in str(error.value)


@pytest.mark.parametrize(("text", "calls"), [
    ({"cache_config": {"steps_computation_mask": [1, 0, 1, 0]}}, [0, 4, 0, 4]),
    ({"mask": [1, 0, 1]}, [0, 4, 0]), ("1001", [0, 4, 4, 0]), ([True, False], [0, 4]),
], ids=str)  # fmt: skip
def test_steps_masks_are_read_where_other_tools_keep_them(world, tmp_path, text, calls):
    (tmp_path / "mask").write_text(json.dumps(text))
    schedule = asked(world[0], schedule=str(tmp_path / "mask"), steps=None, weights="random").schedule
    assert [len(call.reused) for call in schedule.calls] == calls


@pytest.mark.parametrize("text", [["1", "0"], [], "12", {"cache_config": {"mask": "often"}}, [1, 2]], ids=str)
def test_what_may_mean_something_else_is_no_mask(world, tmp_path, text):
    (tmp_path / "mask").write_text(json.dumps(text))
    with pytest.raises(ScheduleError):
        asked(world[0], schedule=str(tmp_path / "mask"), steps=None, weights="random")


# types


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.int8]
)
@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_types_are_read_or_refused_by_name(world, tmp_path, dtype, kind):
    tensors = {n: (t * 3).to(dtype) for n, t in world[1].items()}
    path = tmp_path / "w"
    if kind == "safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=kind == "zip")
    if dtype.itemsize == 1:
        with pytest.raises(WeightsError, match=r"pos_embed|x_embedder.* has dtype (float8|F8|int8|I8)"):
            open_checkpoint(path)
    else:
        checkpoint = open_checkpoint(path)
        assert all(np.array_equal(checkpoint.read(n), t.float().numpy()) for n, t in tensors.items())


def test_metadata_of_safetensors_are_ignored(world, tmp_path):
    save_file(world[1], tmp_path / "w", metadata={"format": "pt", "step": "5"})
    assert set(open_checkpoint(tmp_path / "w").shapes) == set(world[1])


def test_what_is_json_by_name_only_is_told_so(world, tmp_path):
    assert file_kind.is_json(tmp_path / "absent.json")
    shutil.copy(world[0] / "router", tmp_path / "router.json")
    assert not file_kind.is_json(tmp_path / "router.json")
    assert routers.read(tmp_path / "router.json").columns == 4
