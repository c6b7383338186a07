"""Files become a model, a schedule and weights: what a request means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from .. import demo
from ..artefact.records import ALONE
from ..errors import ModelError, ScheduleError, UsageError
from ..ir.inputs import guided
from ..models import families, lookup, notes
from ..models.diffusers import pipeline_folder
from ..models.diffusers.pipeline_folder import Folder
from ..models.evidence import ModelRequest, architecture
from ..models.family import Family
from ..samplers.scheduler_config import Scheduler
from ..schedules import routers
from ..schedules.file import content
from ..schedules.rules import is_rule, mask_length, mask_rule
from ..schedules.schedule import Schedule
from ..support import file_kind
from ..support.words import counted
from ..weights import random
from ..weights.checkpoint import Checkpoint
from . import captured
from .request import CACHING, FULL, LATER, Options, Wanted
from .scheduler import scheduler_of

LITTLE = 0.01  # the share of the cached calls' sublayers below which a router removes next to nothing


@dataclass(frozen=True)
class Source:
    """A model, its schedule, and where its weights come from (a file, a seed, or nothing yet)."""

    family: Family
    name: str | None
    schedules: tuple[Schedule, ...]  # one per program
    guidance: str
    scale: float  # of the guidance, used where none is given
    checkpoint: Checkpoint | None
    seed: int | None
    folder: Folder | None = None  # the pipeline of diffusers that it is from
    vae: Path | None = None  # an AutoencoderKL of diffusers
    assumed: tuple[str, ...] = ()  # of the model, where nothing says it
    own_vae: bool = False  # the pipeline's own, whose latents are decoded as the pipeline does it
    notes: tuple[str, ...] = ()  # what of the folder the user should know

    @property
    def schedule(self) -> Schedule:
        """That of the first program."""
        return self.schedules[0]

    def describe(self) -> list[str]:
        """Lines: what was understood, the architecture, and what of it was assumed."""
        weights = f"random weights, seed {self.seed}" if self.seed is not None else "no weights"
        weights = self.checkpoint.described if self.checkpoint else weights
        return [
            *(f"{self.name or self.family.name}, {described(schedule)}, {weights}" for schedule in self.schedules),
            *architecture(self.family, self.assumed),
            *self.notes,
        ]


def described(schedule: Schedule) -> str:
    """What of a schedule is computed."""
    computed = sum(len(call.computed) for call in schedule.calls)
    threshold = "" if schedule.threshold is None else f" at threshold {schedule.threshold:.9g}"
    return (
        f"{counted(schedule.columns, 'sublayer')}, {schedule.sampler} with {counted(schedule.steps, 'step')}: "
        f"{computed} of {schedule.columns * len(schedule.calls)} sublayers computed{threshold}"
    )


def resolve(options: Options) -> Source:
    """Read the schedule and the weights' names, and find the model that fits both."""
    if options.model == demo.NAME:
        model, weights = demo.files(options.model, options.weights)
        first, *further = (Wanted(_of_demo(one.schedule), one.steps) for one in options.programs)
        source = resolve(replace(options, model=model, weights=weights, schedule=first.schedule, further=tuple(further)))
        return replace(source, name=demo.NAME, scale=1.0 if source.guidance == "none" else demo.GUIDANCE_SCALE)
    seed = random.random_seed(options.weights) if options.weights else None
    folder = captured.sized(options, _folder(options))
    checkpoint = _checkpoint(options, folder) if seed is None and options.weights != LATER else None
    origins = [_read(one.schedule or FULL) for one in options.programs]
    kind, columns = (None, None) if isinstance(origins[0], str) else (origins[0].family, origins[0].columns)
    request = ModelRequest(folder.family) if folder else lookup.ask(options.model, kind, columns, checkpoint)
    for one, origin in zip(options.programs, origins, strict=True):
        if not isinstance(origin, str) and origin.family != request.kind:
            raise ModelError(
                f"{one.schedule} is for a {origin.family} model, but the model is a {request.kind}: check model=.."
            )
    if folder:
        family, name, assumed = lookup.Resolved(
            families.build(request.kind, folder.arch), folder.name, captured.assumed(folder)
        )
        if checkpoint:
            checkpoint = captured.weights(family, checkpoint)
            notes.check_same(checkpoint, folder.arch, folder.family)
    else:
        family, name, assumed = lookup.find(request, checkpoint)
        if options.weights and checkpoint:
            pipeline_folder.check_weights(Path(options.weights), family.name, msgspec.structs.asdict(family.arch))
    if checkpoint:
        checkpoint.tensors(family.tensors())  # refuse what does not fit before anything is compiled
    _check_sublayers("fp32", options.fp32, family)
    _check_sublayers("bf16", options.bf16, family)
    scheduler = captured.as_in_pipeline(scheduler_of(options.sampler, folder, families.of(family.name)), family)
    schedules = tuple(_schedule(one, family, origin, scheduler) for one, origin in zip(options.programs, origins, strict=True))
    _check_programs(schedules)
    mode, usual = captured.guidance(family, folder)
    guidance = options.guidance or (mode if guided(family.inputs) or mode in ALONE else "none")
    if guidance not in ("none", *ALONE) and not guided(family.inputs):
        raise UsageError(f"guidance={guidance!r}: no input has an unconditional value: use guidance='none'")
    scale = 1.0 if guidance == "none" else usual
    vae, is_own = _vae(options, folder), options.vae is None and not families.is_captured(family)
    lines = _notes(options, folder, schedules)
    return Source(family, name, schedules, guidance, scale, checkpoint, seed, folder, vae, assumed, is_own, lines)


