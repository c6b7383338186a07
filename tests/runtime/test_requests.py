"""Requests as callers write them: every kind of number that is one, and none that is not."""

from __future__ import annotations

import shutil
from fractions import Fraction

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from recorded import named, same

import l2c_export
from l2c_export.artefact import store
from l2c_export.cli.main import l2c
from l2c_export.errors import UsageError


@pytest.fixture(scope="module")
def want(pipe):
    return pipe([3, 4], 4.0, 7).latents


@pytest.mark.parametrize("labels", [
    torch.tensor([3, 4]), torch.tensor([3, 4], dtype=torch.uint8), np.array([3, 4], ">i2"), [torch.tensor(3), np.array(4)],
    (3, 4), range(3, 5), ["3", 4], ["3", "04"], np.array(["3", "4"]), (n for n in (3, 4)),
], ids=named)  # fmt: skip
def test_labels_are_numbers_however_they_come(pipe, want, labels):
    assert same(pipe(labels, 4.0, 7).latents, want)


@pytest.mark.parametrize(
    "label", [3, "3", torch.tensor(3), np.array(3), np.array("3"), np.uint8(3), torch.tensor([3])], ids=repr
)
def test_one_label_is_one_image(pipe, want, label):
    assert same(pipe(label, 4.0, 7).latents, pipe([3], 4.0, 7).latents)


@pytest.mark.parametrize(("labels", "says"), [
    ({3, 4}, "a set is no list of them"), (frozenset({3}), "a frozenset is"), ({3: 1}, "a dict is"), (b"\x03", "a bytes is"),
    (np.array([[3]]), r"of shape \(1, 1\): give one dimension"), (torch.tensor([[3]]), r"of shape \(1, 1\)"),
    ([torch.tensor([3])], r"class label array\(\[3\]\)"), (torch.tensor([3.0]), "float32"), ([3.0], "3.0"),
    (torch.tensor([True]), "True"), (np.array(True), "True"), ("3,4", "every label on its own"), ("3 ", "class label '3 '"),
    ("٣", "class label '٣'"), ("+3", r"class label '\+3'"), ("10", "class label 10:"), ("-1", "class label -1:"),
    ("", "class label ''"),
    (torch.empty(1, device="meta"), "a tensor of PyTorch that numpy cannot read"),
], ids=repr)  # fmt: skip
def test_labels_that_are_none(pipe, labels, says):
    with pytest.raises(UsageError, match=says):
        pipe(labels)


@pytest.mark.parametrize("seed", [
    torch.tensor(7), np.array(7), np.uint8(7), [7, 8], torch.tensor([7, 8]), np.array([7, 8]), (torch.tensor(7), np.int64(8)),
], ids=repr)  # fmt: skip
def test_seeds(pipe, want, seed):
    assert same(pipe([3, 4], 4.0, seed).latents, want)


@pytest.mark.parametrize("seed", [
    -1, [7, -8], {7, 8}, {7: 8, 8: 7}, b"\x07\x08", True, torch.tensor(True), 7.0, torch.tensor(7.0), np.array([[7, 8]]), "78",
], ids=repr)  # fmt: skip
def test_seeds_that_are_none(pipe, seed):
    with pytest.raises(UsageError, match="seed"):
        pipe([3, 4], 4.0, seed)


@pytest.mark.parametrize("scale", [
    4, np.float16(4), np.array(4), torch.tensor(4.0), torch.tensor(4), torch.tensor(4.0, dtype=torch.bfloat16), Fraction(4),
    torch.tensor(4.0, requires_grad=True),
], ids=repr)  # fmt: skip
def test_guidance_scales(pipe, want, scale):
    assert same(pipe([3, 4], scale, 7).latents, want)


@pytest.mark.parametrize("scale", [
    True, np.True_, torch.tensor(True), 1e30, -1e38, 1000.5, 10**400, float("nan"), torch.tensor(float("inf")), "4", ["4"],
    [True], {4.0}, 4j,
], ids=lambda s: repr(s)[:20])  # fmt: skip
def test_guidance_scales_that_are_none(pipe, scale):
    with pytest.raises(UsageError, match=r"guidance_scale=.*must be a finite number from -1000 to 1000"):
        pipe([3], scale)


@pytest.mark.parametrize("scale", [1000, -1000])
def test_the_largest_guidance_is_still_a_number(pipe, scale):
    assert np.isfinite(pipe([3], scale, 7).latents).all()


HALF = np.random.default_rng(0).standard_normal((2, 4, 8, 8)).astype(np.float32).astype(np.float16)  # in all types but bf16


@pytest.mark.parametrize("make", [
    lambda x: torch.tensor(x), lambda x: torch.tensor(x).float().requires_grad_(), lambda x: torch.tensor(x).double(),
    lambda x: x.astype(">f4"), lambda x: x.astype(">f2"), lambda x: x.astype(">f8"), lambda x: np.asfortranarray(x),
    lambda x: torch.tensor(x).permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2), lambda x: x.tolist(),
])  # fmt: skip
def test_latents_of_any_float_type_and_layout(pipe, make):
    assert same(pipe([3, 4], latents=make(HALF)).latents, pipe([3, 4], latents=HALF.astype(np.float32)).latents)


