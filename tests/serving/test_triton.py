"""The repository that `l2c triton` writes, and its models without a server."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from desk import invoke
from fake_triton import Error, Request, Tensor, Utils
from folders import GOLDEN, tree

import l2c_export
from l2c_export.artefact import staging
from l2c_export.serving import triton_model
from l2c_export.serving.triton import TritonOptions, write_repository
from l2c_export.serving.triton_model import TritonModel
from l2c_export.support import files


@pytest.fixture
def engines(tmp_path):
    """An artefact in a folder with a difficult name around it."""
    return shutil.copytree(GOLDEN, tmp_path / 'a "b" ünï' / "digits")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "models"


def parsed(model: Path) -> dict[str, object]:
    """A configuration as Triton's own protobuf reads it."""
    text_format = pytest.importorskip("google.protobuf.text_format")
    config = pytest.importorskip("tritonclient.grpc.model_config_pb2")
    return text_format.Parse((model / "config.pbtxt").read_text(), config.ModelConfig())


def test_the_manifest_decides_names_shapes_and_batch(engines, out):
    assert write_repository([engines], out, TritonOptions(max_queue=7, max_wait_ms=2.5)) == ["digits", "digits_previews"]
    assert sorted(tree(out)) == [
        "digits/1/model.py",
        "digits/config.pbtxt",
        "digits_previews/1/model.py",
        "digits_previews/config.pbtxt",
    ]
    manifest, read = l2c_export.load(engines).manifest, parsed(out / "digits")
    assert (read.name, read.backend, read.max_batch_size) == ("digits", "python", manifest.batch)
    assert [(i.name, list(i.dims), i.optional) for i in read.input] == [
        ("class_labels", [1], False), ("seed", [1], True), ("guidance_scale", [1], True)]  # fmt: skip
    assert list(read.output[0].dims) == list(manifest.program().latent)
    assert read.parameters["artefact"].string_value == str(engines)
    assert read.dynamic_batching.default_queue_policy.max_queue_size == 7
    assert read.dynamic_batching.max_queue_delay_microseconds == 2500
    twin = parsed(out / "digits_previews")
    assert (twin.model_transaction_policy.decoupled, read.model_transaction_policy.decoupled) == (True, False)
    assert [output.name for output in twin.output][-1] == "step"


def test_texts_for_an_artefact_with_encoders(prompted_by, out):
    write_repository([prompted_by("sd3").out], out, TritonOptions())
    read = parsed(next(out.glob("*[!s]")))
    assert [(i.name, i.optional) for i in read.input][:2] == [("prompt", False), ("negative_prompt", True)]


def test_models_of_others_stay_and_ours_are_replaced(engines, out, tmp_path):
    write_repository([engines], out, TritonOptions(max_queue=7))
    other = shutil.copytree(GOLDEN, tmp_path / "other")
    assert write_repository([other], out, TritonOptions(previews=False)) == ["other"]
    write_repository([engines], out, TritonOptions(max_queue=9))
    assert sorted(path.name for path in out.iterdir()) == ["digits", "digits_previews", "other"]
    assert "max_queue_size: 9" in (out / "digits/config.pbtxt").read_text()


