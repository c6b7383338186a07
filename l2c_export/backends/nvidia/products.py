"""Products by cuBLASLt: y = x weight' [+ bias, + residual, GELU], each an epilogue of the product.

The library counts columns first, so it is given the transposed product: an array (M, N) of ours is one (N, M) of its.
https://docs.nvidia.com/cuda/cublas/#using-the-cublaslt-api
"""

from __future__ import annotations

import json
import re
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ...errors import BackendError
from ...ir.dtypes import BYTES, E4M3
from ...support.cache import cache_folder, keep, kept
from ...support.extras import needs
from ...support.words import first_line
from ..contract import ALIGNED
from ..cuda.device import Cuda, DeviceArray
from . import tuning
from .steps import Product

WORKSPACE = 32 * 2**20  # bytes: what NVIDIA advises on Hopper
CANDIDATES = 8  # that are timed where products are tuned
CLEARLY = 0.95  # of the first choice's time: what another has to reach
KINDS = {"float32": "CUDA_R_32F", "float16": "CUDA_R_16F", "bfloat16": "CUDA_R_16BF", E4M3: "CUDA_R_8F_E4M3"}
Pointer = Callable[[Any], int]  # of a view


class ProductShape(NamedTuple):
    """What the choice of an algorithm depends on."""

    rows: int
    columns: int  # of the result
    inner: int
    dtype: str
    bias: bool
    residual: bool
    gelu: bool
    aligned: tuple[int, int, int, int]  # bytes: weight, x, residual, result
    factors: str = ""  # the type of weight and x, where they have scales

    @property
    def key(self) -> str:
        """What is measured once, wherever the arrays lie."""
        return " ".join(map(str, (*self[:-2], *([self.factors] if self.factors else []))))

    @property
    def factor(self) -> str:
        """The type of weight and x."""
        return self.factors or self.dtype


def shape_of_product(product: Product, addresses: tuple[int, int, int, int]) -> ProductShape:
    """Of a product whose weight, x, residual and result lie at these addresses."""
    (rows, inner), columns = product.x.shape, product.out.shape[1]
    a, b, c, d = (min(ALIGNED, address & -address) if address else ALIGNED for address in addresses)
    epilogue = product.bias is not None, product.residual is not None, product.gelu
    factors = product.x.dtype if product.scales else ""
    return ProductShape(rows, columns, inner, product.out.dtype, *epilogue, (a, b, c, d), factors)


class Scales(NamedTuple):
    """The addresses of the scales of x and weight, 0 without; and 1 over what an e4m3 result is a multiple of."""

    x: int
    weight: int
    inverse: DeviceArray | None


NO_SCALES = Scales(0, 0, None)


