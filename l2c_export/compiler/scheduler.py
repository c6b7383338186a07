"""The scheduler that a request's sampler means, which must be for the noise that the model was trained with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ScheduleError, UsageError
from ..models.descriptor import FamilyDescriptor
from ..models.diffusers.model_index import config
from ..samplers.reference import SAMPLERS
from ..samplers.scheduler_config import FLOW, KINDS, Scheduler, check_noise
from ..samplers.trained import TRAINED, UNSAID, trained_otherwise, unlike
from ..support import file_kind
from .request import is_config

if TYPE_CHECKING:
    from ..models.diffusers.pipeline_folder import Folder

# as the references sample
UNCLIPPED = {"clip_sample": False}


def scheduler_of(sampler: str | None, folder: Folder | None, family: FamilyDescriptor) -> Scheduler | None:
    """The scheduler of diffusers that is asked for, by default the folder's; None for a sampler of our own.

    Raises UsageError for a sampler of ours that is for models of another training, and ScheduleError for a file that is no
    scheduler's or has options that are not supported.
    """
    if sampler in SAMPLERS:
        _check_trained_for(sampler, folder, family)
        return None
    if sampler and sampler not in KINDS and is_config(sampler):
        options = config(Path(sampler))
        kind = file_kind.of_json(options)
        if kind not in (None, file_kind.SCHEDULER):
            raise ScheduleError(f"sampler={sampler!r}: it is {kind.words}: {kind.remedy}")
        return Scheduler.from_config(options, sampler, flow=family.flow)
    if folder:
        return folder.sampler(sampler)
    if family.flow:
        return Scheduler.from_config({}, "sampler", sampler or FLOW, flow=True)
    # by its name alone: for the noise that the family was trained with
    trained = {option: value for option, value in _training(family).items() if value != UNSAID[option]}
    return Scheduler.from_config({**trained, **UNCLIPPED}, "sampler", sampler) if sampler else None


def _training(family: FamilyDescriptor) -> dict[str, object]:
    return TRAINED.get(family.sampler, UNSAID)


def _check_trained_for(sampler: str, folder: Folder | None, family: FamilyDescriptor) -> None:
    if family.flow:
        raise UsageError(f"sampler={sampler!r}: the model predicts a flow, and not noise: use {FLOW}")
    if folder:
        check_noise(folder.scheduler.get("_class_name"), str(folder.path / "scheduler"))
        if other := unlike(sampler, folder.scheduler):
            raise UsageError(
                f"sampler={sampler!r}: the model of {folder.path} was trained with {other}: use no sampler=.., or one of "
                f"{', '.join(KINDS)}"
            )
    elif noise := trained_otherwise(_training(family), TRAINED[sampler]):
        raise UsageError(
            f"sampler={sampler!r}: it is for models trained with {noise}, which a {family.name} is not: use {family.sampler}, "
            f"one of {', '.join(KINDS)}, or the scheduler_config.json of its training"
        )