def test_a_full_disk_changes_nothing(engines, out, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    write_repository([engines], out, TritonOptions(max_queue=7))
    before = tree(out)
    monkeypatch.setattr("l2c_export.serving.triton.sync_tree", full)
    with pytest.raises(l2c_export.ArtefactError, match="cannot be written: No space left on device: choose another folder"):
        write_repository([engines], out, TritonOptions(max_queue=9))
    assert tree(out) == before
    with pytest.raises(l2c_export.ArtefactError):
        write_repository([engines], out.with_name("new"), TritonOptions())
    assert not out.with_name("new").exists()


@pytest.mark.parametrize("moment", range(8))
def test_whenever_it_is_killed_every_model_is_whole(engines, out, moment, monkeypatch):
    """Killed at the n-th change of names; what a server sees is whole, and the next writer sweeps up."""
    write_repository([engines], out, TritonOptions(max_queue=7, previews=False))
    count = iter(range(100))

    def killed(move):
        def act(*paths):
            if next(count) == moment:
                raise KeyboardInterrupt
            return move(*paths)

        return act

    monkeypatch.setattr(os, "rename", killed(os.rename))
    monkeypatch.setattr(os, "replace", killed(os.replace))
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
    with contextlib.suppress(KeyboardInterrupt):
        write_repository([engines], out, TritonOptions(max_queue=9))
    monkeypatch.undo()
    for model in out.glob("[!.]*"):
        assert sorted(tree(model)) == ["1/model.py", "config.pbtxt"]
        parsed(model)
    write_repository([engines], out, TritonOptions(max_queue=9))
    assert sorted(path.name for path in out.iterdir()) == ["digits", "digits_previews"]


@pytest.mark.parametrize(("line", "code", "says"), [
    ("triton --out models", 2, "Missing argument 'ENGINES', or '--model demo'"),
    ("triton --model dog --out models", 2, "only demo and emoji can be served by name"),
    ("triton absent --out models", 1, "absent holds no complete artefact"),
    ("triton digits --out models --max-queue 0", 2, "--max-queue 0: must be at least 1"),
    ("triton digits --out models --max-wait-ms -1", 2, "--max-wait-ms -1: must be from 0 to 60000"),
    ("triton digits --out models --threads 0", 2, "--threads 0: must be at least 1"),
    ("triton digits ./digits --out models", 2, "two would be models of one name: rename one of the folders"),
    ("triton 'a b' --out models", 2, "no model of Triton can be called 'a b': rename it"),
    ("triton digits --out taken", 1, "--out taken: holds digits, which is not ours: choose another folder"),
    ("triton unlinked --out models", 1, "unlinked has no weights yet"),
])  # fmt: skip
def test_what_is_wrong_is_said_in_a_line_and_nothing_is_written(line, code, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("digits", "a b", "unlinked"):
        shutil.copytree(GOLDEN, name)
    unlink(Path("unlinked"))
    Path("taken/digits").mkdir(parents=True)
    before = sorted(Path().rglob("*"))
    done = invoke(line)
    assert done.exit_code == code
    assert says in done.stderr
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert sorted(Path().rglob("*")) == before


def unlink(folder: Path) -> None:
    import msgspec

    from l2c_export.artefact import store
    from l2c_export.artefact.records import FILE

    manifest = store.read(folder)
    bare = msgspec.structs.replace(manifest.denoiser, weights=None)
    store.write_json(folder / FILE, msgspec.structs.replace(manifest, denoiser=bare, fingerprint=msgspec.UNSET))


def test_the_command_says_what_it_has_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(GOLDEN, "digits")
    done = invoke("triton digits --out models --no-previews --json")
    assert json.loads(done.stdout) == {"out": "models", "models": ["digits"]}
    assert done.stderr == "models: digits\n"


def test_a_model_that_ships_is_called_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = invoke("triton --model emoji --out models --no-previews --json")
    assert json.loads(done.stdout) == {"out": "models", "models": ["emoji"]}
    assert 'name: "emoji"' in Path("models/emoji/config.pbtxt").read_text()


# the program


def program(out: Path, monkeypatch) -> types.ModuleType:
    """The model.py of a repository, imported as the backend does it."""
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", Utils)
    monkeypatch.setattr(sys, "path", list(sys.path))
    module = types.ModuleType("model")
    exec((out / "digits/1/model.py").read_text(), module.__dict__)
    return module


def started(folder: Path, monkeypatch, decoupled: bool = False) -> TritonModel:
    class Model(TritonModel):
        utils = Utils

    model = Model()
    chosen = {"artefact": str(folder), "backend": "onnxruntime", "device": "", "threads": "1", "verify": "1"}
    parameters = {name: {"string_value": value} for name, value in chosen.items()}
    config = {"name": "digits", "parameters": parameters, "model_transaction_policy": {"decoupled": decoupled}}
    model.initialize({"model_config": json.dumps(config)})
    return model


@pytest.fixture
def model(wide, monkeypatch):
    instance = started(wide, monkeypatch)
    yield instance
    instance.finalize()


def test_the_program_finds_the_package_and_says_if_it_does_not(engines, out, monkeypatch):
    write_repository([engines], out, TritonOptions())
    assert issubclass(program(out, monkeypatch).TritonPythonModel, TritonModel)
    assert len((out / "digits/1/model.py").read_text().splitlines()) <= 20
    monkeypatch.setitem(sys.modules, "l2c_export.serving.triton_model", None)
    with pytest.raises(Error, match=r"the Python 3\.\d+ of this server lacks it: install l2c-export"):
        program(out, monkeypatch)


def test_an_artefact_that_cannot_be_loaded_is_a_line(tmp_path, monkeypatch):
    with pytest.raises(Error, match="holds no complete artefact"):
        started(tmp_path, monkeypatch)


def test_texts_become_prompts(prompted_by, monkeypatch):
    folder, texts = prompted_by("sd3").out, {"prompt": ["a cat", "日本語の文"], "negative_prompt": ["blurry", ""]}
    model, pipe = started(folder, monkeypatch), l2c_export.load(folder, backend="onnxruntime", threads=1)
    sent = {name: np.array([text.encode() for text in column], object) for name, column in texts.items()}
    (answer,) = model.execute([Request(**sent, seed=[4, 9])])
    assert np.array_equal(answer["latents"], pipe(**texts, seed=[4, 9], output_type="latent").latents)
    (answer,) = model.execute([Request(prompt=np.array([b"\xff"], object))])
    assert (str(answer.error), answer.error.code) == ("prompt: is no text in UTF-8: send it as such", Error.INVALID_ARG)
    model.finalize()


def test_a_server_that_cannot_read_texts_is_told_so_before_it_tries(prompted_by, wide, monkeypatch):
    monkeypatch.setattr(Tensor, "numpy_knows", False)
    with pytest.raises(Error, match=r"this server reads no texts with numpy .*: install 'numpy<2' for it"):
        started(prompted_by("sd3").out, monkeypatch)
    model = started(wide, monkeypatch)  # numbers go by DLPack
    (answer,) = model.execute([Request(class_labels=np.array([3, 4], np.int32))])
    assert np.array_equal(answer["latents"], model.pipe([3, 4]).latents)
    model.finalize()


# who leaves


class Clock:
    """Counts the steps of a pipeline."""

    def __init__(self, pipe, monkeypatch):
        self.steps = 0
        own = type(pipe._loops.loop(pipe.manifest.program(), 2, True)).__dict__["_check"]

        def counted(loop, cancel, index):
            own(loop, cancel, index)
            self.steps += 1

        monkeypatch.setattr("l2c_export.runtime.loop.Loop._check", counted)


def test_a_batch_that_nobody_waits_for_ends(model, monkeypatch):
    monkeypatch.setattr(triton_model, "LOOK", 0.001)
    clock = Clock(model.pipe, monkeypatch)
    slow = slowly(monkeypatch)
    (answer,) = model.execute([Request(left=lambda: clock.steps >= 3, class_labels=[1, 2])])
    assert answer.error.code == Error.CANCELLED
    assert slow
    assert clock.steps <= 4  # at most one more
    before = clock.steps
    (answer,) = model.execute([Request(left=lambda: True, class_labels=[1])])
    assert (str(answer.error), clock.steps - before) == ("cancelled", 0)


def slowly(monkeypatch) -> bool:
    """A step takes as long as one of a large model."""
    import time

    from l2c_export.runtime import loop

    monkeypatch.setattr(loop, "stop", lambda: time.sleep(0.05))
    return True


def test_a_batch_that_somebody_waits_for_goes_on(model):
    asked = [Request(left=iter([False, *[True] * 1000]).__next__, class_labels=[1]), Request(class_labels=[2], seed=[5])]
    left, stayed = model.execute(asked)
    assert stayed.error is None
    assert np.array_equal(stayed["latents"], model.pipe([2], seed=5).latents)
    assert left.error is None or left.error.code == Error.CANCELLED


def test_an_error_inside_is_told_without_its_insides(model, monkeypatch):
    def broken(*_, **__):
        raise ValueError("/home/me/secret")

    monkeypatch.setattr(type(model.pipe), "__call__", broken)
    (answer,) = model.execute([Request(class_labels=[1])])
    assert answer.error.code == Error.INTERNAL
    assert "secret" not in str(answer.error)


def test_latents_that_are_no_numbers_are_an_error(model, monkeypatch):
    own = type(model.pipe).__call__

    def spoilt(*positional, **named):
        output = own(*positional, **named)
        output.latents[0] = np.nan
        return output

    monkeypatch.setattr(type(model.pipe), "__call__", spoilt)
    bad, good = model.execute([Request(class_labels=[1]), Request(class_labels=[2])])
    assert bad.error.code == Error.INTERNAL
    assert "NaN or infinite" in Utils.Logger.lines[-1]
    assert good.error is None


def test_a_stream_ends_once(wide, monkeypatch):
    model = started(wide, monkeypatch, decoupled=True)
    asked = [Request(class_labels=[1, 2], previews=[2, 2]), Request(class_labels=[99]), Request(class_labels=[3], previews=[0])]
    assert model.execute(asked) is None
    assert [[flags for _, flags in request.sent] for request in asked] == [[0, 0, 1], [1], [1]]
    assert [response["step"].tolist() for response, _ in asked[0].sent] == [[[2], [2]], [[5], [5]], [[7], [7]]]
    model.finalize()


def test_what_is_written_is_on_the_disk(engines, out, monkeypatch):
    synced = []
    monkeypatch.setattr(files, "sync", synced.append)
    monkeypatch.setattr("l2c_export.serving.triton.sync", synced.append)
    write_repository([engines], out, TritonOptions())
    assert out in synced
    assert [path.name for path in synced if path.name == "config.pbtxt"]
    assert not list(out.glob(f"{staging.PARTIAL}*"))
