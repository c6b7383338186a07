"""A folder of diffusers, read without diffusers: a whole pipeline (`model_index.json`, `transformer/`, `vae/`, `scheduler/`),
or what `transformer.save_pretrained` wrote alone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import ModelError, WeightsError
from ...samplers.scheduler_config import DDIM, Scheduler
from ...weights import finder
from ...weights.checkpoint import Checkpoint, open_checkpoint
from .. import families, unsupported
from . import hub, model_index
from .model_index import CONFIG, INDEX, KNOWN, PIPELINE, TRANSFORMER, TRANSFORMERS, PipelineIndex, config
from .tensor_names import TransformerConfig, check_blocks, for_model, read_config, renamed, same_embedders

FAMILY = "dit"  # what a DiTPipeline holds
SCHEDULER = "scheduler/scheduler_config.json"
# What the released DiT pipelines have, for a transformer that comes without a scheduler.
USUAL_SCHEDULER = {"_class_name": DDIM, "clip_sample": False}


@dataclass(frozen=True)
class Folder:
    """What a folder holds."""

    path: Path
    name: str
    arch: dict[str, Any]  # of its family
    stored: Checkpoint | None  # of a DiT, under the names of diffusers
    checkpoint: Callable[[], Checkpoint]  # under the family's; raises WeightsError where a captured model has none
    scheduler: Mapping[str, Any]  # its configuration; the class is that which the index names
    labels: dict[str, int]  # class names
    index: PipelineIndex | None = None  # of a pipeline
    family: str = FAMILY

    @property
    def other_pipeline(self) -> str:
        """What to tell of a pipeline that is of another class, or of its own code; or nothing."""
        if self.family != FAMILY:
            return ""
        kind = self.index.pipeline if self.index else None
        return f"{model_index.called(self.path)} is a {kind}: taken for a {PIPELINE}" if kind not in (None, PIPELINE) else ""

    @property
    def assumed_scheduler(self) -> str:
        """What to tell of a transformer that comes alone; or nothing."""
        return (
            ""
            if self.index
            else f"{self.path} has no scheduler: {DDIM} as in the released DiT pipelines is ASSUMED (sampler=..)"
        )

    def sampler(self, kind: str | None = None) -> Scheduler:
        """The folder's scheduler, or another one with the same configuration."""
        return Scheduler.from_config(self.scheduler, str(self.path / "scheduler"), kind, families.of(self.family).flow)

    def autoencoder(self) -> Path:
        """The folder of the pipeline's autoencoder.  Raises ModelError if it has none."""
        if self.index is None:
            raise ModelError(f"{self.path} is a transformer alone, without a decoder: use vae='FOLDER'")
        return autoencoder(self.index)


def find(model: str, decoder: bool = False, text: bool = False) -> Path | None:
    """The folder that `--model` means: a path, or an id of the Hugging Face hub; None for what is neither.

    A repository of the hub is downloaded, with its autoencoder if `decoder` and its text encoders if `text`, if it is not in
    the cache and of a class that is known.  Raises ModelError.
    """
    path = Path(model)
    if path.is_dir():
        return path
    if path.name == INDEX and path.is_file():
        return path.parent
    if path.is_file() or path.suffix == ".json" or not re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        return None
    return hub.folder(model, decoder, text)


def describing(path: Path) -> Path | None:
    """The folder whose configuration says of which model weights are: itself, or the one that the file lies in."""
    if path.is_dir():
        return path if (path / INDEX).is_file() or (path / CONFIG).is_file() else None
    beside = path.parent / CONFIG
    is_transformer = finder.parsed(path.name) and beside.is_file() and config(beside).get("_class_name") in TRANSFORMERS
    return path.parent if is_transformer else None


def checkpoint(path: Path) -> Checkpoint:
    """What `--weights` means: a checkpoint, a pipeline or transformer folder, or a folder that holds weights alone."""
    folder = path.is_dir() and describing(path)
    return read(path).checkpoint() if folder else open_checkpoint(finder.path(path))


def checkpoint_for(path: Path, family: str, arch: Mapping[str, Any]) -> Checkpoint:
    """The same for a model that is known already.  Raises WeightsError for weights of another one."""
    if families.of(family).captured:
        built = families.build(family, arch)
        assert families.is_captured(built)
        return built.checkpoint(checkpoint(path))
    folder = check_weights(path, family, arch)
    if not path.is_dir() or folder is None:
        return for_model(open_checkpoint(finder.path(path)), family, arch)
    return for_model(folder.stored, family, arch) if folder.stored and arch.get("frequency_shift") else folder.checkpoint()


def check_weights(path: Path, family: str, arch: Mapping[str, Any]) -> Folder | None:
    """Refuse weights that say, by the configuration beside them, that they are of another model than this one.

    Returns the folder that they lie in, if it says of which model they are.  Raises WeightsError.
    """
    place = describing(path)
    folder = read(place) if place else None
    if folder:
        _check_same_model(folder, family, arch)
    return folder


