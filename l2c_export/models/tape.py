"""Recording: an operation is called once with values that have a type and no numbers, and its primitives are noted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import msgspec
import torch

from ..ir.graph import Attribute, Body, Primitive, Value
from ..ir.primitives import apply
from ..ir.signature import Misfit


class Recorded:
    """A value while recording.  Only primitives take it; what else it is given to is refused, which is a bug of the family."""

    def __init__(self, name: str, value: Value, tape: Tape) -> None:
        self.name, self.value, self.tape = name, value, tape

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.value.dtype)
        return dtype

    @property
    def shape(self) -> tuple[int | str, ...]:
        return self.value.shape

    def __getattr__(self, name: str) -> NoReturn:
        raise AssertionError(f"{self.__dict__['tape'].kind}: {name} is no primitive")

    def refuse(self, name: str) -> NoReturn:
        raise AssertionError(f"{self.tape.kind}: {name} is no primitive")

    @classmethod
    def __torch_function__(cls, function: Any, types: object, args: Any = (), kwargs: object = None) -> NoReturn:
        flat = [value for argument in args for value in (argument if isinstance(argument, (list, tuple)) else (argument,))]
        operand = next(value for value in flat if isinstance(value, cls))
        operand.refuse(getattr(function, "__name__", str(function)))


def _refused(name: str) -> Callable[..., NoReturn]:
    return lambda self, *_: self.refuse(name.strip("_"))


for name in ("add", "sub", "mul", "truediv", "pow", "matmul", "neg", "getitem", "iter", "bool", "float", "int", "len"):
    for form in (f"__{name}__", f"__r{name}__"):
        setattr(Recorded, form, _refused(form))


class Tape:
    """The primitives of one operation, in the order in which it calls them."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.primitives: list[Primitive] = []
        self.values: dict[str, Value] = {}

    def value(self, name: str, value: Value) -> Recorded:
        self.values[name] = value
        return Recorded(name, value, self)

    def take(self, op: str, inputs: Sequence[Any], attributes: Mapping[str, Attribute]) -> Any:
        """Note one primitive; its results, one by itself."""
        for i in inputs:
            if not isinstance(i, Recorded):
                raise AssertionError(f"{self.kind}: {op} is given {i!r}, which is nothing recorded")
        names = tuple(i.name for i in inputs)
        count = attributes.get("parts", 1)
        assert isinstance(count, int)
        outputs = tuple(f"v{len(self.values) + n}" for n in range(count))
        primitive = Primitive(op, tuple(attributes.items()), names, outputs)
        try:
            types = apply(primitive, self.values)
        except Misfit as error:
            raise AssertionError(f"{self.kind}: {error}") from None
        self.primitives.append(primitive)
        results = [self.value(name, value) for name, value in zip(outputs, types, strict=True)]
        return tuple(results) if len(results) > 1 else results[0]


def body(kind: str, function: Callable[..., Any], inputs: Sequence[Value]) -> Body:
    """What a function computes of inputs of these types, in primitives.  Raises AssertionError for what is none."""
    tape = Tape(kind)
    arguments = [tape.value(f"i{n}", msgspec.structs.replace(value, kind="")) for n, value in enumerate(inputs)]
    output = function(*arguments)
    results = output if isinstance(output, tuple) else (output,)
    for result in results:
        assert isinstance(result, Recorded), f"{kind} returns {result!r}, which is nothing recorded"
    outputs = tuple(result.name for result in results)
    assert len({*outputs, *(i.name for i in arguments)}) == len(outputs) + len(arguments), (
        f"{kind} returns a value twice, or an input"
    )
    return Body(kind, tuple(i.name for i in arguments), outputs, tuple(tape.primitives), tape.values)
