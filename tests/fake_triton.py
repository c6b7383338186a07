"""What Triton's Python backend gives a model, for a model that runs in the test's own process."""

from __future__ import annotations

from typing import Any

import numpy as np


class Error(Exception):
    INTERNAL, INVALID_ARG, CANCELLED = "internal", "invalid", "cancelled"

    def __init__(self, words: str, code: str = INTERNAL) -> None:
        super().__init__(words)
        self.code = code


class Capsule:
    def __init__(self, capsule: Any) -> None:
        self._capsule = capsule

    def __dlpack__(self, **_: Any) -> Any:
        return self._capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0


class Tensor:
    """As a server has it that knows numpy's layout; `numpy_knows = False` makes it one that does not."""

    numpy_knows = True

    def __init__(self, name: str, values: np.ndarray) -> None:
        self._name, self.values = name, values

    @classmethod
    def from_dlpack(cls, name: str, capsule: Any) -> Tensor:
        return cls(name, np.from_dlpack(Capsule(capsule)).copy())

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self.values if self.numpy_knows else np.broadcast_to(self.values.flat[0], self.values.shape)

    def __dlpack__(self, **options: Any) -> Any:
        return self.values.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.values.__dlpack_device__()


class Response:
    def __init__(self, tensors: list[Tensor], error: Error | None = None) -> None:
        self.tensors, self.error = tensors, error

    def __getitem__(self, name: str) -> Any:
        return (
            next(tensor.values for tensor in self.tensors if tensor.name() == name)
            if isinstance(name, str)
            else tuple(self)[name]
        )


class Logger:
    lines: list[str] = []  # noqa: RUF012

    @classmethod
    def log_info(cls, line: str) -> None:
        cls.lines.append(line)

    log_error = log_info


class Utils:
    """triton_python_backend_utils"""

    Tensor, InferenceResponse, TritonError, TritonModelException, Logger = Tensor, Response, Error, Error, Logger
    TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1


class Request:
    """One column of every input."""

    def __init__(
        self, wanted: tuple[str, ...] = ("latents", "images", "step"), left: Any = lambda: False, **columns: Any
    ) -> None:
        self._inputs = [Tensor(name, np.asarray(column).reshape(-1, 1)) for name, column in columns.items()]
        self._left = left
        self.sent: list[tuple[Response, int]] = []

    def inputs(self) -> list[Tensor]:
        return self._inputs

    def requested_output_names(self) -> set[str]:
        return {"latents", "images", "step"}

    def is_cancelled(self) -> bool:
        return bool(self._left())

    def get_response_sender(self) -> Request:
        return self

    def send(self, response: Response, flags: int) -> None:
        self.sent.append((response, flags))