def _check_sublayers(option: str, names: tuple[str, ...], family: Family) -> None:
    for name in names:
        if name not in family.sublayers:
            known = family.sublayers
            raise UsageError(f"{option}={name!r}: no sublayer of the model: they are {known[0]} .. {known[-1]}")


def _vae(options: Options, folder: Folder | None) -> Path | None:
    """The folder of the autoencoder whose decoder is wanted."""
    if options.vae:
        return pipeline_folder.chosen_autoencoder(options.vae)
    if not options.with_vae:
        return None
    if folder is None:
        raise UsageError("with_vae=True: only a pipeline folder of diffusers has one: use vae='FOLDER'")
    return folder.autoencoder()


def _folder(options: Options) -> Folder | None:
    """The folder of diffusers that `--model` means, if it means one; without it that of `--weights`."""
    if options.model is None:
        place = pipeline_folder.describing(Path(options.weights)) if options.weights else None
        return pipeline_folder.read(place) if place else None
    if families.is_name(options.model):
        return None
    place = pipeline_folder.find(options.model, options.with_vae, options.with_text)
    return pipeline_folder.read(place) if place else None


def _checkpoint(options: Options, folder: Folder | None) -> Checkpoint | None:
    """The weights that are asked for; of a folder's model under the names of its family."""
    if folder is None:
        return pipeline_folder.checkpoint(Path(options.weights)) if options.weights else None
    if options.weights is None or (options.model is None and Path(options.weights).is_dir()):
        return folder.checkpoint()
    if families.of(folder.family).captured:
        return pipeline_folder.checkpoint(Path(options.weights))
    return pipeline_folder.checkpoint_for(Path(options.weights), pipeline_folder.FAMILY, folder.arch)


def _notes(options: Options, folder: Folder | None, schedules: Sequence[Schedule]) -> tuple[str, ...]:
    """What the user did not say, and no file does; and a threshold that is as good as none."""
    assumed = folder.assumed_scheduler if folder and options.sampler is None else ""
    other = folder.other_pipeline if folder else ""
    return tuple(note for note in (other, assumed, *map(_idle, schedules)) if note)


def _idle(schedule: Schedule) -> str:
    """A line, where a router's threshold lets nearly every sublayer run."""
    removed = routers.removed(schedule) if schedule.threshold is not None else 1.0
    if removed >= LITTLE:
        return ""
    return f"threshold {schedule.threshold:.9g} removes only {removed:.1%} of the cached calls' sublayers: use a higher one"


def _name(options: Options, scheduler: Scheduler | None, family: Family) -> str:
    return scheduler.kind if scheduler else options.sampler or families.of(family.name).sampler


