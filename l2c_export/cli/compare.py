"""`l2c compare`: pictures beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .console import Command, check_places, print_json, say
from .options import FILE, option
from .progress import bars
from .tables import print_table

if TYPE_CHECKING:
    from ..sampling.compare import Likenesses

ROWS = 10


@click.command(cls=Command, example="l2c compare uncached cached --out beside.png")
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@option("--out", type=FILE, help="A .png of the least alike pairs, side by side, with four times their difference.")
def compare(a: Path, b: Path, out: Path | None, as_json: bool) -> None:
    """Say how alike the pictures of two folders, or two pictures, are: PSNR and SSIM."""
    from ..sampling.compare import compare as measure

    check_places(out=out)
    with bars() as shown:
        result = measure(a, b, out=out, progress=shown.progress)
    if out:
        say(f"{out}: drawn")
    if as_json:
        print_json({"pairs": result.pairs, "psnr": result.psnr, "ssim": result.ssim, "same": result.same})
    else:
        print_table(result.summary, table(result))


def table(result: Likenesses) -> list[list[str]]:
    """The least alike pairs."""
    rows = [[pair.name, "-" if pair.same else f"{pair.psnr:.2f}", f"{pair.ssim:.4f}"] for pair in result.worst[:ROWS]]
    more = len(result.pairs) - ROWS
    return [["the least alike" if more > 0 else "picture", "PSNR dB", "SSIM"], *rows]