class Prepared:
    """A product's descriptions and algorithm; destroyed with its last user."""

    def __init__(self, products: Products, shape: ProductShape) -> None:
        lt, kinds = products.lt, products.kinds
        kind, factor = (getattr(kinds, KINDS[dtype]) for dtype in (shape.dtype, shape.factor))
        added = kinds.CUDA_R_16BF if shape.dtype == E4M3 else kind  # the type of what is added, and of the bias
        self.operation = lt.matmul_desc_create(products.compute, kinds.CUDA_R_32F)
        rows, columns, inner = shape.rows, shape.columns, shape.inner
        self.weight = lt.matrix_layout_create(factor, inner, columns, inner)
        self.x = lt.matrix_layout_create(factor, inner, rows, inner)
        self.out = lt.matrix_layout_create(kind, columns, rows, columns)
        self.residual = lt.matrix_layout_create(added, columns, rows, columns)
        weakref.finalize(self, _destroy, lt, self.operation, (self.weight, self.x, self.out, self.residual))
        attributes = lt.MatmulDescAttribute
        products.set(lt.matmul_desc_set_attribute, self.operation, attributes.TRANSA, 1, np.int32)
        name = {(False, False): "DEFAULT", (True, False): "BIAS", (False, True): "GELU", (True, True): "GELU_BIAS"}
        epilogue = lt.Epilogue[name[shape.bias, shape.gelu]]
        products.set(lt.matmul_desc_set_attribute, self.operation, attributes.EPILOGUE, epilogue, np.int32)
        if shape.dtype == E4M3:
            products.set(lt.matmul_desc_set_attribute, self.operation, attributes.BIAS_DATA_TYPE, added, np.int32)
        if shape.factors:  # sums of 128 products at a time in the tensor cores, as everybody's inference does
            products.set(lt.matmul_desc_set_attribute, self.operation, attributes.FAST_ACCUM, 1, np.int8)
        self.in_place = added == kind  # whether what is added may lie where the result goes
        self.candidates = self._candidates(products, shape)
        self.algorithm = self.candidates[:1]
        known = products.known.get(shape.key)
        for n in range(len(self.candidates)):
            if self.candidates[n]["algo"].tobytes().hex() == known:
                self.algorithm = self.candidates[n : n + 1]

    def _candidates(self, products: Products, shape: ProductShape) -> np.ndarray:
        lt = products.lt
        preference = lt.matmul_preference_create()
        try:
            names = lt.MatmulPreferenceAttribute
            products.set(lt.matmul_preference_set_attribute, preference, names.MAX_WORKSPACE_BYTES, WORKSPACE, np.uint64)
            for letter, least in zip("ABCD", shape.aligned, strict=True):
                name = names[f"MIN_ALIGNMENT_{letter}_BYTES"]
                products.set(lt.matmul_preference_set_attribute, preference, name, least, np.uint32)
            candidates, count = np.zeros(CANDIDATES, lt.matmul_heuristic_result_dtype), np.zeros(1, np.int32)
            lt.matmul_algo_get_heuristic(
                products.handle, self.operation, self.weight, self.x, self.residual, self.out, preference, CANDIDATES,
                candidates.ctypes.data, count.ctypes.data,
            )  # fmt: skip
        except Exception as error:
            raise BackendError(f"cuda: cuBLASLt has no product for {shape}: {first_line(error)}") from None
        finally:
            lt.matmul_preference_destroy(preference)
        if not count[0]:
            raise BackendError(f"cuda: cuBLASLt has no product for {shape}")
        return candidates[: count[0]]


def _destroy(lt: Any, operation: int, layouts: tuple[int, ...]) -> None:
    for layout in layouts:
        lt.matrix_layout_destroy(layout)
    lt.matmul_desc_destroy(operation)


