"""Data of all forms are read, and refused in one line."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from small_trainings import desk, invoke
from vector import VECTOR, Vector, VectorArch, described

from l2c_export.errors import UsageError
from l2c_export.models import lookup
from l2c_export.models.families import FAMILIES
from l2c_export.schedules import routers
from l2c_export.training import data
from l2c_export.training.lessons import dropped
from l2c_export.training.options import TrainingOptions
from l2c_export.training.training import Training

pytestmark = pytest.mark.usefixtures("one_thread")


def test_images_of_all_forms_are_the_same(tmp_path):
    family = lookup.resolve(str(pixel_model(tmp_path, 1)), None, None, None).family
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 1), np.uint8)
    floats = pixels.transpose(0, 3, 1, 2).astype(np.float64) / 127.5 - 1
    read = []
    for n, arrays in enumerate([{"images": pixels}, {"images": pixels[..., 0]}, {"images": floats}, {"latents": floats}]):
        np.savez(tmp_path / f"{n}.npz", **arrays, labels=np.arange(5) % 3)
        read.append(data.read(tmp_path / f"{n}.npz", family))
    for samples in read:
        assert samples.values.dtype == np.float32
        assert np.allclose(samples.values, floats, atol=1e-6)
        assert samples.inputs["class_labels"].tolist() == [0, 1, 2, 0, 1]


def pixel_model(folder, channels):
    arch = {"input_size": 4, "in_channels": channels, "hidden_size": 16, "depth": 1, "num_heads": 2, "num_classes": 3}
    path = folder / "pixels.json"
    path.write_text(json.dumps({"family": "dit", "arch": arch}))
    return path


FINE = {"latents": np.zeros((2, 1, 4, 4), np.float32), "labels": np.array([0, 2])}


@pytest.mark.parametrize(("arrays", "problem"), [
    ({"labels": FINE["labels"]}, "holds neither `latents` nor `images` (but labels)"),
    ({"latents": FINE["latents"]}, "holds no `labels` (but latents)"),
    ({**FINE, "latents": np.zeros((2, 4, 4, 4), np.float32)}, "`latents` are (2, 4, 4, 4) as (N, C, H, W): the model needs"),
    ({**FINE, "latents": np.zeros((0, 1, 4, 4), np.float32)}, "`latents` are (0, 1, 4, 4) as"),
    ({**FINE, "latents": np.zeros((2, 1, 4, 4), int)}, "`latents` are int64 of shape (2, 1, 4, 4): use floats"),
    ({**FINE, "latents": np.full((2, 1, 4, 4), np.nan)}, "`latents` hold NaN or infinite values"),
    ({"images": FINE["latents"] + 3, "labels": FINE["labels"]}, "`images` reach 3: scale them to -1..1"),
    ({"images": np.zeros((2, 4, 4, 4), np.uint8), "labels": FINE["labels"]}, "`images` are (2, 4, 4, 4) as"),
    ({**FINE, "labels": np.array([0, 3])}, "`labels` from 0 to 3: the model has 0 to 2"),
    ({**FINE, "labels": np.array([-1, 2])}, "`labels` from -1 to 2: the model has 0 to 2"),
    ({**FINE, "labels": np.array([0.0, 1.0])}, "`labels` are float64 of shape (2,): use 2 whole numbers"),
    ({**FINE, "labels": np.array([0])}, "`labels` are int64 of shape (1,)"),
    ({**FINE, "labels": np.array([None, {}], object)}, "cannot be read: Object arrays cannot be loaded"),
], ids=range(13))  # fmt: skip
def test_data_that_cannot_be_used_are_refused(tmp_path, arrays, problem):
    np.savez(tmp_path / "data.npz", **arrays)
    family = lookup.resolve(str(pixel_model(tmp_path, 1)), None, None, None).family
    with pytest.raises(UsageError, match=re.escape(f"data.npz': {problem}")):
        data.read(tmp_path / "data.npz", family)


def test_labels_and_latents_may_have_an_axis_of_their_own(tmp_path):
    family = lookup.resolve(str(pixel_model(tmp_path, 1)), None, None, None).family
    latents = np.random.default_rng(0).standard_normal((2, 1, 4, 4), np.float32)
    np.savez(tmp_path / "data.npz", latents=latents[:, None].astype(np.float16), labels=np.array([[2], [0]]))
    samples = data.read(tmp_path / "data.npz", family)
    assert np.array_equal(samples.values, latents.astype(np.float16))
    assert samples.inputs["class_labels"].tolist() == [2, 0]


def features(folder, latents, labels, shape=(1,)):
    """As fast-DiT's extract_features.py leaves them."""
    for kind, values in (("features", latents), ("labels", labels)):
        (folder / f"imagenet256_{kind}").mkdir(parents=True)
        for n, value in enumerate(values):
            np.save(folder / f"imagenet256_{kind}" / f"{n}.npy", value if kind == "features" else np.full(shape, value))
    return folder


