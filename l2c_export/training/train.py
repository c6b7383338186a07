"""Learn which sublayers may be reused, for a model whose weights stay as they are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..support.extras import needs
from ..support.files import Report
from ..support.log import logged
from ..support.progress import Progress, unsaid, unseen

if TYPE_CHECKING:
    from .result import Summary
    from .ruled import RuledSummary
    from .search import Frontier


def train(
    *,
    steps: int,
    data: str | os.PathLike[str],
    out: str | os.PathLike[str] = "routers",
    model: str | os.PathLike[str] | None = None,
    weights: str | os.PathLike[str] | None = None,
    lambda_: float | None = None,
    threshold: float | None = None,
    target_reduction: float | None = None,
    error: str | None = None,
    rule: str | None = None,
    every: int | None = None,
    full_calls: str | None = None,
    level: str | None = None,
    full_first: int | None = None,
    full_last: int | None = None,
    learn_coefficients: bool = False,
    search: bool = False,
    times_on: str | None = None,
    sampler: str | os.PathLike[str] | None = None,
    iterations: int | None = None,
    batch: int = 8,
    lr: float | None = None,
    seed: int = 0,
    guidance: str | None = None,
    guidance_scale: float | None = None,
    precision: str = "fp32",
    device: str | None = None,
    checkpoint_every: int | None = None,
    report: Report = logged,
    progress: Progress = unseen,
) -> Summary | RuledSummary | Frontier:
    """Learn a schedule of `steps` (sampling steps of DiT, network evaluations of U-ViT), and write it to the folder `out`.

    - `data`: an .npz with `latents` or `images` (N, C, H, W) and `labels` (N,), a folder of fast-DiT's, or "self": the model's
      own trajectories, with `guidance` ("first3", "all" or "none") and `guidance_scale` as it will be sampled.
    - `model` and `weights` as for `compile`; weights may be "random[:SEED]" to time it; the demo model brings its own.
      `precision` is the frozen model's: "fp32", "bf16" or "fp16"; `device`: "cpu" or "cuda", by default what is there.
    - `lambda_`: the price of computing a sublayer.  `threshold` (0..1) or `target_reduction` (the share of the cached calls'
      sublayers that is to go) chooses the schedule.  `error` is kept small: of the final "latents", or of every "output".
    - `iterations` train all cached calls on one `batch` of images each, by AdamW with the learning rate `lr`; `seed` is that
      of the first scores and of all noise.  A training that was interrupted goes on where its last checkpoint is, one every
      `checkpoint_every` iterations.
    - `report` is told in lines what is understood and done, by default the log; `progress` of the iterations.

    That makes a router: every second call reuses.  With a `rule` ("reuse" or "taylor:M"), one call of `every` is full, or
    those of `full_calls`, such as "full:0,1,5", besides the first `full_first` and the last `full_last`, with any `sampler` of
    `compile`; what follows in the others is chosen at a `level`: of every "sublayer", of the "stack" or of the "output".  With
    `learn_coefficients` the coefficients of what follows are learned, too, and without a price, a threshold or a target
    nothing else.  With `search` whole calls, orders and levels are tried, `iterations` schedules in all; what comes out is a
    frontier of error and of the time that is predicted for a device, `times_on`, as `dry_run` has them.  Of `data` both take
    only what is asked for; they have no checkpoints.

    Under torchrun every process calls this and gets the summary, and the first one writes and reports.
    Raises L2CError: UsageError for a value or data that do not fit, ArtefactError for a folder that is not ours to write.
    Source: Learning-to-Cache, arXiv 2406.01733.
    """
    for package in ("torch", "accelerate", "matplotlib"):
        needs(package, "train")
    from .options import TrainingOptions
    from .result import finish
    from .ruled import learn_under_rule
    from .ruled_options import RuledOptions, SearchOptions, only
    from .training import Training

    options = {
        "steps": steps, "data": os.fspath(data), "out": Path(out), "model": None if model is None else os.fspath(model),
        "weights": None if weights is None else os.fspath(weights),
        "sampler": None if sampler is None else os.fspath(sampler),
        "lambda_": lambda_, "threshold": threshold, "target_reduction": target_reduction, "error": error,
        "rule": rule, "every": every, "full_calls": full_calls, "level": level, "full_first": full_first,
        "full_last": full_last, "learn_coefficients": learn_coefficients, "iterations": iterations, "batch": batch, "lr": lr,
        "seed": seed, "times_on": times_on,
        "guidance": guidance, "guidance_scale": guidance_scale, "precision": precision, "device": device,
        "checkpoint_every": checkpoint_every,
    }  # fmt: skip
    if search:
        needs("onnx", "export")  # to lower schedules, whose times are predicted
        from .search import search as search_frontier

        return search_frontier(only(SearchOptions, "a search", options), report, progress)
    if rule is not None:
        return learn_under_rule(only(RuledOptions, "a training under a rule", options), report, progress)
    training = Training(only(TrainingOptions, "a training without rule=..", options), report)
    training.run(progress("training", training.left) if training.workers.leads else unsaid)
    summary = finish(training)
    for line in summary.describe():
        training.report(line)
    return summary
