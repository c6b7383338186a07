"""DLPack: how arrays of one library become arrays of another without a copy.

The structures are those of https://dmlc.github.io/dlpack/latest/c_api.html; numpy writes its own, so this is for memory that
numpy cannot hold.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

CUDA = 2  # DLDeviceType
INT, FLOAT, BFLOAT = 0, 2, 4  # DLDataTypeCode
CODES = {"float32": (FLOAT, 32), "float16": (FLOAT, 16), "int32": (INT, 32), "uint8": (1, 8), "bfloat16": (BFLOAT, 16)}


class DLDevice(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int32), ("id", ctypes.c_int32))


class DLDataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", DLDevice),
        ("ndim", ctypes.c_int32),
        ("dtype", DLDataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class DLManagedTensor(ctypes.Structure):
    _fields_ = (("tensor", DLTensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


_lent: dict[int, tuple[object, ...]] = {}  # what must live as long as somebody reads it, by the structure's address


def _give_back(address: int) -> None:
    _lent.pop(address, None)


def _unread(capsule: int) -> None:
    """A capsule that nobody has read; one that was read has another name, and its reader gives the memory back."""
    if _valid(capsule, b"dltensor"):
        _give_back(_pointer(capsule, b"dltensor"))


_deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(_give_back)
_destructor = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(_unread)
_new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", ctypes.pythonapi)
)
_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_IsValid", ctypes.pythonapi))
_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_GetPointer", ctypes.pythonapi))


def capsule(pointer: int, shape: Sequence[int], dtype: str, device: tuple[int, int], owner: object) -> Any:
    """A capsule over dense memory; `owner` is kept until its reader is done."""
    sizes = (ctypes.c_int64 * len(shape))(*shape)
    code, bits = CODES[dtype]
    tensor = DLTensor(pointer, DLDevice(*device), len(shape), DLDataType(code, bits, 1), sizes, None, 0)
    managed = DLManagedTensor(tensor, None, ctypes.cast(_deleter, ctypes.c_void_p))
    address = ctypes.addressof(managed)
    _lent[address] = (managed, sizes, owner)
    return _new(address, b"dltensor", ctypes.cast(_destructor, ctypes.c_void_p))