@pytest.mark.parametrize("shape", [(1,), (1, 1), ()], ids=str)
def test_a_folder_of_features_is_read_when_it_is_taken(tmp_path, monkeypatch, shape):
    family = lookup.resolve(str(pixel_model(tmp_path, 1)), None, None, None).family
    latents = np.random.default_rng(0).standard_normal((12, 1, 1, 4, 4), np.float32)
    folder = features(tmp_path / "data", latents, np.arange(12) % 3, shape)
    read, real = [], np.load
    monkeypatch.setattr(np, "load", lambda path, **options: (read.append(path), real(path, **options))[1])
    samples = data.read(folder, family)
    assert samples.inputs["class_labels"].tolist() == [0, 1, 2] * 4  # 2.npy is before 10.npy
    assert sum(path.parent.name == "imagenet256_features" for path in read) == 1
    assert np.array_equal(samples.values[[11, 2, 11]], latents[[11, 2, 11], 0])


def test_a_router_is_trained_on_a_folder_of_features_as_on_an_npz(tmp_path):
    line = desk(tmp_path, "dit") + " --steps 4 --batch 2 --iterations 2"
    latents = np.random.default_rng(0).standard_normal((4, 1, 4, 8, 8), np.float32)
    np.savez(tmp_path / "data.npz", latents=latents[:, 0], labels=np.arange(4))
    folder = features(tmp_path / "data", latents, np.arange(4))
    for name, path in (("npz", tmp_path / "data.npz"), ("folder", folder)):
        done = invoke(f"{line} --data {path} --out {tmp_path / name}")
        assert done.exit_code == 0, done.stderr
    assert torch.equal(*(routers.read(tmp_path / name / "router.pt").logits for name in ("npz", "folder")))


@pytest.mark.parametrize(("change", "problem"), [
    (lambda f: shutil.rmtree(f / "imagenet256_labels"), "data: must hold one folder *features and one *labels, of *lab"),
    (lambda f: (f / "other_features").mkdir(), "and one *labels, of *features it has imagenet256_features, o"),
    (lambda f: (f / "imagenet256_labels/1.npy").unlink(), "data: 1.npy has features, but no label"),
    (lambda f: (f / "imagenet256_features/1.npy").unlink(), "data: 1.npy has a label, but no features"),
    (lambda f: [p.unlink() for p in (f / "imagenet256_features").iterdir()], "imagenet256_features: holds no .npy files"),
    (lambda f: np.save(f / "imagenet256_features/0.npy", np.zeros((1, 4, 4, 4))), "0.npy: float64 of shape (1, 4, 4, 4): the"),
    (lambda f: np.save(f / "imagenet256_features/0.npy", np.full((1, 1, 4, 4), np.nan)), "0.npy: holds NaN or infinite values"),
    (lambda f: (f / "imagenet256_features/0.npy").write_bytes(b"x"), "0.npy: cannot be read"),
    (lambda f: np.save(f / "imagenet256_labels/0.npy", np.zeros(3, int)), "0.npy: int64 of shape (3,): use one whole number"),
    (lambda f: np.save(f / "imagenet256_labels/0.npy", np.array([7])), "data: `labels` from 1 to 7: the model has 0 to 2"),
    (lambda f: np.save(f / "imagenet256_labels/0.npy", np.array([None]), allow_pickle=True), "0.npy: cannot be read: Object"),
], ids=range(11))  # fmt: skip
def test_folders_that_cannot_be_used_are_refused(tmp_path, change, problem):
    family = lookup.resolve(str(pixel_model(tmp_path, 1)), None, None, None).family
    folder = features(tmp_path / "data", np.zeros((2, 1, 1, 4, 4), np.float32), [0, 1])
    change(folder)
    with pytest.raises(UsageError, match=re.escape(problem.replace(": ", "': ", 1))):
        data.read(folder, family)


