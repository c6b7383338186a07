"""`l2c cache`: what is kept between runs."""

from __future__ import annotations

import click

from ..support.words import counted
from .console import Command, print_json, say
from .options import option
from .tables import print_table


@click.command(cls=Command, example="l2c cache --prune --limit 500")
@option("--prune", is_flag=True, help="Remove what was used longest ago until at most --limit MB are left.")
@option("--limit", type=click.IntRange(min=0), default=0, help="MB to keep.")
def cache(prune: bool, limit: int, as_json: bool) -> None:
    """Show or empty the folder of engines, which builds resume from."""
    from ..support import cache as kept

    if prune:
        gone = kept.prune(limit << 20)
        say(f"removed {counted(len(gone), 'entry', 'entries')}, {sum(e.bytes for e in gone) / 2**20:.1f} MB")
    entries = list(kept.entries())
    kinds = [
        (kind, len(mine), sum(e.bytes for e in mine)) for kind in kept.KINDS if (mine := [e for e in entries if e.kind == kind])
    ]
    folder, total = kept.cache_folder("."), sum(size for *_, size in kinds)
    if as_json:
        sizes = {kind: {"entries": count, "bytes": size} for kind, count, size in kinds}
        print_json({"folder": str(folder), "bytes": total, "limit": kept.LIMIT, "kinds": sizes})
    else:
        rows = [("kind", "entries", "MB"), *((kind, f"{count:,}", f"{size / 2**20:,.1f}") for kind, count, size in kinds)]
        print_table(f"{folder}: {total / 2**20:,.1f} MB, at most {kept.LIMIT >> 20:,} MB are kept", rows)
