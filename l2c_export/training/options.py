"""What a user asks `l2c train` for, and what that means: a model, its cached calls and what to train them on."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec

from .. import demo
from ..artefact import integrity, staging
from ..artefact.records import Guidance
from ..compiler.request import GUIDANCE
from ..errors import ArtefactError, UsageError
from ..ir.inputs import guided
from ..ir.precisions import ONE_TYPE
from ..models import families, lookup
from ..models.evidence import architecture
from ..models.family import Family
from ..schedules import routers
from ..support.words import counted
from ..weights import random
from ..weights.checkpoint import Checkpoint, open_checkpoint
from . import data
from .pairs import FullCall, Pair, full_calls, make_pairs

SELF = "self"
ERRORS = ("latents", "output")
FILES = ("router.pt", "schedule.json", "tradeoff.json", "tradeoff.png", "log.csv", "checkpoint.pt")
OF_SEARCH = re.compile(r"schedule-\d+\.json")
# what does not change a router that is in training, so that a training may go on with other values
FREE = ("out", "iterations", "lambda_", "threshold", "target_reduction", "checkpoint_every", "device")


@dataclass(frozen=True)
class TrainingOptions:
    """The options of `l2c train`; the command's help describes each."""

    steps: int
    data: str
    out: Path
    model: str | None = None
    weights: str | None = None  # the demo model's own
    lambda_: float | None = None
    threshold: float | None = None
    target_reduction: float | None = None
    error: str = "latents"
    iterations: int = 500
    batch: int = 8
    lr: float = 0.01
    seed: int = 0
    guidance: str | None = None
    guidance_scale: float | None = None
    precision: str = "fp32"
    device: str | None = None
    checkpoint_every: int = 50

    def __post_init__(self) -> None:
        for name in ("iterations", "batch", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.seed < 0:
            raise UsageError(f"seed={self.seed}: must be at least 0")
        if not 0 < self.lr < float("inf"):
            raise UsageError(f"lr={self.lr}: must be more than 0")
        if self.lambda_ is not None and not 0 <= self.lambda_ < float("inf"):
            raise UsageError(f"lambda_={self.lambda_}: must be at least 0")
        if self.guidance_scale is not None and not abs(self.guidance_scale) < 1e38:
            raise UsageError(f"guidance_scale={self.guidance_scale}: must be a finite number")
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise UsageError(f"threshold={self.threshold}: must be between 0 and 1")
        if self.target_reduction is not None and not 0 < self.target_reduction < 1:
            raise UsageError(f"target_reduction={self.target_reduction}: must be between 0 and 1, like 0.4")
        if self.threshold is not None and self.target_reduction is not None:
            raise UsageError(f"threshold={self.threshold}: target_reduction=.. chooses it: give one of the two")
        if self.weights is None and self.model != demo.NAME and not (self.model and Path(self.model).is_dir()):
            raise UsageError("weights=.. is missing: give the model's checkpoint (only model='demo' brings its own)")
        for name, choices in (("precision", ONE_TYPE), ("guidance", GUIDANCE), ("error", ERRORS)):
            if getattr(self, name) not in (None, *choices):
                raise UsageError(f"{name}={getattr(self, name)!r}: use one of {', '.join(choices)}")

    def fixed(self, family: Family) -> dict[str, str]:
        """What decides what the router becomes, by option, but for lambda: a training that goes on must agree."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in FREE}
        values["model"] = (family.name, msgspec.structs.asdict(family.arch))
        for name in ("weights", "data"):
            if Path(values[name]).is_file():
                values[name] = integrity.sha256(Path(values[name]))
        return {name.replace("_", "-"): str(value) for name, value in values.items()}


class TrainingTask(NamedTuple):
    """A model, its cached calls and what to train them on."""

    family: Family
    name: str | None
    checkpoint: Checkpoint | None  # or random weights of this seed:
    weights_seed: int
    calls: tuple[FullCall, ...]
    pairs: tuple[Pair, ...]
    guidance: Guidance
    samples: data.Samples | None  # None: the model's own trajectories
    threshold: float
    assumed: tuple[str, ...]  # of the model, where nothing says it

    def describe(self) -> list[str]:
        """Lines: what was understood, the architecture, and what of it was assumed."""
        weights = f"random weights, seed {self.weights_seed}" if self.checkpoint is None else str(self.checkpoint.path)
        source = (
            counted(len(self.samples.values), "sample")
            if self.samples
            else f"its own trajectories, guidance {self.guidance.scale:g}"
        )
        return [
            f"{self.name or self.family.name}, {weights}: {len(self.pairs)} cached of {counted(len(self.calls), 'call')}, "
            f"{counted(len(self.family.sublayers), 'sublayer')} in each, trained on {source}",
            *architecture(self.family, self.assumed),
        ]


def with_demo_files(options: TrainingOptions) -> TrainingOptions:
    """The same request, with the demo model's files in place of its name."""
    model, weights = demo.files(options.model, options.weights)
    return dataclasses.replace(options, model=model, weights=weights)


def resolve(options: TrainingOptions) -> TrainingTask:
    """Read what the options name.  Raises L2CError when it does not fit together."""
    if options.model and Path(options.model).is_dir():
        raise UsageError(
            f"model={options.model!r}: routers are trained for names like DiT-XL/2, with weights=..: for a pipeline folder "
            f"learn under a rule, such as rule='reuse' with every=2, or search"
        )
    assert options.weights is not None
    seed = random.random_seed(options.weights)
    checkpoint = open_checkpoint(Path(options.weights)) if seed is None else None
    family, name, assumed = lookup.resolve(options.model, None, None, checkpoint)
    if families.of(family.name).flow:
        raise UsageError(f"model={options.model or options.weights!r}: a {family.name} predicts a flow: routers are for noise")
    pairs = make_pairs(family, options.steps)
    check_subjects(options, family)
    samples = None if options.data == SELF else data.read(Path(options.data), family)
    threshold = options.threshold
    if threshold is None:
        threshold = routers.default_threshold(family.name, max(family.latent[1:], default=0))
    check_target(options.out)
    return TrainingTask(
        family, name, checkpoint, seed or 0, full_calls(family, options.steps), pairs, guidance_of(options, family), samples,
        threshold, assumed,
    )  # fmt: skip


def check_subjects(options: TrainingOptions, family: Family) -> None:
    """Refuse a model's own trajectories where nothing says what to ask it for."""
    unknown = [declared.name for declared in family.inputs if not declared.choices]
    if options.data == SELF and unknown:
        raise UsageError(f"data={SELF!r}: nothing says what the model's {unknown[0]} may be: give an .npz with `{unknown[0]}`")


def guidance_of(options: TrainingOptions, family: Family) -> Guidance:
    if not guided(family.inputs):
        if options.guidance not in (None, "none"):
            raise UsageError(f"guidance={options.guidance!r}: no input has an unconditional value: use guidance='none'")
        return Guidance(mode="none", scale=1.0)
    mode, scale = families.of(family.name).guidance
    mode = options.guidance or mode
    scale = scale if options.guidance_scale is None else options.guidance_scale
    return Guidance(mode="none", scale=1.0) if mode == "none" or scale == 1 else Guidance(mode=mode, scale=scale)  # type: ignore[arg-type]


def check_target(folder: Path) -> None:
    """Refuse an output folder that holds anything but a training of ours."""
    if folder.exists() and not folder.is_dir():
        raise ArtefactError(f"out={str(folder)!r}: is a file, not a folder")
    for path in sorted(folder.iterdir()) if folder.exists() else ():
        known = path.name in FILES or OF_SEARCH.fullmatch(path.name)
        if not known and path.suffix != ".partial" and path.name not in staging.TOLERATED:
            raise ArtefactError(f"out={str(folder)!r}: holds {path.name}, which is not ours: choose an empty folder")
