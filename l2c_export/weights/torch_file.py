"""Reading files of torch.save, both its zip archives and its older format, without PyTorch: only tensors and plain values.

Tensors are views of the mapped file: nothing is unpacked or copied, whatever sizes it claims.  The mapping is copy-on-write,
because some libraries do not take read-only memory.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import L2CError
from ..ir.dtypes import BFLOAT16
from ..support import file_kind
from . import pickled
from .pickled import Global, Placeholder, Refused

MOST_PICKLED = 128 * 2**20  # bytes; the tensors' numbers lie outside
MOST_LISTED = 32 * 2**20  # bytes of an archive's list of entries
MOST_AXES = 32
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
# PyTorch's types that NumPy has, and bfloat16 as its 16 bits, in either order of bytes
STORED = {
    "float32": "f4", "float64": "f8", "float16": "f2", "bfloat16": "u2", "int64": "i8", "int32": "i4", "int16": "i2",
    "int8": "i1", "uint8": "u1", "bool": "?", "complex64": "c8", "complex128": "c16", "uint16": "u2",
    "uint32": "u4", "uint64": "u8",
}  # fmt: skip
STORAGES = {
    "Float": "float32", "Double": "float64", "Half": "float16", "BFloat16": "bfloat16", "Long": "int64", "Int": "int32",
    "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool", "ComplexFloat": "complex64",
    "ComplexDouble": "complex128", "Untyped": "uint8",
}  # fmt: skip
ODD = {
    "_rebuild_sparse_tensor": "sparse", "_rebuild_qtensor": "quantized", "_rebuild_meta_tensor_no_storage": "meta",
    "_rebuild_nested_tensor": "nested", "_rebuild_wrapper_subclass": "wrapped",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Storage:
    """Numbers of one type, from number `first` of a record of the file."""

    records: Records
    key: str
    dtype: str
    numbers: int
    first: int = 0


@dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor of any layout; of a kind that has no numbers of its own (sparse, quantized, ..) only `dtype`, which says so."""

    dtype: str
    shape: tuple[int, ...] = ()
    storage: Storage | None = None
    offset: int = 0
    strides: tuple[int, ...] = ()

    def array(self) -> np.ndarray:
        """A view of the mapped file; bfloat16 as its 16 bits.  Raises Refused for a type NumPy lacks."""
        if self.storage is None or self.dtype not in STORED:
            raise Refused(f"a tensor is {self.dtype}")
        code = np.dtype(STORED[self.dtype]).newbyteorder("<" if self.storage.records.little else ">")
        data = self.storage.records.data[self.storage.key]
        start = self.storage.first * np.dtype(STORED.get(self.storage.dtype, "u1")).itemsize + self.offset * code.itemsize
        if math.prod(self.shape) == 0:
            return np.zeros(self.shape, code)
        flat = data[start:].view(np.uint8)
        flat = flat[: len(flat) // code.itemsize * code.itemsize].view(code)
        return np.lib.stride_tricks.as_strided(flat, self.shape, [s * code.itemsize for s in self.strides])

    def float32(self) -> np.ndarray:
        """The numbers of a floating-point tensor, as a view if they are float32 already, one behind the other."""
        values = self.array()
        if self.dtype == "bfloat16":
            values = values.astype(np.uint16).view(BFLOAT16)  # which is in the machine's order of bytes
        return np.require(values, np.float32, ["C", "A"])


@dataclass(eq=False)
class Records:
    """The bytes of a file's storages, by their keys, and the tensors that were made of them."""

    little: bool = True
    data: dict[str, np.ndarray] = field(default_factory=dict)
    tensors: list[Tensor] = field(default_factory=list)
    storages: dict[str, Storage] = field(default_factory=dict)

    def persistent(self, reference: Any) -> Any:
        """A storage, from what torch.save notes of it."""
        if not isinstance(reference, tuple) or not reference:
            raise Refused("its pickle refers to something that is no storage")
        if reference[0] == "module":  # of a whole model, its class and the text of that
            return reference[1]
        kind, sort, key, _, numbers, *view = reference
        if kind != "storage" or not isinstance(sort, Global) or not isinstance(key, str):
            raise Refused("its pickle refers to something that is no storage")
        name = sort.name.removesuffix("Storage").removeprefix("_")
        storage = Storage(self, key, STORAGES.get(name, name.lower()), _size(numbers))
        self.storages.setdefault(key, storage)
        if view and view[0] is not None:
            _, first, count = view[0]
            storage = Storage(self, key, storage.dtype, _size(count), _size(first))
        return storage

    def rebuild(self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any, dtype: str = "") -> Tensor:
        if not isinstance(storage, Storage) or not isinstance(shape, tuple) or not isinstance(strides, tuple):
            raise Refused("its pickle makes a tensor of something that is no storage")
        if len(shape) != len(strides) or len(shape) > MOST_AXES:
            raise Refused(f"a tensor has {len(shape)} axes and {len(strides)} strides")
        sizes, steps = tuple(map(_size, shape)), tuple(map(_size, strides))
        tensor = Tensor(dtype or storage.dtype, sizes, storage, _size(offset), steps)
        self.tensors.append(tensor)
        return tensor

    def rebuild_v3(
        self, storage: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, dtype: Any, *_: Any
    ) -> Tensor:
        """Of a type that has no class of storages: those hold bytes."""
        return self.rebuild(storage, offset, shape, strides, dtype=dtype.name if isinstance(dtype, Global) else "unknown")

    def rebuild_from_type(self, function: Any, kind: Any, arguments: Any, *_: Any) -> Any:
        """A tensor of a subclass, or with attributes."""
        rebuild = (
            self.calls().get(str(function)) if isinstance(function, Global) and function.name.startswith("_rebuild_t") else None
        )
        if rebuild is None or not isinstance(arguments, tuple):
            return Tensor("wrapped")
        return rebuild(*arguments)

    def calls(self) -> dict[str, Callable[..., Any]]:
        """The only functions that a pickle may call, all ours."""
        return {
            **{f"torch._utils.{name}": (lambda *_, kind=kind: Tensor(kind)) for name, kind in ODD.items()},
            "torch._utils._rebuild_tensor": self.rebuild,
            "torch._utils._rebuild_tensor_v2": self.rebuild,
            "torch._utils._rebuild_tensor_v3": self.rebuild_v3,
            "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
            "torch._utils._rebuild_parameter_with_state": lambda tensor, *_: tensor,
            "torch.nn.parameter.Parameter": lambda tensor=None, *_: tensor,
            "torch._tensor._rebuild_from_type_v2": self.rebuild_from_type,
            "torch.Size": lambda sizes=(): tuple(sizes) if isinstance(sizes, (list, tuple)) else (),
            "collections.OrderedDict": _dict,
            "collections.defaultdict": lambda *_: {},
            "collections.Counter": lambda counts=None: counts if isinstance(counts, dict) else {},
            "_codecs.encode": _encode,
            "numpy.core.multiarray.scalar": _scalar,
            "numpy._core.multiarray.scalar": _scalar,
        }

    def check(self) -> None:
        """Refuse tensors that claim numbers that are not there."""
        for tensor in self.tensors:
            storage = tensor.storage
            if storage is None or tensor.dtype not in STORED:
                continue
            if storage.key not in self.data:
                raise Refused(f"the numbers of storage {storage.key} are missing")
            item, unit = (np.dtype(STORED.get(kind, "u1")).itemsize for kind in (tensor.dtype, storage.dtype))
            bytes_held = min(storage.numbers * unit, len(self.data[storage.key]) - storage.first * unit)
            count = math.prod(tensor.shape)
            last = tensor.offset + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.strides, strict=True))
            if count and ((last + 1) * item > bytes_held or count * item > bytes_held):
                raise Refused(f"a tensor of shape {list(tensor.shape)} claims more numbers than it has")


