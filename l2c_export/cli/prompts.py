"""Prompts as a command is given them: in words, or as a .npz of the arrays that stand for them, by the inputs' names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import UsageError

if TYPE_CHECKING:
    from ..artefact.manifest import Manifest


class TextPrompts(NamedTuple):
    """Prompts in words, and what no image should be like."""

    prompts: tuple[str, ...]
    negative: str | None

    def batches(self, manifest: Manifest) -> list[Mapping[str, Any]]:
        """The requests that they are for, checked, of at most so many images as the artefact makes at once."""
        from ..runtime import inputs, prompts

        without = {} if self.negative is None else {"negative_prompt": self.negative}
        size, texts = manifest.batch, list(self.prompts)
        chunks = [{"prompt": texts[n : n + size], **without} for n in range(0, len(texts), size)]
        for chunk in chunks:
            if prompts.checked(manifest, chunk, size).asked is None:
                inputs.checked(manifest, chunk)  # a model of something else
        return list(chunks)


def check_one(said: Mapping[str, object], negative: str | None) -> None:
    """Refuse two ways to say what is asked for.  Raises UsageError."""
    first, *others = (name for name, value in said.items() if value)
    if others:
        raise UsageError(f"{first} and {others[0]}: both say what is asked for: give one of the two")
    if negative is not None and first != "--prompt":
        raise UsageError(f"--negative-prompt: goes with --prompt; {first} has its own: leave it out")


REMEDY = "write it with numpy.savez(FILE, prompt_embeds=.., ..)"


def read(path: Path) -> dict[str, Any]:
    """Its arrays by name.  Raises UsageError for what holds none."""
    import numpy as np

    try:
        file = np.load(path, allow_pickle=False)
        if isinstance(file, np.ndarray):
            raise UsageError(f"--prompt-embeds {path}: it is one array, without a name: {REMEDY}")
        with file:
            return {name: file[name] for name in file.files}
    except OSError as error:
        raise UsageError(f"--prompt-embeds {path}: cannot be read: {error.strerror or error}: {REMEDY}") from None
    except (ValueError, EOFError) as error:
        raise UsageError(f"--prompt-embeds {path}: is no .npz: {str(error).splitlines()[0]}: {REMEDY}") from None


def batches(path: Path, manifest: Manifest) -> list[Mapping[str, Any]]:
    """The requests that the file is for, of at most so many images as the artefact makes at once."""
    import numpy as np

    embeddings = {name: values if values.ndim else values[None] for name, values in read(path).items()}
    count = max((len(values) for values in embeddings.values()), default=0)
    short = {name: len(values) for name, values in embeddings.items() if len(values) != count}
    if short or not count:
        name, length = next(iter(short.items()), ("it", 0))
        raise UsageError(f"--prompt-embeds {path}: {name} has {length} images where there are {count}: give as many of each")
    return [
        {name: np.asarray(values[n : n + manifest.batch]) for name, values in embeddings.items()}
        for n in range(0, count, manifest.batch)
    ]
