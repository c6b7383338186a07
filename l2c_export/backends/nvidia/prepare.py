"""`l2c build --backend cuda`: what loading would make is made before, in the user's cache, and the fastest products are found.

Kernels are compiled for any GPUs; without a word which, for the one that is here, whose products are measured, too.
"""

from __future__ import annotations

from collections.abc import Callable

from ...artefact.manifest import Manifest
from ...errors import BackendError, UsageError
from ...ir.precisions import FP8
from ...ir.signature import Misfit
from ...support.files import Report
from ...support.words import counted
from ..building import BuildSettings, Range
from ..contract import Request
from ..cuda.device import OLDEST_FP8
from .backend import IN_BF16, OLDEST, CudaBackend
from .compiling import compiled
from .graphs import EnginePiece, pieces
from .plan import plan, uncovered
from .products import ProductShape, shape_of_product
from .steps import Product, StepPlan


def prepare(manifest: Manifest, settings: BuildSettings, sizes: Range, report: Report, progress: Callable[[], object]) -> None:
    """Raises BackendError for a primitive that there is nothing for, UsageError for what is no GPU of ours."""
    for target in settings.targets:
        if not target.removeprefix("sm").isdecimal() or int(target.removeprefix("sm")) < OLDEST:
            raise UsageError(f"targets={target!r}: cuda takes GPUs from sm{OLDEST} on, as sm90")
        if manifest.precision == FP8 and int(target.removeprefix("sm")) < OLDEST_FP8:
            raise UsageError(f"targets={target!r}: {FP8} needs sm{OLDEST_FP8} or newer: {IN_BF16}")
    backend = None if settings.targets else CudaBackend(Request(precision=manifest.precision))
    engine_pieces = {piece for images in sorted({*sizes}) for piece in pieces(manifest, images)}
    plans = [_plan(piece) for piece in sorted(engine_pieces, key=lambda piece: piece.name)]
    sources = list(dict.fromkeys(kernel.source for own_plan in plans for kernel in own_plan.kernels))
    targets = settings.targets or ((backend.memory.architecture,) if backend else ())
    for target in targets:
        for source in sources:
            compiled(source, target)
    report(f"cuda: {counted(len(sources), 'kernel')} for {', '.join(targets)}, in the user's cache")
    progress()
    if backend:
        steps = [step for own_plan in plans for step in backend.supported(own_plan)]
        shapes = list(dict.fromkeys(_shape(step) for step in steps if isinstance(step, Product)))
        gains = [backend.products.tune(shape) for shape in shapes]
        backend.products.keep()
        faster = [gain for gain in gains if gain > 1]
        most = f", by up to {max(faster):.2f}x" if faster else ""
        report(f"cuda: {counted(len(shapes), 'product')} measured, {len(faster)} faster than the library's first choice{most}")


def _plan(piece: EnginePiece) -> StepPlan:
    if missing := uncovered(piece.primitives):
        raise BackendError(f"cuda: {piece.name} has primitives that there is nothing for: {', '.join(missing)}")
    try:
        return plan(piece.primitives, dict(piece.inputs), piece.outputs)
    except Misfit as error:
        raise BackendError(f"cuda: {piece.name}: {error}") from None


def _shape(product: Product) -> ProductShape:
    """As it is where all arrays begin where arenas let them."""
    return shape_of_product(product, (0, 0, 0, 0))
