"""A reader of pickles that runs nothing: no module is imported, no attribute looked up, no function of a file called.

The opcodes are taken apart by the standard library's `pickletools`; they build plain values, dicts, lists and tuples.  A global
is its name alone, and calling one makes a `Placeholder` that remembers what it was given, but for the few names in `calls`,
which stand for functions of ours.  `persistent`, ours too, makes something of what refers to data outside the pickle.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

MOST_OPCODES = 2_000_000  # seconds; checkpoints have some thousands
MOST_MARKS = 10_000  # open at a time: how deep values may be in each other
MOST_NUMBERED = 2**16  # entries whose keys are numbers, which somebody may choose so that they collide
# protocol 2 has Python 2's names
RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg", "commands": "subprocess", "torch.tensor": "torch._tensor"}
# Nothing is called, so these do no harm here; but a file that wants them would do harm elsewhere.
PROGRAMS = {"os", "posix", "nt", "subprocess", "sys", "pty", "socket", "shutil", "runpy", "importlib", "ctypes", "io"}
FUNCTIONS = {f"builtins.{name}" for name in ("eval", "exec", "compile", "open", "__import__")}


class Refused(ValueError):
    """A pickle that is not read; the message says why."""


class Global(NamedTuple):
    """A class or function that a pickle names."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False, repr=False, slots=True)
class Placeholder:
    """An object of a class that is not known here: what it was made with, its state, and its items if it is a kind of dict."""

    kind: str
    arguments: tuple[Any, ...] = ()
    state: Any = None
    items: dict[Any, Any] | None = None


Calls = Mapping[str, Callable[..., Any]]
Persistent = Callable[[Any], Any]

EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple, "EMPTY_SET": list}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
LITERALS = {
    "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip


def load(file: BinaryIO, calls: Calls, persistent: Persistent) -> Any:
    """The object of the next pickle in `file`, of protocols 2 to 5; the file is then behind it.

    Raises Refused for what torch.save does not write, and errors of other kinds for damaged bytes.
    """
    return _Machine(calls, persistent).run(file)


class _Machine:
    """The stack, the stacks below the open marks, and the memo.  A method per opcode that does more than push a value."""

    def __init__(self, calls: Calls, persistent: Persistent) -> None:
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.calls, self.persistent = calls, persistent
        self.numbered = 0

    def run(self, file: BinaryIO) -> Any:
        argument: Any
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            name = opcode.name
            if count > MOST_OPCODES:
                raise Refused(f"its pickle has more than {MOST_OPCODES:,} instructions")
            if name in LITERALS:
                self.stack.append(argument)
            elif name in CONSTANTS:
                self.stack.append(CONSTANTS[name])
            elif name in EMPTY:
                self.stack.append(EMPTY[name]())
            elif name == "MEMOIZE":
                self.memo[len(self.memo)] = self.stack[-1]
            elif name in ("BINPUT", "LONG_BINPUT"):
                if argument > count:
                    raise Refused("its pickle numbers its values wrongly")
                self.memo[argument] = self.stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                self.stack.append(self.memo[argument])
            elif name in STEPS:
                STEPS[name](self, argument)
            elif name not in ("PROTO", "FRAME"):
                raise Refused(f"its pickle has the instruction {name}, which torch.save does not write")
        (value,) = self.stack
        return value

    def mark(self, _: Any) -> None:
        if len(self.below) == MOST_MARKS:
            raise Refused(f"its pickle nests values more than {MOST_MARKS:,} deep")
        self.below.append(self.stack)
        self.stack = []

    def to_mark(self) -> list[Any]:
        values, self.stack = self.stack, self.below.pop()
        return values

    def forget(self, _: Any) -> None:
        self.to_mark()

    def close(self, _: Any) -> None:
        values = self.to_mark()
        self.stack.append(tuple(values))

    def pop(self, _: Any) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.to_mark()

    def take(self, count: int) -> tuple[Any, ...]:
        if len(self.stack) < count:
            raise IndexError("empty stack")
        values = tuple(self.stack[-count:])
        del self.stack[-count:]
        return values

    def named(self, module: object, name: object) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise Refused("its pickle names a class with something that is no text")
        target = Global(RENAMED.get(module, module), name)
        if target.module.partition(".")[0] in PROGRAMS or str(target) in FUNCTIONS:
            raise Refused(f"it wants to import {target}, which no tensor needs")
        self.stack.append(target)

    def call(self, function: object, arguments: object, options: object = ()) -> None:
        if not isinstance(function, (Global, Placeholder)) or not isinstance(arguments, tuple):
            raise Refused("its pickle calls something that is no function")
        known_call = self.calls.get(str(function)) if isinstance(function, Global) and not options else None
        self.stack.append(known_call(*arguments) if known_call else Placeholder(_name(function), arguments))

    def build(self, _: Any) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], Placeholder):
            self.stack[-1].state = state  # of a known object it is what no tensor needs, as a state_dict's versions

    def append(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, (list, Placeholder)):
            raise Refused("its pickle appends to something that is no list")
        if isinstance(target, list):
            target.extend(values)

    def set(self, pairs: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, (dict, Placeholder)):
            raise Refused("its pickle sets an item of something that is no dict")
        items: dict[Any, Any] = target if isinstance(target, dict) else target.items or {}
        if isinstance(target, Placeholder):
            target.items = items
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if isinstance(key, str):
                items[key] = value
            elif isinstance(key, int) and abs(key) < 2**63:
                self.numbered += 1
                if self.numbered > MOST_NUMBERED:
                    raise Refused(f"its pickle has more than {MOST_NUMBERED:,} items with numbers for names")
                items[key] = value  # under a key of another kind there is nothing that is wanted


STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "POP_MARK": _Machine.forget,
    "STOP": lambda m, _: None,
    "TUPLE": _Machine.close,
    "TUPLE1": lambda m, _: m.stack.append(m.take(1)),
    "TUPLE2": lambda m, _: m.stack.append(m.take(2)),
    "TUPLE3": lambda m, _: m.stack.append(m.take(3)),
    "FROZENSET": _Machine.close,
    "APPEND": lambda m, _: m.append([m.stack.pop()]),
    "APPENDS": lambda m, _: m.append(m.to_mark()),
    "ADDITEMS": lambda m, _: m.append(m.to_mark()),
    "SETITEM": lambda m, _: m.set(list(m.take(2))),
    "SETITEMS": lambda m, _: m.set(m.to_mark()),
    "GLOBAL": lambda m, names: m.named(*names.split(" ", 1)),
    "STACK_GLOBAL": lambda m, _: m.named(*m.take(2)),
    "REDUCE": lambda m, _: m.call(*m.take(2)),
    "NEWOBJ": lambda m, _: m.call(*m.take(2)),
    "NEWOBJ_EX": lambda m, _: m.call(*m.take(3)),
    "BUILD": _Machine.build,
    "BINPERSID": lambda m, _: m.stack.append(m.persistent(m.stack.pop())),
}


def _name(function: Global | Placeholder) -> str:
    return str(function) if isinstance(function, Global) else function.kind


# what the arguments of a training script become

WRAPPED = ("_content", "_val", "_fields", "__dict__")  # where OmegaConf, ml_collections and pydantic keep what they hold
MOST_PLAIN = 10_000  # values; the same one may be held in many places


def plain(value: Any) -> dict[str, Any]:
    """The plain values of a mapping, or of an object's attributes: numbers, texts, lists and mappings of such.

    What is anything else is left out.
    """
    values = _Plain().of(value, 8)
    return values if isinstance(values, dict) else {}


class _Plain:
    def __init__(self) -> None:
        self.left = MOST_PLAIN

    def of(self, value: Any, depth: int) -> Any:
        """None stands for what is left out, too."""
        self.left -= 1
        if self.left < 0 or depth < 0:
            return None
        if isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, Placeholder):
            return self.of_object(value, depth)
        if isinstance(value, dict):
            values = {key: self.of(item, depth - 1) for key, item in value.items() if isinstance(key, str)}
            return {key: item for key, item in values.items() if item is not None or value[key] is None}
        if isinstance(value, (list, tuple)) and not isinstance(value, Global):
            items = [self.of(item, depth - 1) for item in value[: self.left + 1]]
            return None if any(i is None and v is not None for i, v in zip(items, value, strict=False)) else items
        return None

    def of_object(self, value: Placeholder, depth: int) -> Any:
        if isinstance(value.state, dict):
            inner = next((value.state[key] for key in WRAPPED if key in value.state), value.state)
            return self.of({**(value.items or {}), **inner} if isinstance(inner, dict) else inner, depth - 1)
        return self.of(value.items, depth - 1) if value.items else None
