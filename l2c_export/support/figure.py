"""Figures: one palette, one way to write them."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

from ..errors import UsageError
from . import files
from .extras import needs

PICTURES = (".png", ".svg", ".pdf")
DARK, LIGHT, OTHER, RIVAL, GREY = "#27527d", "#e6ebf2", "#a9bace", "#d9822b", "#5b6875"


def new_figure(width: float, height: float) -> Any:
    """An empty figure of so many inches that belongs to no window."""
    needs("matplotlib", "export").use("Agg")
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def write(figure: Any, path: Path) -> None:
    """Save a picture.  Raises RunError where that is not possible."""
    data = io.BytesIO()
    figure.savefig(data, dpi=140, format=path.suffix[1:])
    files.write(path, data.getvalue())


def check_picture(path: Path, option: str = "") -> None:
    """Refuse what `write` could not do, before a long measurement.  Raises UsageError."""
    if path.suffix not in PICTURES:
        raise UsageError(f"{files.named(path, option)}: use one of {', '.join(PICTURES)}")
    files.check_place(path, option)


def clean(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def svg(figure: Any) -> str:
    """A figure as an <svg> element for a page: without the prologue and the namespaces, which only a file of its own needs."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    picture = text.getvalue()
    return re.sub(r' xmlns(:\w+)?="[^"]*"', "", picture[picture.index("<svg") :])
