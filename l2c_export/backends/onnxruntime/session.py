"""What sessions have in common, whatever they run on: threads, linked weights, and errors in one line."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...artefact.integrity import leaves
from ...errors import BackendError
from ...support.extras import needs
from ...support.machine import cores
from ...support.words import counted, first_line
from ...weights.layout import WEIGHTS

ort = needs("onnxruntime", "onnxruntime")

BFLOAT16 = 16  # ONNX's number of the type: its bindings look dtypes up by numbers that ml_dtypes does not have
# The pool of threads that all sessions of this process share; None until the first backend is opened.
_global_threads: int | None = None
_once = threading.Lock()  # what a process has once is made by one thread


def reason(error: Exception) -> str:
    """One of ONNX Runtime's errors, which have no base of their own, in one line."""
    return f"ONNX Runtime {ort.__version__}: {first_line(error)}"


def not_loaded(path: Path, error: Exception) -> BackendError:
    """The same, of a model that it does not take."""
    return BackendError(f"ONNX Runtime {ort.__version__} cannot load {path}: {first_line(error)}")


def session_options(pooled: bool, threads: int) -> Any:
    """Options without a word of ONNX Runtime's own; a session has the process's pool, or so many threads for itself."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if pooled:
        options.use_per_session_threads = False
    else:
        options.intra_op_num_threads = threads
    return options


def initialised(options: Any, path: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """Give a session of a whole graph its weights in place.  Keep what is returned as long as the session."""
    for name, value in values.items():
        options.add_initializer(name, value)
    return {**values, **linked_weights(options, path)}


def linked_weights(options: Any, path: Path) -> dict[str, Any]:
    """Give a session the weights of a graph's folder as a file in memory, if they are a link out of it.  Keep what is returned.

    ONNX Runtime refuses such a link, and looks at the file even for weights that it is given one by one.
    """
    file = path.parent / WEIGHTS
    if not leaves(path.parent, file) or not hasattr(options, "add_external_initializers_from_files_in_memory"):
        return {}  # releases without it open any file
    memory = np.memmap(file, mode="c")
    options.add_external_initializers_from_files_in_memory([WEIGHTS], [memory.data], [memory.nbytes])
    return {WEIGHTS: memory}


def share_pool(threads: int | None) -> int:
    """The size of the process's pool, which can be set once; 0 where this ONNX Runtime does not let us.

    Raises BackendError if another size is asked for later: ONNX Runtime then has no other pool to offer.
    """
    global _global_threads
    with _once:
        if _global_threads is None:
            size = threads or cores()
            try:
                ort.set_global_thread_pool_sizes(size, 1)
            except Exception:
                size = 0
            _global_threads = size
    if _global_threads and threads not in (None, _global_threads):
        raise BackendError(
            f"onnxruntime: this process has a pool of {counted(_global_threads, 'thread')} already: "
            f"use threads={_global_threads}, leave it out, or load the other pipeline in another process"
        )
    return _global_threads