# what is no label


@pytest.fixture
def vectors(monkeypatch, tmp_path):
    """A family that is told a vector, its weights, and curves to train on."""
    monkeypatch.setitem(FAMILIES, VECTOR.name, VECTOR)
    chance = np.random.default_rng(0)
    arrays = {"latents": chance.standard_normal((4, 3, 6), np.float32), "condition": chance.standard_normal((4, 5), np.float32)}
    np.savez(tmp_path / "data.npz", **arrays)
    shapes = Vector(VectorArch()).tensors()
    save_file({n: chance.standard_normal(s).astype(np.float32) / 2 for n, s in shapes.items()}, tmp_path / "w.safetensors")
    return arrays


def test_what_a_model_is_told_is_an_array_of_its_name(vectors, tmp_path):
    samples = data.read(tmp_path / "data.npz", Vector(VectorArch()))
    assert samples.inputs.keys() == {"condition"}
    assert np.array_equal(samples.inputs["condition"], vectors["condition"])
    assert samples.inputs["condition"].dtype == np.float32


@pytest.mark.parametrize(("change", "problem"), [
    ({"condition": None}, "holds no `condition` (but latents)"),
    ({"condition": np.zeros((4, 4), np.float32)}, "`condition` are float32 of shape (4, 4): use floats (4, 5)"),
    ({"condition": np.zeros((4, 5), int)}, "`condition` are int64 of shape (4, 5): use floats (4, 5)"),
    ({"condition": np.full((4, 5), np.nan)}, "`condition` hold NaN or infinite values"),
], ids=range(4))  # fmt: skip
def test_what_a_model_cannot_be_told_is_refused(vectors, tmp_path, change, problem):
    arrays = {name: value for name, value in {**vectors, **change}.items() if value is not None}
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(UsageError, match=re.escape(problem)):
        data.read(tmp_path / "data.npz", Vector(VectorArch()))


def test_a_folder_of_labels_is_none_of_vectors(vectors, tmp_path):
    with pytest.raises(UsageError, match=r"a folder holds labels, but the model takes `condition`: give an \.npz with these"):
        data.read(features(tmp_path / "data", np.zeros((2, 3, 6), np.float32), np.arange(2)), Vector(VectorArch()))


def test_the_unconditional_vector_stands_for_those_that_are_dropped(vectors):
    declared = Vector(VectorArch()).inputs
    chances = [np.random.default_rng(n) for n in range(200)]
    inputs = {"condition": np.ones((200, 5), np.float32)}
    conditions = dropped(declared, inputs, chances)["condition"]
    gone = (conditions == declared[0].without(200)).all(1)
    assert 0.03 < gone.mean() < 0.18
    assert (conditions[~gone] == 1).all()
    assert conditions.dtype == np.float32


def test_a_router_of_it_is_trained_on_data_alone(vectors, tmp_path):
    line = f"train --model {described(tmp_path)} --weights {tmp_path}/w.safetensors --steps 4 --batch 2 --iterations 2"
    done = invoke(f"{line} --data self --out {tmp_path}/out")
    assert done.exit_code == 2
    assert "--data self: nothing says what the model's condition may be: give an .npz with `condition`" in done.stderr
    task = TrainingOptions(steps=4, data=str(tmp_path / "data.npz"), out=tmp_path / "out", model=described(tmp_path),
                           weights=str(tmp_path / "w.safetensors"), batch=2, iterations=2, threshold=0.5)  # fmt: skip
    training = Training(task, id)
    training.run()
    assert training.trainer.iteration == 2
    assert torch.isfinite(training.trainer.logits).all()
