"""`l2c profile`: where does the time go?"""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from ..support.files import write
from .console import FILE, FOLDER, check_places, command, print_table, progress, say, write_json


@click.command(context_settings={"show_default": True})
@click.argument("engines", type=FOLDER)
@click.option("--rounds", type=int, default=5, help="Images to make; the one of median length is shown.")
@click.option("--images", type=int, default=1, help="At a time.")
@click.option("--guidance-scale", type=float, help="[default: the artefact's]")
@click.option("--seed", type=int, default=0)
@click.option("--link", help="shared or static. [default: the artefact's]")
@click.option("--backend", help="[default: what the artefact was compiled for]")
@click.option("--device", help="[default: cpu]")
@click.option("--threads", type=int, help="[default: all cores]")
@click.option("--json", "as_json", metavar="FILE|-", help="Write everything as JSON, with - to stdout instead of the tables.")
@click.option("--trace", type=FILE, help="Write every engine run for Perfetto or chrome://tracing.")
@command
def profile(engines: Path, rounds: int, images: int, guidance_scale: float | None, seed: int, link: str | None,
            backend: str | None, device: str | None, threads: int | None, as_json: str | None,
            trace: Path | None) -> None:  # fmt: skip
    """Show where the time goes: by kind of segment, and call by call."""
    from ..inspection import profile as profiling
    from ..runtime import pipeline

    check_places(as_json, trace=trace)
    pipe = pipeline.load(engines, backend, device, threads, link=link)
    say(f"backend: {pipe.backend}")
    labels = pipe.labels([(207 + n) % pipe.manifest.model.labels for n in range(images)])
    with progress("profiling", rounds) as step:
        found = profiling.profile(engines, pipe, labels, guidance_scale, seed, rounds, step)
    write_json(as_json, found)
    if as_json != "-":
        title = f"{engines}, {found.precision}, {found.link} link: {1e3 * found.seconds:.1f} ms"
        print_table(title, profiling.kinds_table(found))
        print_table("call by call", profiling.calls_table(found))
    if found.link == "static":
        say("a static engine runs a whole call: --link shared shows what is inside, as segments")
    if trace:
        write(trace, msgspec.json.encode(profiling.trace(found)), "--trace")
        say(f"{trace}: written; open it in ui.perfetto.dev")
