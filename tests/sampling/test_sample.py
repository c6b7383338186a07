"""Many images in shards: each is its number's alone, whatever is interrupted, and nothing is half there."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from recorded import ROOT
from safetensors.numpy import load_file, save_file

import l2c_export
from l2c_export.cli.main import l2c
from l2c_export.compiler.link import bind
from l2c_export.errors import RunError, UsageError
from l2c_export.sampling.sample import sample

CPU = {"backend": "onnxruntime"}


def arrays(folder, name):
    """An array of all shards, in order."""
    return np.concatenate([np.load(path)[name] for path in sorted(folder.glob("*.npz"))])


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def alone(pixels):
    """Eleven images, each by a request of its own: (N, H, W, C) bytes."""
    with l2c_export.load(pixels, **CPU, threads=1) as pipe:
        images = [pipe([n % 3], seed=5 + n, output_type="np").images for n in range(11)]
    return (np.concatenate(images) * 255).round().astype(np.uint8)


@pytest.fixture(scope="module")
def whole(pixels, tmp_path_factory):
    """The same images as shards of four."""
    out = tmp_path_factory.mktemp("whole") / "samples"
    sample(pixels, out, 11, seed=5, shard_size=4, **CPU)
    return out


# what is made


def test_an_image_is_that_of_a_request_of_its_own(whole, alone):
    assert [path.name for path in sorted(whole.iterdir())] == ["00000.npz", "00001.npz", "00002.npz", "samples.json"]
    assert np.array_equal(arrays(whole, "images"), alone)
    assert np.array_equal(arrays(whole, "seeds"), 5 + np.arange(11))
    assert np.array_equal(arrays(whole, "class_labels"), np.arange(11) % 3)
    assert np.load(whole / "00002.npz")["images"].shape == (3, 4, 4, 3)


@pytest.mark.parametrize("shard_size", [1, 3, 100])
def test_shards_of_any_size_hold_the_same_images(pixels, alone, tmp_path, shard_size):
    result = sample(pixels, tmp_path / "s", 11, seed=5, shard_size=shard_size, **CPU)
    assert (result.images, result.new, len(result.shards)) == (11, 11, -(-11 // shard_size))
    assert np.array_equal(arrays(tmp_path / "s", "images"), alone)


def test_an_artefact_for_other_batches_makes_the_same_images(pixels, alone, tmp_path):
    from l2c_export.compiler.compile import compile_artefact
    from l2c_export.compiler.request import Options

    chosen = {"schedule": "every:2", "steps": 4, "model": str(pixels.parent / "model.json"), "weights": "random:1", "batch": 5}
    compile_artefact(Options(**chosen, out=tmp_path / "five", backend="onnxruntime"))
    sample(tmp_path / "five", tmp_path / "s", 11, seed=5, **CPU)
    assert np.array_equal(arrays(tmp_path / "s", "images"), alone)


def test_every_batch_is_as_large_as_the_artefact_was_compiled_for(pixels, tmp_path, monkeypatch):
    sizes, call = [], l2c_export.Pipeline.__call__
    monkeypatch.setattr(l2c_export.Pipeline, "__call__", lambda pipe, **k: (sizes.append(len(k["seed"])), call(pipe, **k))[1])
    sample(pixels, tmp_path / "s", 11, shard_size=3, **CPU)
    assert sizes == [2] * 7


def test_pictures_are_the_arrays(pixels, alone, tmp_path):
    sample(pixels, tmp_path / "s", 11, seed=5, shard_size=8, format="png", **CPU)
    names = sorted(path.relative_to(tmp_path / "s").as_posix() for path in (tmp_path / "s").rglob("*.png"))
    assert names == [f"{n // 8:05}/{n:06}.png" for n in range(11)]
    assert np.array_equal(np.stack([np.array(Image.open(tmp_path / "s" / name)) for name in names]), alone)


def test_classes_are_balanced_and_one_of_each_by_default(tiny, tmp_path):
    sample(tiny[0], tmp_path / "all", **CPU)
    assert arrays(tmp_path / "all", "class_labels").tolist() == list(range(10))
    sample(tiny[0], tmp_path / "s", 14, class_labels=[7, "2", 4], shard_size=4, **CPU)
    assert Counter(arrays(tmp_path / "s", "class_labels").tolist()) == {7: 5, 2: 5, 4: 4}
    with l2c_export.load(tiny[0], **CPU, threads=1) as pipe:  # a model of latents
        assert np.array_equal(arrays(tmp_path / "s", "latents")[4:6], pipe([2, 4], seed=4).latents)


def test_the_rest_of_a_request(tiny, tmp_path):
    sample(tiny[0], tmp_path / "s", 2, guidance_scale=1.5, seed=3, **CPU)
    with l2c_export.load(tiny[0], **CPU, threads=1) as pipe:
        assert np.array_equal(arrays(tmp_path / "s", "latents"), pipe([0, 1], guidance_scale=1.5, seed=3).latents)


# interruptions


SAMPLE = """
import sys
from l2c_export.sampling.sample import sample
sample(sys.argv[1], sys.argv[2], 40, seed=5, shard_size=1, format=sys.argv[3], backend="onnxruntime")
"""


def started(*words):
    return subprocess.Popen([sys.executable, "-c", SAMPLE, *map(str, words)], env={**os.environ, "PYTHONPATH": str(ROOT)})


@pytest.mark.parametrize("kind", ["npz", "png"])
def test_killed_at_any_moment_and_resumed_it_gives_the_same_files(pixels, tmp_path, kind):
    sample(pixels, tmp_path / "whole", 40, seed=5, shard_size=1, format=kind, **CPU)
    chance, killed, out = random.Random(kind), 0, tmp_path / "s"
    for present in (0, 6, 15):  # so many shards are waited for
        process = started(pixels, out, kind)
        while process.poll() is None and sum(1 for path in out.glob("0*")) < present + 1:
            time.sleep(0.001)
        time.sleep(chance.random() * 0.01)
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        for name, data in tree(out).items():
            assert name.startswith(".") or data == (tmp_path / "whole" / name).read_bytes(), name
    assert killed == 3
    result = sample(pixels, out, 40, seed=5, shard_size=1, format=kind, **CPU)
    assert 0 < result.new < 40
    assert tree(out) == tree(tmp_path / "whole")


@pytest.mark.parametrize("kind", ["npz", "png"])
def test_a_full_disk_is_one_error_and_the_same_command_goes_on(pixels, whole, tmp_path, kind):
    """The kernel refuses what is longer than this, in the middle of a file."""
    out, soft = tmp_path / "s", resource.getrlimit(resource.RLIMIT_FSIZE)
    options = {"count": 11, "seed": 5, "shard_size": 4, "format": kind, **CPU}
    sample(pixels, tmp_path / "whole", **options)
    sizes = [path.stat().st_size for path in (tmp_path / "whole").rglob("*") if path.name.startswith("0") and path.is_file()]
    sample(pixels, out, **options)
    last = out / ("00002.npz" if kind == "npz" else "00002")
    shutil.rmtree(last) if last.is_dir() else last.unlink()
    resource.setrlimit(resource.RLIMIT_FSIZE, (min(sizes) // 2, soft[1]))
    try:
        with pytest.raises(RunError, match=rf"out='.*': shard {last.name} cannot be written: File too large: .* same command"):
            sample(pixels, out, **options)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, soft)
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == []
    assert not last.exists()
    assert sample(pixels, out, **options).new == 3
    assert tree(out) == tree(tmp_path / "whole")


def test_what_is_there_is_not_made_again(pixels, whole, tmp_path):
    out = shutil.copytree(whole, tmp_path / "s")
    (out / "00001.npz").unlink()
    (out / ".00001.npz-0.partial").write_bytes(b"half")
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.npz")}
    said = []
    assert sample(pixels, out, 11, seed=5, shard_size=4, **CPU, report=said.append).new == 4
    assert said == [f"{out}: 2 of 3 shards are there"]
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before
    assert tree(out) == tree(whole)


def test_of_two_on_one_folder_the_second_waits(pixels, whole, tmp_path):
    counts = []
    run = lambda: counts.append(sample(pixels, tmp_path / "s", 11, seed=5, shard_size=4, **CPU).new)  # noqa: E731
    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(counts) == [0, 11]
    assert tree(tmp_path / "s") == tree(whole)


# refusals


@pytest.mark.parametrize(("changed", "words"), [
    ({"seed": 6}, r"was begun with seed=5, not 6"),
    ({"count": 12}, r"was begun with count=11, not 12"),
    ({"format": "png"}, r"was begun with format='npz', not 'png'"),
    ({"threads": 2}, r"was begun with threads=1, not 2"),
    ({"class_labels": [1, 2]}, r"holds images of other class labels or prompts"),
    ({"guidance_scale": 2.5}, r"was begun with guidance_scale=None, not 2.5"),
])  # fmt: skip
def test_a_folder_is_gone_on_with_by_the_same_values_only(pixels, whole, changed, words):
    before = tree(whole)
    if changed == {"threads": 2} and os.cpu_count() == 1:
        pytest.skip("one processor")
    with pytest.raises(UsageError, match=rf"^out='.*': {words}: choose another folder$"):
        sample(pixels, whole, **{"count": 11, "seed": 5, "shard_size": 4, **CPU, **changed})
    assert tree(whole) == before


def test_another_artefact_and_another_folder_are_refused(tiny, whole, tmp_path):
    with pytest.raises(UsageError, match="holds images of another artefact"):
        sample(tiny[0], whole, 11, seed=5, shard_size=4, **CPU)
    (tmp_path / "thesis.tex").write_text("my only copy")
    with pytest.raises(UsageError, match=r"holds thesis.tex, which is not ours: choose an empty folder"):
        sample(tiny[0], tmp_path, 4, **CPU)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(("options", "words"), [
    ({"count": 0}, "count=0: must be at least 1"),
    ({"shard_size": 0}, "shard_size=0: must be at least 1"),
    ({"threads": 0}, "threads=0: must be at least 1"),
    ({"seed": -1}, "seed=-1: give one whole number"),
    ({"seed": 2**62}, f"seed={2**62}: must be less than"),
    ({"format": "bmp"}, "format='bmp': use one of npz, png"),
    ({"format": "png"}, "format='png': this model makes latents"),
    ({"class_labels": [10]}, "class label 10: must be a whole number from 0 to 9"),
    ({"class_labels": []}, r"class_labels=\[\]: give at least one"),
    ({"class_labels": [1], "prompts": ["a"]}, "both say what is asked for"),
    ({"prompts": ["a cat"]}, "prompt=..: this artefact has no such input: it takes class_labels=.."),
    ({"prompts": "absent.txt"}, "prompts='absent.txt': cannot be read: No such file"),
    ({"negative_prompt": "x"}, "negative_prompt=..: goes with prompts=.."),
    ({"steps": 3}, "steps=3: this artefact was compiled for"),
    ({"size": (16, 24)}, "height=16, width=24: this artefact was compiled for"),
    ({"guidance_scale": 1e9}, "guidance_scale=1000000000.0: must be"),
    ({"workers": 2}, "workers=2: goes with ray=True"),
    ({"workers": 0, "ray": True}, "workers=0: must be at least 1"),
    ({"device": "cuda:1", "ray": True}, "device='cuda:1': with ray=True every process has a GPU of its own"),
])  # fmt: skip
def test_what_cannot_be_made_is_refused_before_anything_is(tiny, tmp_path, options, words):
    with pytest.raises(UsageError, match=words):
        sample(tiny[0], tmp_path / "s", **{**CPU, **options})
    assert not (tmp_path / "s").exists()


def test_a_damaged_plan_is_one_line(pixels, whole, tmp_path):
    out = shutil.copytree(whole, tmp_path / "s")
    (out / "samples.json").write_text("{}")
    with pytest.raises(l2c_export.ArtefactError, match=r"samples.json: is damaged, or of another release: .*: choose another"):
        sample(pixels, out, 11, seed=5, shard_size=4, **CPU)


@pytest.fixture
def infinite(tiny, tmp_path):
    """An artefact whose images are not finite."""
    folder = shutil.copytree(tiny[0], tmp_path / "infinite")
    tensors = load_file(tiny[1].path / "model.safetensors")
    tensors["final_layer.linear.bias"] = np.full_like(tensors["final_layer.linear.bias"], 3e38)
    save_file(tensors, tmp_path / "huge.safetensors")
    bind(folder, str(tmp_path / "huge.safetensors"))
    return folder


def test_an_image_that_is_not_finite_ends_it(infinite, tmp_path):
    with pytest.raises(RunError, match=r"image 0 \(seed 7\) is NaN or infinite: check the weights"):
        sample(infinite, tmp_path / "s", 4, seed=7, **CPU)
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["samples.json"]


# the command


def test_the_command_tells_what_it_made(tiny, tmp_path):
    line = ["sample", str(tiny[0]), "--class-label", "1,2", "--count", "5", "--out", str(tmp_path / "s"), "--json"]
    first, second = (CliRunner().invoke(l2c, [*line, "--backend", "onnxruntime"]) for _ in range(2))
    assert (first.exit_code, second.exit_code) == (0, 0), first.stderr
    told = json.loads(first.stdout)
    assert (told["images"], told["made"], told["shards"]) == (5, 5, ["00000.npz"])
    assert json.loads(second.stdout)["made"] == 0
    assert f"{tmp_path / 's'}: 0 images in " in second.stderr
    assert ", 5 were there" in second.stderr
    assert Path(tmp_path / "s" / "samples.json").is_file()
    refused = CliRunner().invoke(l2c, [*line, "--seed", "1", "--backend", "onnxruntime"])
    assert refused.exit_code == 2
    assert refused.stderr.splitlines()[-1].startswith(f"error: --out {tmp_path / 's'}: was begun with --seed 0, not 1")
