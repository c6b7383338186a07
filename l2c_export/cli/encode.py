"""`l2c encode`: prompts become arrays, which a machine without text encoders runs."""

from __future__ import annotations

import io
import time
from pathlib import Path

import click

from ..support.words import counted
from . import options
from .console import Command, print_json, say
from .options import ENGINES, FILE, group, option


@click.command(cls=Command, example='l2c encode engines --prompt "a cat" --out cat.npz')
@click.argument("engines", type=ENGINES)
@group(
    "What is made",
    options.prompt,
    options.negative_prompt,
    option("--out", type=FILE, default="prompts.npz", help="The arrays, for l2c run --prompt-embeds."),
)
@group("Where it runs", options.backend, options.device, options.threads)
def encode(engines: Path, prompt: tuple[str, ...], negative_prompt: str | None, out: Path, backend: str | None,
           device: str | None, threads: int | None, as_json: bool) -> None:  # fmt: skip
    """Write what an artefact's text encoders make of prompts, for a machine that has none."""
    import numpy as np

    from ..runtime import prompts
    from ..support.files import check_place, write

    if not prompt:
        raise click.UsageError("Missing option '--prompt'.")
    check_place(out, "out")
    started, data = time.perf_counter(), io.BytesIO()
    arrays = prompts.encode(engines, list(prompt), negative_prompt, backend, device, threads)
    np.savez(data, **arrays)  # type: ignore[arg-type]  # its other arguments have no such names
    write(out, data.getvalue(), "out")
    say(f"{out}: {counted(len(prompt), 'prompt')} in {time.perf_counter() - started:.2f} s")
    if as_json:
        print_json({"out": str(out), "prompts": len(prompt), "arrays": {name: list(a.shape) for name, a in arrays.items()}})