class Products:
    """cuBLASLt on one stream, with one workspace: products run one after the other."""

    def __init__(self, memory: Cuda) -> None:
        self.lt: Any = needs("nvmath.bindings.cublasLt", "cuda")
        self.kinds = needs("nvmath", "cuda").CudaDataType
        self.compute = needs("nvmath.bindings.cublas", "cuda").ComputeType.COMPUTE_32F  # no TF32: float32 means float32
        try:
            self.handle = self.lt.create()
        except Exception as error:
            raise BackendError(f"cuda: cuBLASLt does not start: {first_line(error)}: pip install 'l2c-export[cuda]'") from None
        weakref.finalize(self, self.lt.destroy, self.handle)
        self._memory, self._stream = memory, memory.stream
        self._workspace = memory.allocate(WORKSPACE)
        self._prepared: dict[ProductShape, Prepared] = {}
        self._one, self._zero = np.ones(1, np.float32), np.zeros(1, np.float32)
        card = "-".join(re.findall(r"\w+", memory.name))
        self._path = cache_folder("timing") / f"cuda-{self.version}-{card}.json"
        self.known: dict[str, str] = _read(kept(self._path))  # the fastest algorithm by a product's key, as hexadecimal bytes

    def tune(self, shape: ProductShape) -> float:
        """Find the fastest algorithm for a product; how many times as fast it is as the library's first choice."""
        prepared = self.prepared(shape)
        if len(prepared.candidates) == 1:
            return 1.0
        seconds = tuning.seconds(self, self._memory, shape, prepared)
        best = int(np.argmin(seconds))
        best = best if seconds[best] < CLEARLY * seconds[0] else 0
        prepared.algorithm = prepared.candidates[best : best + 1]
        self.known[shape.key] = prepared.candidates[best]["algo"].tobytes().hex()
        return seconds[0] / seconds[best]

    def keep(self) -> None:
        """Write down what is known, for the next to load an artefact here."""
        keep(self._path, json.dumps(self.known).encode())

    @property
    def version(self) -> str:
        number = int(self.lt.get_version())
        return f"{number // 10000}.{number // 100 % 100}.{number % 100}"

    @staticmethod
    def set(function: Callable[..., None], of: int, name: int, value: int, dtype: Any) -> None:
        """An attribute of one of the library's objects."""
        buffer = np.array([value], dtype)
        function(of, name, buffer.ctypes.data, buffer.nbytes)

    def bind(self, product: Product, pointer: Pointer) -> Callable[[], None]:
        """A function that enqueues a product of these pointers."""
        weight, x, out = pointer(product.weight), pointer(product.x), pointer(product.out)
        residual = pointer(product.residual) if product.residual else out
        shape = shape_of_product(product, (weight, x, residual, out))
        bias = pointer(product.bias) if product.bias else 0
        of_x, of_weight = map(pointer, product.scales) if product.scales else (0, 0)
        inverse = self._inverse(pointer(product.out_scale)) if product.out_scale else None
        scales = Scales(of_x, of_weight, inverse)
        return self.run(self.prepared(shape), x, weight, bias, residual if product.residual else 0, out, scales)

    def _inverse(self, scale: int) -> DeviceArray:
        """1 over a scale, copied to where cuBLASLt takes it from: it refuses addresses of less than 16 bytes."""
        behind = DeviceArray(self._workspace, scale + BYTES["float32"], (1,), np.dtype(np.float32), self._memory.index)
        return self._memory.copy(behind)

    def has(self, product: Product) -> bool:
        """Whether the library has this product, wherever its arrays lie."""
        try:
            self.prepared(shape_of_product(product, (0, 0, 0, 0)))
        except BackendError:
            return False
        return True

    def run(
        self, prepared: Prepared, x: int, weight: int, bias: int, residual: int, out: int, scales: Scales = NO_SCALES
    ) -> Callable[[], None]:
        """The same over addresses; 0 stands for what there is not."""
        lt, names = self.lt, self.lt.MatmulDescAttribute
        inverse = scales.inverse.pointer if scales.inverse else 0
        addresses = {names.BIAS_POINTER: bias, names.A_SCALE_POINTER: scales.weight, names.B_SCALE_POINTER: scales.x,
                     names.D_SCALE_POINTER: inverse}  # fmt: skip
        pointers = [(name, np.array([address], np.uint64)) for name, address in addresses.items() if address]
        one, beta = self._one.ctypes.data, (self._one if residual else self._zero).ctypes.data
        added = residual or (out if prepared.in_place else self._workspace.pointer)
        algorithm = prepared.algorithm["algo"].copy()

        def run() -> None:
            _ = scales  # the library has addresses only
            for name, address in pointers:
                lt.matmul_desc_set_attribute(prepared.operation, name, address.ctypes.data, address.nbytes)
            lt.matmul(
                self.handle, prepared.operation, one, weight, prepared.weight, x, prepared.x, beta, added,
                prepared.residual, out, prepared.out, algorithm.ctypes.data, self._workspace.pointer, WORKSPACE, self._stream,
            )  # fmt: skip

        return run

    def prepared(self, shape: ProductShape) -> Prepared:
        if shape not in self._prepared:
            self._prepared[shape] = Prepared(self, shape)
        return self._prepared[shape]


def _read(data: bytes) -> dict[str, str]:
    """What was kept; nothing of a file that is something else."""
    try:
        content = json.loads(data or b"{}")
    except ValueError:
        return {}
    return {str(k): str(v) for k, v in content.items()} if isinstance(content, dict) else {}
