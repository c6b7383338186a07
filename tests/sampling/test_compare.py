"""How alike pictures are, by formulas written here; and what has no partner."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from l2c_export.cli.main import l2c
from l2c_export.errors import UsageError

pytest.importorskip("skimage", reason="no scikit-image here: pip install 'l2c-export[compare]'")

from l2c_export.sampling.compare import compare

RANDOM = np.random.default_rng(3)


def save(path, pixels):
    path.parent.mkdir(exist_ok=True, parents=True)
    Image.fromarray(pixels.squeeze()).save(path)


def noisy(pixels, strength):
    return np.clip(pixels + RANDOM.normal(0, strength, pixels.shape), 0, 255).astype(np.uint8)


def psnr(one, other):
    return 10 * math.log10(255**2 / np.mean((one.astype(float) - other) ** 2))


def ssim(one, other, side):
    """Wang et al. 2004 with a uniform window, means over all windows that lie inside and over channels."""
    x, y = (
        np.lib.stride_tricks.sliding_window_view(picture.astype(float), (side, side), axis=(0, 1)) for picture in (one, other)
    )
    mean_x, mean_y = x.mean((-1, -2)), y.mean((-1, -2))
    n = side * side / (side * side - 1)
    var_x, var_y = x.var((-1, -2)) * n, y.var((-1, -2)) * n
    both = ((x * y).mean((-1, -2)) - mean_x * mean_y) * n
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    return np.mean((2 * mean_x * mean_y + c1) * (2 * both + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)))


@pytest.fixture
def folders(tmp_path):
    """Three pairs: one is the same, one has much noise, one little."""
    pictures = {f"{n:02}/{n:06}.png": RANDOM.integers(0, 256, (20, 24, 3), np.uint8) for n in range(3)}
    others = {name: noisy(pixels, 30.0 * (n == 1) + 3.0 * (n == 2)) for n, (name, pixels) in enumerate(pictures.items())}
    for folder, contents in (("a", pictures), ("b", others)):
        for name, pixels in contents.items():
            save(tmp_path / folder / name, pixels)
    (tmp_path / "a" / "notes.txt").write_text("not a picture")
    return tmp_path, pictures, others


def test_every_pair_has_the_numbers_of_the_formulas(folders):
    path, pictures, others = folders
    likenesses = compare(path / "a", path / "b")
    assert [pair.name for pair in likenesses.pairs] == list(pictures)
    for pair in likenesses.pairs[1:]:
        one, other = pictures[pair.name], others[pair.name]
        assert pair.psnr == pytest.approx(psnr(one, other), rel=1e-9)
        assert pair.ssim == pytest.approx(ssim(one, other, 7), rel=1e-6)
    assert (likenesses.pairs[0].psnr, likenesses.pairs[0].ssim, likenesses.pairs[0].same, likenesses.same) == (
        math.inf,
        1.0,
        True,
        1,
    )
    assert [pair.name[:2] for pair in likenesses.worst] == ["01", "02", "00"]
    assert likenesses.psnr == pytest.approx(np.mean([pair.psnr for pair in likenesses.pairs[1:]]))
    assert likenesses.summary.startswith("3 pairs: PSNR ")
    assert compare(path / "a", path / "a").summary == "3 pairs: all the same, pixel by pixel"


def test_shards_are_their_images(folders, tmp_path):
    path, pictures, others = folders
    for name, contents in (("c", pictures), ("d", others)):
        (path / name).mkdir()
        np.savez(path / name / "00000.npz", images=np.stack(list(contents.values())), seeds=np.arange(3))
    as_files, as_shards = compare(path / "a", path / "b"), compare(path / "c", path / "d")
    assert [(p.psnr, p.ssim) for p in as_shards.pairs] == [(p.psnr, p.ssim) for p in as_files.pairs]
    assert [p.name for p in as_shards.pairs] == [f"00000.npz[{n}]" for n in range(3)]
    assert compare(path / "c" / "00000.npz", path / "d" / "00000.npz").ssim == as_files.ssim
    np.savez(path / "d" / "00000.npz", images=np.stack(list(pictures.values())))  # changed: read again
    assert compare(path / "c", path / "d").same == 3


def test_two_files_and_a_small_grey_one_beside_a_coloured_one(tmp_path):
    grey = RANDOM.integers(0, 256, (5, 6, 1), np.uint8)
    save(tmp_path / "a.png", grey)
    save(tmp_path / "b.png", noisy(np.repeat(grey, 3, axis=2), 10))
    other = np.array(Image.open(tmp_path / "b.png"))
    (pair,) = compare(tmp_path / "a.png", tmp_path / "b.png").pairs
    assert pair.name == "a.png"
    assert pair.psnr == pytest.approx(psnr(np.repeat(grey, 3, axis=2), other), rel=1e-9)
    assert pair.ssim == pytest.approx(ssim(np.repeat(grey, 3, axis=2), other, 5), rel=1e-6)


def test_the_least_alike_stand_side_by_side(folders):
    path, pictures, others = folders
    compare(path / "a", path / "b", out=path / "beside.png")
    sheet = np.array(Image.open(path / "beside.png"))
    high, wide = 20 * 6, 24 * 6  # enlarged to 128 pixels at least
    assert sheet.shape == (3 * high + 2 * 4, 3 * wide + 2 * 4, 3)
    one, other = pictures["01/000001.png"], others["01/000001.png"]
    between = np.clip(np.abs(one.astype(int) - other) * 4, 0, 255)
    for n, expected in enumerate((one, other, between)):
        left = n * (wide + 4)
        assert np.array_equal(sheet[0:high:6, left : left + wide : 6], expected)


@pytest.mark.parametrize(("change", "words"), [
    (lambda p: (p / "b/02/000002.png").unlink(), r"02/000002.png: in .*a, but not in .*b: give pictures of the same names"),
    (lambda p: save(p / "b/more.png", np.zeros((9, 9), np.uint8)), r"more.png: in .*b, but not in .*a"),
    (lambda p: save(p / "b/01/000001.png", np.zeros((20, 25, 3), np.uint8)), r"pictures of 24 x 20 and 25 x 20 pixels: give"),
    (lambda p: (p / "b/01/000001.png").write_bytes(b"GIF89a"), r"000001.png: is no picture that can be read: cannot identify"),
    (lambda p: (p / "b/x.npz").write_bytes(b"PK"), r"x.npz: is no .npz that can be read"),
    (lambda p: np.savez(p / "b/x.npz", latents=np.zeros((1, 4, 8, 8))), r"x.npz: holds latents, no images"),
    (lambda p: np.savez(p / "b/x.npz", images=np.zeros((1, 4, 8, 8))), r"x.npz: images of float64 \(1, 4, 8, 8\): must be"),
    (lambda p: [path.unlink() for path in (p / "b").rglob("*.png")], r"b: holds no pictures"),
    (lambda p: [save(p / f / "00/000000.png", np.zeros((2, 9), np.uint8) + (f == "a")) for f in "ab"], r"picture of 9 x 2 pix"),
])  # fmt: skip
def test_what_cannot_be_compared_is_one_line(folders, change, words):
    path = folders[0]
    change(path)
    with pytest.raises(UsageError, match=words):
        compare(path / "a", path / "b", out=path / "beside.png")
    assert not (path / "beside.png").exists()


def test_the_command_prints_a_table_or_json(folders):
    path = folders[0]
    done = CliRunner().invoke(l2c, ["compare", str(path / "a"), str(path / "b"), "--out", str(path / "x.png")])
    assert done.exit_code == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[2:]] == [f"0{n}/00000{n}.png" for n in (1, 2, 0)]
    assert done.stderr.strip() == f"{path / 'x.png'}: drawn"
    told = json.loads(CliRunner().invoke(l2c, ["compare", str(path / "a"), str(path / "b"), "--json"]).stdout)
    assert (len(told["pairs"]), told["same"]) == (3, 1)
    assert told["pairs"][0]["psnr"] is None, "JSON has no infinity"
    for words in (["absent", "absent"], [str(path / "a"), str(path / "b"), "--out", str(path / "x.gif")]):
        assert CliRunner().invoke(l2c, ["compare", *words]).exit_code == 2
