"""Pipelines of the Hugging Face hub by their id: what is in its cache, else downloaded once it is known to be of use."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ...errors import L2CError, MissingExtra, ModelError, WeightsError
from ...support.extras import needs
from ...support.words import first_line
from ...weights import finder
from .. import families
from . import model_index, tensor_names
from .model_index import CONFIG, INDEX

MISTYPED = re.compile(r"[\w.-]+/\d+(@\d+)?")  # DiT-XXL/2: no repository is called by a number alone
EXAMPLE = "names of models are for example DiT-XL/2"
REACHED = 10  # seconds within which the hub must answer at all
TEXT_ENCODER, TOKENIZER = "text_encoder", "tokenizer"  # begin the names of such parts
CONFIGS = ("transformer/config.json", "scheduler/scheduler_config.json")


def folder(repository: str, decoder: bool = False, text: bool = False) -> Path:
    """The pipeline folder of an id OWNER/NAME, in the hub's cache.

    Its index is looked at first, then the transformer's configuration: weights are downloaded of a model that is known, and
    no more of them than are needed, those of the autoencoder if `decoder`, and encoders and tokenizers if `text`.  Raises
    ModelError in one line for everything else.
    """
    if MISTYPED.fullmatch(repository):
        raise ModelError(f"unknown model {repository!r}: {EXAMPLE}")
    try:
        hub = needs("huggingface_hub", "diffusers")
    except MissingExtra as error:
        raise ModelError(f"unknown model {repository!r}: {EXAMPLE}; for one of the Hugging Face hub: {error}") from None
    parts = ("transformer", "vae") if decoder else ("transformer",)
    cached = _cached(hub, repository)
    if cached and _is_whole(cached, parts + _texts(cached / INDEX, text)):
        return cached
    with _in_one_line(repository):
        _reach(hub, repository)
        index = Path(hub.hf_hub_download(repository, INDEX))
        _check(index)
        hub.hf_hub_download(repository, CONFIGS[0])
        _check(index)
        return _download(hub, repository, parts + _texts(index, text))


def _cached(hub: Any, repository: str) -> Path | None:
    """Where its files are, if there are any.  Raises ModelError for those of another model."""
    errors = needs("huggingface_hub.errors", "diffusers")
    try:
        index = Path(hub.hf_hub_download(repository, INDEX, local_files_only=True))
    except (errors.LocalEntryNotFoundError, errors.HFValidationError):
        return None
    _check(index)
    return index.parent


def _check(index: Path) -> None:
    """Refuse another model by its index, and by the transformer's configuration as soon as that is there."""
    parts = model_index.read(index)
    if families.captured(parts.kind("transformer")):
        return
    model_index.check_is_dit(parts)
    configuration = index.parent / CONFIGS[0]
    if configuration.is_file():
        tensor_names.read_config(configuration, parts.part("transformer"), parts.pipeline)


def _texts(index: Path, wanted: bool) -> tuple[str, ...]:
    """The encoders and tokenizers that a pipeline has, if they are wanted."""
    return tuple(name for name in model_index.read(index).parts if wanted and name.startswith((TEXT_ENCODER, TOKENIZER)))


def _is_whole(folder: Path, parts: tuple[str, ...]) -> bool:
    """Whether nothing is left to download."""
    return all((folder / name).is_file() for name in CONFIGS) and all(_is_there(folder / part) for part in parts)


def _is_there(part: Path) -> bool:
    return part.is_dir() if part.name.startswith(TOKENIZER) else _has_weights(part)


def _has_weights(part: Path) -> bool:
    try:
        return (part / CONFIG).is_file() and bool(finder.files(part, finder.find(part)))
    except WeightsError:
        return False


def _download(hub: Any, repository: str, parts: tuple[str, ...]) -> Path:
    """Its configurations, and of every part one file of weights, or the index of several and then those."""
    names = hub.list_repo_files(repository)
    weights = {part: _weights(repository, part, names) for part in parts if not part.startswith(TOKENIZER)}
    tokenizers = [f"{part}/*" for part in parts if part.startswith(TOKENIZER)]
    chosen = [f"{part}/{name}" for part, file in weights.items() for name in (CONFIG, file.name)]
    folder = Path(hub.snapshot_download(repository, allow_patterns=[INDEX, *CONFIGS, *tokenizers, *chosen]))
    shards = [f"{part}/{n}" for part, file in weights.items() if file.is_index for n in finder.named(folder / part / file.name)]
    if shards:
        hub.snapshot_download(repository, allow_patterns=shards)
    return folder


def _weights(repository: str, part: str, names: Iterable[str]) -> finder.WeightFile:
    file = finder.choose(name.removeprefix(f"{part}/") for name in names if name.startswith(f"{part}/"))
    if file is None:
        raise WeightsError(f"{repository!r} holds no weights in {part}/ that diffusers would load: give another one")
    return file


def _reach(hub: Any, repository: str) -> None:
    """One question that is not asked again and again: a download would wait half a minute for a hub that is not there."""
    hub.get_hf_file_metadata(hub.hf_hub_url(repository, INDEX), timeout=REACHED)


@contextlib.contextmanager
def _in_one_line(repository: str) -> Iterator[None]:
    """The hub's errors as one line each."""
    errors, constants = (needs(f"huggingface_hub.{name}", "diffusers") for name in ("errors", "constants"))
    fetch = f"download it where there is a network: hf download {repository} (it goes to {constants.HF_HUB_CACHE})"
    try:
        yield
    except L2CError:
        raise
    except errors.HFValidationError:
        raise ModelError(f"unknown model {repository!r}: no folder, and no id of the hub: {EXAMPLE}") from None
    except errors.GatedRepoError:
        raise ModelError(
            f"{repository!r}: its owner asks for an agreement first: accept it on its page, then: hf auth login"
        ) from None
    except errors.RepositoryNotFoundError:
        raise ModelError(
            f"unknown model {repository!r}: no such folder, and the hub shows none: {EXAMPLE}; for a private one: hf auth login"
        ) from None
    except errors.OfflineModeIsEnabled:
        raise ModelError(
            f"unknown model {repository!r}: no such folder, and not whole in the hub's cache, with HF_HUB_OFFLINE set: {fetch}"
        ) from None
    except errors.LocalEntryNotFoundError as error:  # of a download that was cut off
        raise ModelError(f"{repository!r}: the download was cut off ({first_line(error)}): {fetch}") from None
    except errors.EntryNotFoundError:
        raise ModelError(
            f"{repository!r} is no pipeline of diffusers (it has no {INDEX}): {model_index.KNOWN}; of another repository "
            f"download the weights (hf download {repository}), and give them as weights=.."
        ) from None
    except Exception as error:  # of the network library, which is another one in every release
        raise ModelError(
            f"unknown model {repository!r}: no such folder, and the hub cannot be reached ({first_line(error)}): {EXAMPLE}; "
            f"if it is one of the hub, {fetch}"
        ) from None