def test_latents_in_bfloat16_are_widened(pipe):
    tensor = torch.tensor(HALF).bfloat16()
    assert same(pipe([3, 4], latents=tensor).latents, pipe([3, 4], latents=tensor.float().numpy()).latents)
    returned = pipe([3], callback_on_step_end=lambda *_: {"latents": tensor[:1]}).latents
    assert same(returned, tensor[:1].float().numpy())


@pytest.mark.parametrize("latents", [
    torch.zeros((2, 4, 8, 8), dtype=torch.int64), torch.zeros((2, 4, 8, 8), device="meta"),
    torch.zeros((2, 4, 8, 8)).to_sparse(), np.zeros((2, 4, 8, 8), ">i4"),
], ids=lambda x: str(x.dtype))  # fmt: skip
def test_latents_that_are_none(pipe, latents):
    with pytest.raises(UsageError, match="latents"):
        pipe([3, 4], latents=latents)


@pytest.fixture
def named(tiny, tmp_path):
    """An artefact one of whose names is a number that is not its own."""
    import msgspec

    from l2c_export.ir.inputs import named as inputs_named

    folder = shutil.copytree(tiny[0], tmp_path / "named")
    manifest = store.read(folder, verify=False)
    inputs = inputs_named(manifest.inputs, {"cat": 3, "7": 4})
    store.write_manifest(folder, msgspec.structs.replace(manifest, inputs=inputs))
    return folder


def run(folder, *words):
    done = CliRunner().invoke(l2c, ["run", str(folder), "--backend", "onnxruntime", *map(str, words)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def test_text_means_the_same_in_python_and_at_the_command_line(named, want, tmp_path):
    pipe = l2c_export.load(named, backend="onnxruntime")
    for words in (["cat", "7"], ["3", "4"], ["03", "7"]):
        done = run(named, *(w for word in words for w in ("--class-label", word)), "--seed", 7, "--out", tmp_path / "x.npy")
        assert done.exit_code == 0, done.output
        assert ("--class-label 7: the class of this name, which is number 4" in done.output) == ("7" in words)
        assert pipe.inputs(words)["class_labels"].tolist() == [3, 4]
        assert np.allclose(np.load(tmp_path / "x.npy"), want, atol=1e-3)


@pytest.mark.parametrize(("words", "says"), [
    (["--class-label", "1,2,x"], "class label 'x'"), (["--class-label", "3 "], "class label '3 '"),
    (["--class-label", "٣"], "class label"), (["--class-label", ""], "class label ''"), (["--class-label", "-1"], "label -1"),
    (["--class-label", "3", "--guidance-scale", "1e30"], "from -1000 to 1000"),
    (["--class-label", "3", "--seed", "-1"], "seed -1"),
    (["--class-label", "3", "--out", "x.jpg"], "use a .npy, a .png or a folder"),
    (["--class-label", "3", "--out", "x.PNG"], "not pixels"),
    (["--class-label", "3", "--out", "no/x.npy"], "there is no folder"),
])  # fmt: skip
def test_a_wrong_request_ends_before_anything_is_loaded(tiny, tmp_path, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("l2c_export.runtime.pipeline.load", lambda *_, **__: pytest.fail("loaded"))
    done = run(tiny[0], *words)
    assert done.exit_code == 2
    assert says in done.output
    assert len(done.output.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_file_is_known_by_its_ending_in_either_case(tiny, pixels, tmp_path):
    assert run(tiny[0], "--class-label", 3, "--out", tmp_path / "x.NPY").exit_code == 0
    assert np.load(tmp_path / "x.NPY").shape == (1, 4, 8, 8)
    assert run(pixels, "--class-label", 1, "--out", tmp_path / "x.PNG").exit_code == 0
    with Image.open(tmp_path / "x.PNG") as picture:
        assert (picture.format, picture.size) == ("PNG", (4, 4))


def test_given_latents_are_not_written_to(pipe):
    noise = pipe.noise(2, 0)
    pipe([1, 2], latents=noise, callback_on_step_end=lambda p, s, t, v: {"latents": v["latents"] * 0})
    assert same(noise, pipe.noise(2, 0))


@pytest.mark.parametrize("labels", [3, np.int64(3), [3], (3,), np.array([3])], ids=repr)
def test_labels_may_be_one_number_or_any_sequence(pipe, labels):
    assert same(pipe(labels).latents, pipe([3]).latents)


def test_numbers_of_numpy_do_not_wrap_around(pipe):
    assert same(pipe([1, 2], seed=np.uint8(255)).latents, pipe([1, 2], seed=[255, 256]).latents)
    assert same(pipe([1, 2], seed=np.int32(2**31 - 1)).latents, pipe([1, 2], seed=2**31 - 1).latents)
    assert same(pipe([np.int8(1)], np.uint8(0)).latents, pipe([1], 0.0).latents)
    assert same(pipe([1], np.float16(3)).latents, pipe([1], 3).latents)
    with pytest.raises(UsageError, match="must be a finite number"):
        pipe([1], np.float16("inf"))