def _size(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**62:
        raise Refused("a tensor has a size or an offset that is none")
    return value


def _dict(pairs: Any = ()) -> dict[str, Any]:
    """An OrderedDict, which older Pythons wrote as pairs."""
    if not isinstance(pairs, (list, tuple)):
        return {}
    return {p[0]: p[1] for p in pairs if isinstance(p, (list, tuple)) and len(p) == 2 and isinstance(p[0], str)}


def _encode(text: Any = None, encoding: Any = None, *_: Any) -> Any:
    """Bytes, which protocol 2 writes as text."""
    return text.encode("latin1") if isinstance(text, str) and encoding == "latin1" else Placeholder("_codecs.encode")


def _scalar(kind: Any = None, data: Any = None, *_: Any) -> Any:
    """A number of NumPy's as one of Python's."""
    code = kind.arguments[0] if isinstance(kind, Placeholder) and kind.arguments else None
    if code not in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"):
        return Placeholder("numpy.scalar")
    order = kind.state[1] if isinstance(kind.state, tuple) and len(kind.state) > 1 and kind.state[1] in ("<", ">", "|") else "<"
    dtype = np.dtype(f"{order}{code}")
    if not isinstance(data, bytes) or len(data) != dtype.itemsize:
        return Placeholder("numpy.scalar")
    return np.frombuffer(data, dtype)[0].item()


def load(path: Path, error: type[L2CError], what: str, remedy: str) -> Any:
    """The object in a file of torch.save: plain values, dicts, lists, tuples, `Tensor`, and `Placeholder` for all else.

    Raises `error` when the file is anything else.
    """
    try:
        kind = file_kind.of(path)
        if kind not in (file_kind.TORCH, file_kind.LEGACY_TORCH):
            raise error(f"{path} is not {what}: {kind.instead(remedy)}")
        return (_archive if kind == file_kind.TORCH else _legacy)(path)
    except OSError as cause:
        raise error(f"{path}: cannot be read: {cause.strerror or cause}: {remedy}") from None
    except Refused as cause:
        raise error(f"{path} is not {what}: {cause}; nothing was executed: {remedy}") from None
    except L2CError:
        raise
    except Exception as cause:  # damaged bytes end in errors of all kinds
        raise error(f"{path} is not {what}, or is truncated ({type(cause).__name__}): {remedy}") from None


def _archive(path: Path) -> Any:
    memory = np.memmap(path, mode="c")
    _check_list(memory)
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        infos = archive.infolist()
    if any(e.compress_type != zipfile.ZIP_STORED or e.flag_bits & 1 for e in infos):
        raise Refused("its archive is packed, which torch.save does not do")
    if sum(e.file_size for e in infos) > len(memory):
        raise Refused("the entries of its archive are larger than the file")
    (main,) = (name for name in entries if name.rpartition("/")[2] == "data.pkl")
    folder = main.removesuffix("data.pkl")
    records = Records()
    if f"{folder}byteorder" in entries:
        order = bytes(_record(memory, entries[f"{folder}byteorder"]))
        if order not in (b"little", b"big"):
            raise Refused("its archive is damaged")
        records.little = order == b"little"
    body = _record(memory, entries[main])
    if len(body) > MOST_PICKLED:
        raise Refused(f"its pickle has {len(body) >> 20} MB")
    content = pickled.load(io.BytesIO(bytes(body)), records.calls(), records.persistent)
    for key in records.storages:
        if entry := entries.get(f"{folder}data/{key}"):
            records.data[key] = _record(memory, entry)
    records.check()
    return content


def _check_list(memory: np.ndarray) -> None:
    """Refuse an archive whose list of entries alone would take much memory."""
    tail = bytes(memory[-(2**16 + 98) :])
    end, end64 = tail.rindex(b"PK\5\6"), tail.rfind(b"PK\6\6")
    (size,) = struct.unpack_from("<I", tail, end + 12)
    if end64 >= 0:
        (size,) = struct.unpack_from("<Q", tail, end64 + 40)
    if size > MOST_LISTED:
        raise Refused(f"the list of its archive's entries has {size >> 20} MB")


def _record(memory: np.ndarray, entry: zipfile.ZipInfo) -> np.ndarray:
    """The bytes of an entry, which lie behind its name in the file."""
    at = entry.header_offset
    head = bytes(memory[at : at + 30]) if at >= 0 else b""
    if not head.startswith(b"PK\3\4"):
        raise Refused("its archive is damaged")
    name, more = struct.unpack_from("<HH", head, 26)
    start = at + 30 + name + more
    data = memory[start : start + entry.file_size]
    if len(data) != entry.file_size:
        raise Refused("its archive is truncated")
    return data


def _legacy(path: Path) -> Any:
    """Four pickles (a magic number, a version, the system, the object), a list of keys, and the storages in its order."""
    memory = np.memmap(path, mode="c")
    file, records = io.BytesIO(bytes(memory[:MOST_PICKLED])), Records()
    magic, version, system, content, keys = (pickled.load(file, records.calls(), records.persistent) for _ in range(5))
    if magic != MAGIC or version != PROTOCOL or not isinstance(keys, list):
        raise Refused("it is of another version of torch.save")
    records.little = not isinstance(system, dict) or system.get("little_endian") is not False
    at = file.tell()
    for key in keys:
        storage = records.storages[key]
        count = int.from_bytes(bytes(memory[at : at + 8]), "little" if records.little else "big")
        size = count * np.dtype(STORED.get(storage.dtype, "u1")).itemsize
        records.data[key] = memory[at + 8 : at + 8 + size]
        if len(records.data[key]) != size:
            raise Refused("it is truncated")
        at += 8 + size
    records.check()
    return content
