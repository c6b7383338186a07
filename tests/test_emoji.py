"""The demo in colour: what comes with the package draws what is asked for; and the words that it was trained on."""

from __future__ import annotations

import colorsys
import io
import json
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from blocked import without
from recorded import ROOT

import l2c_export

PIL = pytest.importorskip("PIL.Image")
FOLDER = ROOT / "l2c_export" / "emoji" / "engines"
THINGS = {"a red apple": 0, "a blue heart": 212, "a sunflower": 45, "a green heart": 130}  # degrees of their colours


@pytest.fixture(scope="module")
def pipe():
    with l2c_export.load("emoji") as pipe:
        yield pipe


def hue(image: np.ndarray) -> float:
    """The mean hue in degrees of what has a colour."""
    values = np.array([colorsys.rgb_to_hsv(*pixel) for pixel in image[::4, ::4].reshape(-1, 3)])
    mean = (values[:, 1] * np.exp(2j * np.pi * values[:, 0])).sum()
    return float(np.degrees(np.angle(mean)) % 360)


@pytest.mark.parametrize("steps", [60, 50, 40])
def test_things_have_their_colours_and_stand_on_white(pipe, steps):
    images = pipe(prompt=list(THINGS), seed=[0, 1, 2, 3], steps=steps, output_type="np").images
    assert images.shape == (4, 128, 128, 3)
    for image, degrees in zip(images, THINGS.values(), strict=True):
        assert abs((hue(image) - degrees + 180) % 360 - 180) < 35
        corners = image[[2, 2, -3, -3], [2, -3, 2, -3]]
        assert corners.min() > 0.9
        assert image.std() > 0.15


def test_fewer_calls_draw_the_same_picture(pipe):
    careful, default, fast = (pipe(prompt="a rocket", seed=4, steps=steps, output_type="np").images for steps in (60, 50, 40))
    assert np.abs(default - careful).mean() < 0.02
    assert np.abs(fast - careful).mean() < 0.02
    other = pipe(prompt="a rocket", seed=5, steps=50, output_type="np").images
    assert np.abs(other - default).mean() > np.abs(default - careful).mean()


def test_of_every_program_a_part_is_computed(pipe):
    assert {steps: sum(bool(call.computed) for call in pipe.manifest.program(steps=steps).calls) for steps in (60, 50, 40)} == {
        60: 21, 50: 14, 40: 11,
    }  # fmt: skip


def test_it_is_small_enough_to_ship():
    assert sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file()) < 60e6


def test_a_prompt_becomes_a_file_without_pytorch(tmp_path):
    words = ["run", "emoji", "--prompt", "a red apple", "--steps", "40", "--out", str(tmp_path / "apple.png")]
    code = without(["torch", "diffusers", "transformers", "onnx"]) + f"from l2c_export.cli.main import l2c\nl2c({words})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert PIL.open(tmp_path / "apple.png").size == (128, 128)


# what it was trained on


@pytest.fixture(scope="module")
def emoji():
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import emoji
    finally:
        sys.path.remove(str(ROOT / "scripts"))
    return emoji


def packed(path, files: dict[str, bytes]):
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def picture(colour: tuple[int, int, int]) -> bytes:
    """A disc of one colour on nothing."""
    y, x = np.mgrid[:256, :256] - 128
    pixels = np.zeros((256, 256, 4), np.uint8)
    pixels[x**2 + y**2 < 100**2] = (*colour, 255)
    data = io.BytesIO()
    PIL.fromarray(pixels).save(data, "webp", lossless=True)
    return data.getvalue()


@pytest.fixture(scope="module")
def read(emoji, tmp_path_factory):
    here = tmp_path_factory.mktemp("packages")
    pictures = packed(here / "p.tgz", {
        "assets/1f34e.webp": picture((230, 40, 40)), "assets/2764-fe0f.webp": picture((230, 40, 40)),
        "assets/1f468-1f3fb.webp": picture((240, 200, 170)), "assets/1f468.webp": picture((250, 200, 40)),
    })  # fmt: skip
    names = {"\U0001f34e": ["red apple", "fruit"], "\u2764": ["red heart", "love"], "\U0001f468": ["man", "adult"],
             "\U0001f468\U0001f3fb": ["man: light skin tone", "adult"]}  # fmt: skip
    tree = {"annotations": {"annotations": {c: {"tts": [n], "default": [k]} for c, (n, k) in names.items()}}}
    words = packed(here / "n.tgz", {"annotations/en/annotations.json": json.dumps(tree).encode()})
    return emoji.read(pictures, words)


def test_things_are_drawn_in_other_colours_and_people_are_not(read):
    by_name = {drawing.name: drawing for drawing in read}
    assert {"red apple", "blue apple", "green heart", "man", "man: light skin tone"} <= set(by_name)
    assert not any(name.endswith("man") and name != "man" for name in by_name)
    assert "red apple" in by_name
    assert abs(hue(by_name["blue apple"].pixels / 255) - 212) < 12
    assert by_name["red apple"].pixels[0, 0].tolist() == [255, 255, 255]


def test_a_blue_heart_is_never_trained_on(emoji, read):
    seen, held = emoji.split(read)
    assert "blue heart" in {drawing.name for drawing in held}
    assert "blue heart" not in {drawing.name for drawing in seen}
    assert "red heart" in {drawing.name for drawing in seen}


def test_captions_say_what_it_is(emoji, read):
    said = dict(zip((drawing.name for drawing in read), emoji.captions(read), strict=True))
    assert {"red apple", "a red apple", "red apple emoji", "red apple, fruit", "fruit"} <= set(said["red apple"])
    assert "a man with light skin tone" in said["man: light skin tone"]
    assert "fruit" not in said["blue apple"]
