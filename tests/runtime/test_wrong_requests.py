"""A wrong value is refused in one line that names the right ones, before anything runs."""

from __future__ import annotations

import numpy as np
import pytest

from l2c_export.errors import UsageError

GOOD = {"class_labels": [1, 2]}


BAD = {
    "no labels": ({"class_labels": []}, "0 class labels: .*1 to 2 images at once: give at least one"),
    "too many labels": (
        {"class_labels": [1, 2, 3]},
        "3 class labels: .*1 to 2 images at once: .* compile it with batch=3",
    ),
    "null class": ({"class_labels": [10]}, "class label 10: must be a whole number from 0 to 9"),
    "negative label": ({"class_labels": [-1]}, "class label -1: .* from 0 to 9"),
    "fraction": ({"class_labels": [1.5]}, r"class label 1\.5: .* from 0 to 9"),
    "truth": ({"class_labels": [True]}, "class label True: .* from 0 to 9"),
    "text": ({"class_labels": "cat"}, "class label 'cat': .* from 0 to 9"),
    "nothing": ({"class_labels": None}, "class label None: .* from 0 to 9"),
    "nested": ({"class_labels": [[1]]}, r"class label \[1\]: .* from 0 to 9"),
    "fewer latents": ({"latents": np.zeros((1, 4, 8, 8), np.float32)}, r"\(1, 4, 8, 8\).*2 images need \(2, 4, 8, 8\)"),
    "one latent": ({"latents": np.zeros((4, 8, 8), np.float32)}, r"\(4, 8, 8\).*need \(2, 4, 8, 8\)"),
    "other channels": ({"latents": np.zeros((2, 3, 8, 8), np.float32)}, r"\(2, 3, 8, 8\).*need"),
    "whole latents": ({"latents": np.zeros((2, 4, 8, 8), int)}, "latents of dtype int64: use float32"),
    "complex latents": ({"latents": np.zeros((2, 4, 8, 8), complex)}, "dtype complex128: use float32"),
    "huge latents": ({"latents": np.full((2, 4, 8, 8), 1e300)}, "latents: they hold numbers that are too large for float32"),
    "objects": ({"latents": np.full((2, 4, 8, 8), None)}, "dtype object: use float32"),
    "negative seed": ({"seed": -1}, r"seed=-1: give one whole number >= 0, or one per image \(2\)"),
    "fractional seed": ({"seed": 0.5}, r"seed=0\.5: give one whole number"),
    "no seed": ({"seed": None}, "seed=None: give one whole number"),
    "text seed": ({"seed": "12"}, "seed='12': give one whole number"),
    "true seed": ({"seed": [True, 0]}, r"seed=\[True, 0\]: give one"),
    "one seed of two": ({"seed": [1]}, r"seed=\[1\]: .*one per image \(2\)"),
    "three seeds": ({"seed": [1, 2, 3]}, r"seed=\[1, 2, 3\]: .*\(2\)"),
    "nan guidance": ({"guidance_scale": float("nan")}, "guidance_scale=nan: must be a finite number"),
    "infinite guidance": ({"guidance_scale": -float("inf")}, "guidance_scale=-inf: must be a finite number"),
    "guidance beyond floats": ({"guidance_scale": 10**400}, r"guidance_scale=1000.*: must be a finite number"),
    "text guidance": ({"guidance_scale": "4"}, "guidance_scale='4': must be a finite number"),
    "complex guidance": ({"guidance_scale": 1j}, "guidance_scale=1j: must be a finite number"),
    "strength": ({"strength": 0.6}, "strength=..: a compiled loop begins with noise, it changes no picture: leave it out"),
    "picture": ({"image": np.zeros((2, 3, 8, 8))}, "image=..: a compiled loop begins with noise"),
    "output type": ({"output_type": "jpeg"}, "output_type='jpeg': use one of latent, device, np, pil"),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_wrong_value_is_named_with_what_is_right(pipe, bad):
    change, says = BAD[bad]
    ran = []
    with pytest.raises(UsageError, match=says) as error:
        pipe(**{**GOOD, **change}, callback_on_step_end=lambda *_: ran.append(1))
    assert isinstance(error.value, ValueError)
    assert "\n" not in str(error.value)
    assert not ran


def test_ragged_latents_are_an_error_of_ours(pipe):
    with pytest.raises(UsageError, match="latents"):
        pipe([1, 2], latents=[[1.0], [1.0, 2.0]])
