"""Reading PyTorch files: only tensors, plain containers and `argparse.Namespace` are ever unpickled."""

from __future__ import annotations

import argparse
import io
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from .errors import L2CError


def load(path: Path, error: type[L2CError], what: str, remedy: str) -> Any:
    """The object in a torch checkpoint, on the CPU.  Raises `error` when the file is anything else."""
    try:
        data = path.read_bytes()
    except OSError as cause:
        raise error(f"{path}: cannot be read: {cause.strerror}: {remedy}") from None
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols, which is not the user's concern
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as cause:
        refused = str(cause).partition("GLOBAL ")[2].split(" ")[0]
        detail = f"it wants to import {refused}, which only tensors may do not" if refused else "it is damaged"
        raise error(f"{path} is not {what}: {detail}; nothing was executed: {remedy}") from None
    except (RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError, IndexError, OSError,
            zipfile.BadZipFile, MemoryError, RecursionError, OverflowError, AssertionError) as cause:  # fmt: skip
        raise error(f"{path} is not {what}, or is truncated ({type(cause).__name__}): {remedy}") from None
