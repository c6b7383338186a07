"""Reading PyTorch files: only tensors, plain containers and `argparse.Namespace` are ever unpickled."""

from __future__ import annotations

import argparse
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from .errors import L2CError


def load(path: Path, error: type[L2CError], what: str, remedy: str) -> Any:
    """The object in a torch checkpoint, on the CPU.  Raises `error` when the file is anything else.

    Tensors of today's format (a zip archive) are views of the mapped file: nothing is unpacked or copied, whatever sizes it
    claims.
    """
    try:
        with open(path, "rb") as file:
            archive = file.read(4) == b"PK\x03\x04"
        if archive:
            _refuse_packed(path)
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols, which is not the user's concern
            return torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except OSError as cause:
        raise error(f"{path}: cannot be read: {cause.strerror or cause}: {remedy}") from None
    except pickle.UnpicklingError as cause:
        refused = str(cause).partition("GLOBAL ")[2].split(" ")[0]
        detail = f"it wants to import {refused}, which no tensor needs" if refused else "it is damaged"
        raise error(f"{path} is not {what}: {detail}; nothing was executed: {remedy}") from None
    except Exception as cause:  # damaged bytes end in errors of all kinds
        raise error(f"{path} is not {what}, or is truncated ({type(cause).__name__}): {remedy}") from None


def _refuse_packed(path: Path) -> None:
    """torch.save stores its archives unpacked; a packed one may become any size in memory."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    if any(e.compress_type != zipfile.ZIP_STORED for e in entries) or sum(e.file_size for e in entries) > path.stat().st_size:
        raise ValueError("packed")


def is_plain(value: object) -> bool:
    """Whether a value is a tensor with all its numbers, laid out as usual."""
    return isinstance(value, torch.Tensor) and value.layout == torch.strided and value.device.type == "cpu"
