"""What l2c run makes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from desk import invoke
from PIL import Image

import l2c_export
from l2c_export.cli.options import split_labels


def test_the_options_of_run_are_those_of_the_pipeline(desk, tmp_path):
    out = tmp_path / "x.npy"
    line = f"run engines --class-label 3 --class-label 5 --seed 8 --guidance-scale 2 --backend onnxruntime --out {out}"
    assert invoke(f"{line} --check-finite").exit_code == 0
    pipe = l2c_export.load("engines", backend="onnxruntime")
    assert np.allclose(np.load(out), pipe([3, 5], guidance_scale=2, seed=8).latents, atol=1e-4)
    assert not np.allclose(np.load(out), pipe([3, 5], seed=8).latents, atol=1e-4)


def test_check_finite_stops_at_the_call(copy):
    assert invoke("link copy --weights huge.safetensors").exit_code == 0
    assert invoke("run copy --class-label 1 --out copy/x.npy").exit_code == 0
    Path("copy/x.npy").unlink()
    done = invoke("run copy --class-label 1 --out copy/x.npy --check-finite")
    assert done.exit_code == 1
    assert re.match(r"error: call \d \(timestep \d+\) made NaN or infinite latents", done.stderr.splitlines()[-1])
    assert not Path("copy/x.npy").exists()


def test_a_model_of_pixels_draws_a_picture(pixels, tmp_path):
    done = invoke(f"run {pixels} --class-label 0 --class-label 1 --out {tmp_path / 'x.png'}")
    assert done.exit_code == 0, done.stderr
    picture = np.array(Image.open(tmp_path / "x.png")) / 255
    assert picture.shape == (4, 8, 3), "the images side by side"
    images = l2c_export.load(pixels)([0, 1], output_type="np").images
    assert np.abs(picture[:, 4:] - images[1]).max() <= 0.5 / 255 + 1e-6


def test_a_file_may_have_as_long_a_name_as_there_is(desk, tmp_path):
    out = tmp_path / ("x" * 251 + ".npy")
    assert invoke(f"run engines --class-label 3 --out {out}").exit_code == 0
    assert out.stat().st_size > 0


@pytest.mark.parametrize("label", ["--5", "5" * 5000, "½", "-"])
def test_a_label_that_is_no_number_is_a_name_that_does_not_exist(desk, label):
    done = invoke(f"run engines --class-label={label} --out x.npy")
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1].startswith("error: class label ")
    assert "Traceback" not in done.stderr


def test_more_labels_than_the_batch_are_made_in_turn(desk, tmp_path):
    done = invoke(f"run engines --class-label 3,5,7 --class-label 9 --class-label 1 --seed 4 --out {tmp_path / 'x.npy'}")
    assert done.exit_code == 0, done.stderr
    assert re.search(r"x\.npy: 5 images in ", done.stderr)
    latents = np.load(tmp_path / "x.npy")
    pipe = l2c_export.load("engines")
    for n, label in enumerate([3, 5, 7, 9, 1]):  # a batch is two
        alone = pipe([label], seed=4 + n).latents[0]
        assert np.abs(latents[n] - alone).max() <= 1e-5 * np.abs(alone).max()
    assert np.array_equal(latents[2:4], pipe([7, 9], seed=6).latents)


@pytest.mark.parametrize("existed", [True, False])
def test_a_folder_gets_a_file_for_every_image(desk, tmp_path, existed):
    folder = tmp_path / "some.images" if existed else tmp_path / "images"
    if existed:
        folder.mkdir()
    done = invoke(f"run engines --class-label 3,5,7 --out {folder}/ --json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["images"] == 3
    assert [path.name for path in sorted(folder.iterdir())] == ["000.npy", "001.npy", "002.npy"]
    assert np.array_equal(np.load(folder / "002.npy"), l2c_export.load("engines")([7], seed=2).latents[0])


def test_a_folder_gets_pictures_of_a_model_of_pixels(pixels, tmp_path):
    assert invoke(f"run {pixels} --class-label 0,1,2 --out {tmp_path}/").exit_code == 0
    assert invoke(f"run {pixels} --class-label 0,1 --out {tmp_path / 'x.png'}").exit_code == 0
    both = np.hstack([np.array(Image.open(tmp_path / f"00{n}.png")) for n in (0, 1)])
    assert np.array_equal(both, np.array(Image.open(tmp_path / "x.png")))
    assert (tmp_path / "002.png").is_file()


def test_a_name_with_a_comma_stays_whole():
    assert split_labels(["1, 2", "tench, a fish", "cat,dog"], {"tench, a fish": 0}) == ["1", "2", "tench, a fish", "cat", "dog"]