def read(path: Path) -> Folder:
    """Raises ModelError, ScheduleError or WeightsError for what cannot be used."""
    if path.name == "transformer" and not (path / INDEX).is_file() and _is_pipeline(path.parent):
        return _pipeline(path.parent)  # which says more of it
    if (path / INDEX).is_file():
        return _pipeline(path)
    if (path / CONFIG).is_file():
        return _transformer_alone(path)
    raise ModelError(
        f"{path}: no pipeline folder of diffusers ({INDEX} is missing) and no transformer's ({CONFIG} is): give one that "
        "save_pretrained wrote"
    )


def _is_pipeline(path: Path) -> bool:
    return (path / INDEX).is_file() and (path / SCHEDULER).is_file()


def _pipeline(path: Path) -> Folder:
    index = model_index.read(path / INDEX)
    if families.captured(index.kind("transformer")):
        return captured_folder(path, path / "transformer", index.part("transformer"), index)
    model_index.check_is_dit(index)
    scheduler = {**config(path / SCHEDULER), "_class_name": index.part("scheduler")}
    shape = read_config(path / "transformer" / CONFIG, index.part("transformer"), index.pipeline)
    return _folder(path, path / "transformer", shape, scheduler, index)


def _transformer_alone(path: Path) -> Folder:
    kind = config(path / CONFIG).get("_class_name", TRANSFORMER)
    if families.captured(kind):
        return captured_folder(path, path, kind, None)
    if kind not in TRANSFORMERS:
        raise ModelError(f"{path} is a {kind}: {unsupported.why(kind) or KNOWN}")
    return _folder(path, path, read_config(path / CONFIG, kind), USUAL_SCHEDULER, None)


def captured_folder(path: Path, transformer: Path, kind: str, index: PipelineIndex | None) -> Folder:
    """The folder of a model that is captured from its class `kind` and its configuration."""
    known = families.captured(kind, index.kind("scheduler") if index else None)
    assert known is not None
    shape = {name: value for name, value in config(transformer / CONFIG).items() if not name.startswith("_")}
    arch = {"model": kind, "config": json.dumps(shape, sort_keys=True)}
    scheduler = (
        {**config(path / SCHEDULER), "_class_name": index.part("scheduler")} if index else {"_class_name": known.sampler}
    )
    name = Path(model_index.called(path.resolve())).name
    return Folder(path, name, arch, None, lambda: open_checkpoint(finder.path(transformer)), scheduler, {}, index, known.name)


def _folder(
    path: Path, transformer: Path, shape: TransformerConfig, scheduler: Mapping[str, Any], index: PipelineIndex | None
) -> Folder:
    stored = open_checkpoint(finder.path(transformer))
    check_blocks(stored, shape)
    block_embeddings = not same_embedders(stored, shape)
    arch, checkpoint = shape.arch(block_embeddings), renamed(stored, shape, block_embeddings)
    return Folder(
        path,
        Path(model_index.called(path.resolve())).name,
        arch,
        stored,
        lambda: checkpoint,
        scheduler,
        index.labels if index else {},
        index,
    )


def autoencoder(index: PipelineIndex) -> Path:
    """The folder of a pipeline's autoencoder.  Raises ModelError if it has none that is supported."""
    kind, folder = index.part("vae"), index.path.parent / "vae"
    if kind not in model_index.AUTOENCODERS:
        raise ModelError(f"{folder}: {kind} is not supported: only {model_index.SUPPORTED} are")
    if kind != (said := model_index.autoencoder_kind(folder)):
        raise ModelError(f"{folder} is an {said} by its {CONFIG}, and an {kind} by the {INDEX} above it: save it again")
    return folder


def chosen_autoencoder(path: Path) -> Path:
    """The folder of the autoencoder that `--vae` means: an autoencoder's own, or a pipeline's.  Raises ModelError."""
    if (path / INDEX).is_file():
        return autoencoder(model_index.read(path / INDEX))
    if path.name == "vae" and (path.parent / INDEX).is_file():
        return autoencoder(model_index.read(path.parent / INDEX))
    kind = config(path / CONFIG).get("_class_name", model_index.AUTOENCODER)
    if kind not in model_index.AUTOENCODERS:
        raise ModelError(f"vae={str(path)!r}: {kind} is not supported: only {model_index.SUPPORTED} are")
    return path


def _check_same_model(folder: Folder, family: str, arch: Mapping[str, Any]) -> None:
    """By what their shapes do not show.  Where a model was named by its reference, only what that has, too, is compared."""
    if family != FAMILY:
        raise WeightsError(f"{folder.path}: holds a DiT, but the model is a {family}: give the weights of this model")
    names = ["num_heads", "num_classes"]
    if arch.get("frequency_shift") == folder.arch["frequency_shift"]:
        names.append("mlp_eps")
    for name in names:
        if arch.get(name) != folder.arch[name]:
            raise WeightsError(
                f"{folder.path}: its {name} is {folder.arch[name]}, the model's {arch.get(name)}: give weights of this model"
            )
