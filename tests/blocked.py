"""A process in which packages cannot be imported, as where they are not installed."""

from __future__ import annotations

from collections.abc import Collection


def without(packages: Collection[str]) -> str:
    """The lines that a program begins with."""
    return f"""
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {tuple(packages)}:
            raise ModuleNotFoundError(f"{{name}} is blocked", name=name)

sys.meta_path.insert(0, Blocked())
"""
