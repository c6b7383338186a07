"""`l2c cache`: what is kept between runs."""

from __future__ import annotations

import json

import click

from .console import command, print_table, say


@click.command()
@click.option("--prune", is_flag=True, help="Remove what was used longest ago until at most --limit MB are left.")
@click.option("--limit", type=click.IntRange(min=0), default=0, show_default=True, help="MB to keep.")
@click.option("--json", "as_json", is_flag=True, help="Print a summary as JSON.")
@command
def cache(prune: bool, limit: int, as_json: bool) -> None:
    """Show or empty the folder of exported segments and engines, which builds resume from."""
    from ..support import cache as kept

    if prune:
        gone = kept.prune(limit << 20)
        say(f"removed {len(gone)} {'entry' if len(gone) == 1 else 'entries'}, {sum(e.bytes for e in gone) / 2**20:.1f} MB")
    found = list(kept.entries())
    kinds = [
        (kind, len(mine), sum(e.bytes for e in mine)) for kind in kept.KINDS if (mine := [e for e in found if e.kind == kind])
    ]
    folder, total = kept.cache_folder("."), sum(size for *_, size in kinds)
    if as_json:
        sizes = {kind: {"entries": count, "bytes": size} for kind, count, size in kinds}
        click.echo(json.dumps({"folder": str(folder), "bytes": total, "limit": kept.LIMIT, "kinds": sizes}))
    else:
        rows = [("kind", "entries", "MB"), *((kind, count, round(size / 2**20, 1)) for kind, count, size in kinds)]
        print_table(f"{folder}: {total / 2**20:.1f} MB, at most {kept.LIMIT >> 20:,} MB are kept", rows)