def _read(schedule: str | Schedule) -> routers.Router | Schedule | str:
    """A router, a schedule, or a rule."""
    if isinstance(schedule, Schedule):
        return schedule
    path = Path(schedule)
    if is_rule(schedule):
        return schedule
    if not path.is_file():
        raise ScheduleError(f"schedule={str(path)!r}: no such file (rules are every:K, full:0,A,B,.. and mask:1,0,..)")
    if not file_kind.is_json(path):
        return routers.read(path)
    data = content(path)
    return mask_rule(data) or Schedule.from_json(data, str(path))


def _of_demo(schedule: str | Schedule | None) -> str | Schedule:
    return schedule if isinstance(schedule, Schedule) else demo.schedule(schedule)


def _check_programs(schedules: Sequence[Schedule]) -> None:
    """Refuse programs that cannot share the graphs of one loop, or cannot be told apart."""
    samplers = dict.fromkeys(schedule.sampler for schedule in schedules)
    if len(samplers) > 1:
        raise ScheduleError(f"the schedules are for {' and '.join(samplers)}: an artefact has one sampler: compile one each")
    steps = [schedule.steps for schedule in schedules]
    if twice := next((count for count in steps if steps.count(count) > 1), None):
        raise ScheduleError(f"two schedules of {counted(twice, 'step')}: a request names its steps: compile one artefact each")


def _schedule(
    options: Options, family: Family, origin: routers.Router | Schedule | str, scheduler: Scheduler | None
) -> Schedule:
    """The schedule of a program, for the sampler that is asked for."""
    schedule = _base(options, family, origin, scheduler)
    if options.sampler and (schedule.sampler, schedule.scheduler or None) != (_name(options, scheduler, family), scheduler):
        raise UsageError(f"sampler={options.sampler!r}: {options.schedule} was made for {schedule.sampler}")
    return schedule if options.cache else schedule.uncached()


def _base(options: Options, family: Family, origin: routers.Router | Schedule | str, scheduler: Scheduler | None) -> Schedule:
    asked = next((name for name in CACHING if getattr(options, name) is not None), None)
    if asked and not isinstance(origin, str):
        raise UsageError(
            f"{asked}={getattr(options, asked)!r}: {options.schedule} says how its calls follow: use it with every:K, full:.. "
            f"or mask:.."
        )
    if isinstance(origin, routers.Router):
        threshold = options.threshold
        if threshold is None:
            threshold = routers.default_threshold(family.name, max(family.latent[1:], default=0))
        if scheduler and origin.sampler != "ddim":
            raise UsageError(f"sampler={options.sampler!r}: a router of {family.name} is for {origin.sampler}")
        return origin.schedule(threshold, options.steps, family.sublayers, scheduler)
    if options.threshold is not None:
        raise UsageError(f"threshold={options.threshold}: only a router has scores to compare with a threshold")
    if isinstance(origin, str):
        steps = mask_length(origin) if options.steps is None else options.steps
        if steps is None:
            raise UsageError(f"{f'schedule={options.schedule!r}' if options.schedule else 'cache=False'} needs steps=..")
        name = _name(options, scheduler, family)
        return Schedule.from_rule(
            origin, family=family.name, steps=steps, columns=family.sublayers, sampler=name, scheduler=scheduler,
            caching=options.caching,
        )  # fmt: skip
    if options.steps not in (None, origin.steps):
        raise ScheduleError(
            f"{options.schedule}: made for {counted(origin.steps, 'step')}, but steps={options.steps}: use no steps=.."
        )
    return _fitted(origin, family, str(options.schedule))


def _fitted(schedule: Schedule, family: Family, name: str) -> Schedule:
    """The schedule with the model's columns."""
    if schedule.columns != len(family.sublayers):
        raise ScheduleError(
            f"{name}: {counted(schedule.columns, 'column')}, but the model has "
            f"{counted(len(family.sublayers), 'sublayer')}: check model=.."
        )
    try:
        return schedule.of_sublayers(family.sublayers)
    except ValueError as error:
        raise ScheduleError(
            f"{name}: {error} is a sublayer of the schedule or of the model, but not of both: check model=.."
        ) from None
