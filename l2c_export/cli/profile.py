"""`l2c profile`: where does the time go?"""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from ..support.files import write
from . import options
from .console import Command, check_places, print_json, save_json, say
from .options import ENGINES, FILE, group, option
from .progress import bars
from .tables import print_table


@click.command(cls=Command, example="l2c profile engines --trace trace.json")
@click.argument("engines", type=ENGINES)
@group(
    "What is measured",
    option("--rounds", type=int, default=5, help="Images to make; the one of median length is shown."),
    option("--images", type=int, default=1, help="At a time."),
    options.guidance_scale,
    option("--seed", type=int, default=0, help="Of the noise."),
)
@group("Where it runs", options.backend, options.device, options.threads, options.link)
@group(
    "Where the results go",
    option("--save", type=FILE, help="Write everything into this file, as JSON."),
    option("--trace", type=FILE, help="Write every engine run for Perfetto or chrome://tracing."),
)
def profile(engines: Path, rounds: int, images: int, guidance_scale: float | None, seed: int, link: str | None,
            backend: str | None, device: str | None, threads: int | None, save: Path | None, trace: Path | None,
            as_json: bool) -> None:  # fmt: skip
    """Show where the time goes: by kind of segment, and call by call."""
    from ..inspection import profile as profiling

    check_places(save=save, trace=trace)
    with bars() as shown:
        measurement = profiling.profile(engines, rounds=rounds, images=images, guidance_scale=guidance_scale, seed=seed,
                                         link=link, backend=backend, device=device, threads=threads, report=say,
                                         progress=shown.progress)  # fmt: skip
    if measurement.link == "static":
        say("a static engine runs a whole call: --link shared shows what is inside, as segments")
    if save:
        save_json(save, measurement)
    if trace:
        write(trace, msgspec.json.encode(profiling.trace(measurement)), "trace")
        say(f"{trace}: written; open it in ui.perfetto.dev")
    if as_json:
        print_json(measurement)
        return
    title = f"{engines}, {measurement.precision}, {measurement.link} link: {1e3 * measurement.seconds:.1f} ms"
    print_table(title, profiling.kinds_table(measurement))
    print_table("call by call", profiling.calls_table(measurement))
