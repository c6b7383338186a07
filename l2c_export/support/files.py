"""Files that are whole or absent, and folders with one writer at a time."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from ..errors import RunError, UsageError

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

Report = Callable[[str], object]
_count = itertools.count()  # of this process's files


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` when the block ends without an error, and is on the disk by then."""
    partial = path.with_name(f".{os.getpid()}-{next(_count)}.partial")  # not longer than the file's own name may be
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        sync(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def sweep(folder: Path) -> None:
    """Remove what writers left that were killed, from a folder where nobody else writes."""
    for partial in folder.glob(".*-*.partial"):
        partial.unlink(missing_ok=True)


def check_place(path: Path, option: str = "") -> None:
    """Refuse, before a long piece of work, a file that could not be written after it.  Raises UsageError."""
    place = named(path, option)
    if not path.parent.is_dir():
        raise UsageError(f"{place}: there is no folder {path.parent}: make it first")
    if path.is_dir() or not os.access(path.parent if _is_replaced(path) else path, os.W_OK):
        raise UsageError(f"{place}: cannot be written: choose another file")


def write(path: Path, data: bytes, option: str = "") -> None:
    """A whole file, or none; a device or a pipe is written to as it is.  Raises RunError."""
    try:
        if _is_replaced(path):
            with replacing(path) as file:
                file.write(data)
        else:
            path.write_bytes(data)
    except OSError as error:
        reason = error.strerror or error
        raise RunError(f"{named(path, option)}: cannot be written: {reason}: choose another file") from None


def make_folder(folder: Path, option: str = "") -> None:
    """A folder for what follows.  Raises RunError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{named(folder, option)}: cannot be written: {error.strerror}: choose another folder") from None


def named(path: Path, option: str) -> str:
    """A path as the value of the parameter that asked for it."""
    return f"{option}={str(path)!r}" if option else str(path)


def _is_replaced(path: Path) -> bool:
    """Whether a new file takes the place of what is there, which is no device and no pipe."""
    return path.is_file() or not path.exists()


def small(path: Path, most: int = 64 * 2**20) -> bytes:
    """The bytes of a file that people or a compiler write as text.  Raises OSError, also if it has more than `most`."""
    with open(path, "rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"it has more than {most >> 20} MB")
    return data


def sync(path: Path) -> None:
    """Wait until a file or a folder's list of names is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        sync(path)


@contextlib.contextmanager
def locked(folder: Path, report: Report = id) -> Iterator[bool]:
    """Hold a folder for oneself, made if need be; another writer waits, and says so once.

    The lock is on the folder itself and the kernel's, so it leaves no file and ends with its process, however that ends.
    Yields False where there are no such locks (not a POSIX system, some network file systems): writers are not kept apart.
    """
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
        try:
            alone = _lock(handle, folder, report)
            if _is_still(handle, folder):  # nobody removed it while we waited
                yield alone
                return
        finally:
            os.close(handle)


def _is_still(handle: int, folder: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(folder))
    except FileNotFoundError:
        return False


def _lock(handle: int, folder: Path, report: Report) -> bool:
    if fcntl is None:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        report(f"{folder}: another process is writing here: waiting for it")
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError:
        return False
    return True
