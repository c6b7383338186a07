"""The text of another tool's schedule as plain values: JSON, else YAML, which also reads Python's lists and dicts of numbers.

Nothing is executed.  Texts are bounded, and YAML's aliases, by which a short text may stand for an endless one, are refused.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from ...errors import ScheduleError
from ...support.extras import needs

MOST, MOST_YAML = 4 * 2**20, 2**18  # bytes; YAML is read a hundred times slower
FLOAT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+")  # 1e-05, which YAML 1.1 takes for a word


def decoded(data: bytes) -> Any:
    """What a text says, in UTF-8.  Raises ScheduleError."""
    if len(data) > MOST:
        raise ScheduleError(f"it has {len(data) >> 20} MB: a schedule has at most {MOST >> 20}")
    try:
        return msgspec.json.decode(data)
    except RecursionError:
        raise ScheduleError("it is nested too deeply: give lists of numbers") from None
    except (msgspec.MsgspecError, ValueError) as error:
        return _yaml(data, str(error))


def _yaml(data: bytes, why: str) -> Any:
    """The same in YAML; `why` is what stands against JSON."""
    if len(data) > MOST_YAML:
        raise ScheduleError(f"it is no JSON ({why}), and for YAML it is too large: give at most {MOST_YAML >> 10} KB of that")
    needs("yaml", "export")
    import yaml

    class Loader(yaml.SafeLoader):
        """Safe, without aliases, and with Python's floats."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise ScheduleError("it has an alias (*..): write out what it stands for")
            return super().compose_node(parent, index)

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+0123456789"))
    try:
        return yaml.load(data.decode(), Loader)
    except RecursionError:
        raise ScheduleError("it is nested too deeply: give lists of numbers") from None
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, TypeError, OverflowError) as error:
        place = getattr(error, "problem_mark", None)
        at = f" in line {place.line + 1}" if place else ""
        raise ScheduleError(f"it is neither JSON ({why}) nor YAML{at}: give one of the two") from None
