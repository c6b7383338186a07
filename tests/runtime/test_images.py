"""Latents become images, and files."""

from __future__ import annotations

import errno
import io
import os
import time

import numpy as np
import pytest
from folders import tree
from PIL import Image

import l2c_export
from l2c_export.errors import RunError, UsageError
from l2c_export.runtime import images
from l2c_export.runtime.images import to_images


@pytest.mark.parametrize("kind", ["np", "pil"])
def test_a_model_of_latents_makes_no_images(pipe, kind):
    with pytest.raises(UsageError, match=f"output_type='{kind}'.*no decoder.*output_type=\"latent\""):
        pipe([1], output_type=kind)
    assert pipe([1]).images is None


def test_latents_of_the_device_are_a_copy_of_numpys_on_a_cpu(pipe):
    want = pipe([1, 2], seed=3).latents
    there = pipe([1, 2], seed=3, output_type="device")
    assert there.images is None
    pipe([2, 1], seed=4)
    assert np.array_equal(there.latents, want)
    seen = []
    called = pipe([1, 2], seed=3, output_type="device", callback_on_step_end=lambda p, s, t, v: seen.append(v["latents"]))
    assert np.array_equal(called.latents, seen[-1])
    assert np.array_equal(called.latents, want)


def test_a_model_of_pixels_makes_images(pixels):
    pipe = l2c_export.load(pixels)
    out = pipe([0, 1], output_type="np")
    assert out.latents.shape == (2, 3, 4, 4)
    assert out.images.shape == (2, 4, 4, 3)
    assert np.allclose(out.images, np.clip((out.latents.transpose(0, 2, 3, 1) + 1) / 2, 0, 1))
    pictures = pipe([0, 1], output_type="pil").images
    assert [(p.mode, p.size) for p in pictures] == [("RGB", (4, 4))] * 2
    assert np.abs(np.array(pictures) / 255 - out.images).max() <= 0.5 / 255 + 1e-6


def test_pixels_are_clipped_and_a_single_channel_is_gray():
    x = np.array([-3, -1, 0, 1, 9, 0.5], np.float32).reshape(1, 1, 2, 3)
    assert to_images(x, "np").ravel().tolist() == [0, 0, 0.5, 1, 1, 0.75]
    (picture,) = to_images(x, "pil")
    assert isinstance(picture, Image.Image)
    assert (picture.mode, np.array(picture).tolist()) == ("L", [[0, 0, 128], [255, 255, 191]])


def test_latents_that_do_not_fit_on_the_disk_leave_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.npy"
    images.Output(np.zeros(3)).save(path)
    before = tree(tmp_path)

    def no_space(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(RunError, match=r"x\.npy': cannot be written: No space left on device"):
        images.Output(np.ones(3)).save(path)
    assert tree(tmp_path) == before


def test_a_picture_takes_less_time_than_the_default_and_hardly_more_room():
    """CPU seconds of this thread: grain as a photograph's, on which the default searches long."""
    y, x = np.mgrid[:128, :128]
    smooth = np.stack([x + 60 + 20 * np.sin(y / 9), y + 40, 128 + 60 * np.sin((x + y) / 23)], -1)
    pixels = np.clip(smooth + np.random.default_rng(0).normal(0, 3, smooth.shape), 0, 255).astype(np.uint8)

    def default():
        data = io.BytesIO()
        Image.fromarray(pixels).save(data, format="png")
        return data.getvalue()

    def seconds(encode):
        began = time.thread_time()
        encode()
        return time.thread_time() - began

    fast, slow = (min(seconds(encode) for _ in range(5)) for encode in (lambda: images.picture(pixels[None]), default))
    assert fast < slow / 1.5
    assert len(images.picture(pixels[None])) < 1.1 * len(default())
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(images.picture(pixels[None])))), pixels)
