"""Shards by many processes, on this machine or several, with Ray Data."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import errors
from ..backends.descriptor import GPU
from ..backends.descriptors import AUTO, named
from ..errors import L2CError, RunError, UsageError
from ..support import own_ray
from ..support.extras import needs
from ..support.files import Report
from ..support.progress import Step
from ..support.words import counted, first_line
from . import maker
from .plan import SamplePlan, Shard

if TYPE_CHECKING:
    from ..runtime.pipeline import Pipeline


class ShardSampler:
    """One process with an artefact, which is sent shards.  What goes wrong is sent back, as Ray would wrap it."""

    def __init__(self, opened: Callable[[], Pipeline], out: Path, plan: SamplePlan) -> None:
        self.out, self.plan, self.error = out, plan, ("", "")
        try:
            self.pipe = opened()
        except L2CError as error:
            self.error = type(error).__name__, str(error)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The shards of these numbers, each written."""
        shards, counts = self.plan.shards, list[int]()
        for number in batch["shard"]:
            if not self.error[0]:
                try:
                    maker.write(self.pipe, self.out, self.plan, shards[number])
                except L2CError as error:
                    self.error = type(error).__name__, str(error)
            counts.append(0 if self.error[0] else shards[number].images)
        kind, words = self.error
        return {"images": counts, "kind": [kind] * len(counts), "words": [words] * len(counts)}


def write(
    opened: Callable[[], Pipeline], out: Path, plan: SamplePlan, todo: Sequence[Shard], device: str | None, most: int | None,
    report: Report, step: Step,
) -> None:  # fmt: skip
    """Make these shards, each process with what `opened` returns there.

    There are at most `most` processes, by default as many as there is room for.  One that is killed is started again, and its
    shard made again.  Raises RunError.
    """
    ray = _imported()
    numbers = {shard.name: number for number, shard in enumerate(plan.shards)}
    per_gpu = _on_gpu(plan.backend, device)
    with contextlib.redirect_stdout(sys.stderr), _running(ray):  # it prints what is no data
        workers = min(_workers(ray, most, plan.threads, per_gpu), len(todo))
        report(f"sampling with Ray: {counted(workers, 'process', 'processes')}")
        rows = (
            ray.data.from_items([{"shard": numbers[shard.name]} for shard in todo], override_num_blocks=len(todo))
            .map_batches(
                ShardSampler,
                fn_constructor_args=(opened, out, plan),
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=workers),
                num_cpus=plan.threads,
                num_gpus=1 if per_gpu else 0,
            )
            .iter_rows()
        )
        for row in _in_one_line(rows):
            if row["kind"]:
                raise getattr(errors, row["kind"], RunError)(row["words"])
            step(row["images"])


def _imported() -> Any:
    """Ray, prepared as far as it was not imported before."""
    own_ray.prepare(alone="ray" not in sys.modules and not os.environ.get("RAY_ADDRESS"))
    ray = needs("ray", "ray")
    needs("ray.data", "ray")
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return ray


@contextlib.contextmanager
def _running(ray: Any) -> Iterator[None]:
    """Ray: the one of this process, that of RAY_ADDRESS, or one of its own on this machine, for as long as the block."""
    if ray.is_initialized():
        yield
        return
    options = {} if os.environ.get("RAY_ADDRESS") else own_ray.ALONE
    try:
        ray.init(logging_level="error", log_to_driver=False, **options)
    except Exception as error:  # of its own many kinds
        raise RunError(f"Ray does not start: {first_line(error)}: check RAY_ADDRESS, or sample without ray=True") from None
    try:
        yield
    finally:
        ray.shutdown()


def _workers(ray: Any, most: int | None, threads: int, per_gpu: bool) -> int:
    """As many as are asked for, or as there is room for.  Raises UsageError where there is less."""
    have = ray.cluster_resources()
    room = int(have.get("GPU", 0)) if per_gpu else int(have.get("CPU", 0)) // threads
    if (most or 1) > room:
        what = "GPUs" if per_gpu else f"workers of {counted(threads, 'thread')}"
        raise UsageError(f"workers={most or 1}: Ray has room for {room} {what}: use at most that")
    return most or room


def _on_gpu(backend: str, device: str | None) -> bool:
    """Whether a sampler needs a GPU of its own."""
    if device is not None or backend == AUTO:
        return (device or "").startswith(GPU)
    return named(backend).sites[-1].device == GPU


def _in_one_line(rows: Iterator[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Ray's own errors."""
    try:
        yield from rows
    except L2CError:
        raise
    except Exception as error:
        raise RunError(f"Ray has stopped: {first_line(error)}: what was finished stays; give the same command again") from None
