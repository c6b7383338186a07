"""The values that a schedule may cache: sublayers, and levels, which span several of them.

Sublayers are called after the module whose output they are.  The levels are `stack` (what all blocks add to the stream),
`stack[F:L]` (what the blocks from F up to L, not including L, add) and `output` (the model's prediction, before guidance).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from ..errors import ScheduleError
from ..models.families import FAMILIES
from ..support.words import counted

OUTPUT, STACK = "output", "stack"
RANGE = re.compile(r"stack\[([0-9]{1,5}):([0-9]{1,5})\]")
MOST = 2**14  # values: models have no more sublayers
NUMBERED = re.compile(r"([^.]+\.)*?[0-9]+(?=\.|$)")  # up to the first number: "blocks.3" of "blocks.3.attn"


@dataclass(frozen=True)
class Cacheable:
    """What `cacheable` lists.  Columns are indices into the sublayers."""

    sublayers: tuple[str, ...]
    levels: tuple[str, ...]
    blocks: tuple[int, ...]  # of every sublayer, the number of its block

    def span(self, level: str) -> range:
        """The blocks that a level stands for; the output also spans what is before and behind them."""
        count = max(self.blocks) + 1
        if level == OUTPUT:
            return range(-1, count + 1)
        return range(*map(int, RANGE.fullmatch(level).groups())) if level != STACK else range(count)  # type: ignore[union-attr]

    def spanned(self, level: str) -> list[int]:
        """The columns that a call with a rule for this level jumps over."""
        span = self.span(level)
        return [j for j, block in enumerate(self.blocks) if block in span]

    def is_whole(self, level: str, derived: Iterable[str]) -> bool:
        """Whether a call has the level's own value, where it derives those levels: they are inside it, or elsewhere."""
        own = self.span(level)
        spans = [self.span(other) for other in derived]
        return all(apart(own, span) or (inside(span, own) and span != own) for span in spans)


def apart(a: range, b: range) -> bool:
    return a.stop <= b.start or b.stop <= a.start


def inside(a: range, b: range) -> bool:
    return b.start <= a.start and a.stop <= b.stop


def is_level(name: str) -> bool:
    return name in (OUTPUT, STACK) or name.startswith("stack[")


@functools.lru_cache(64)
def values_of(cacheable: tuple[str, ...]) -> Cacheable:
    """What these names stand for.  Raises ScheduleError for names that no schedule can have."""
    if len(cacheable) > MOST:
        raise ScheduleError(f"schedule: {len(cacheable)} cacheable values: no model has more than {MOST}")
    if "" in cacheable:
        raise ScheduleError("schedule: cacheable has an empty name: name each value by its module")
    if len(set(cacheable)) != len(cacheable):
        twice = next(name for n, name in enumerate(cacheable) if name in cacheable[:n])
        raise ScheduleError(f"schedule: cacheable lists {twice!r} twice: name each value once")
    levels = tuple(name for name in cacheable if is_level(name))
    sublayers = tuple(name for name in cacheable if not is_level(name))
    if not sublayers:
        raise ScheduleError("schedule: cacheable lists no sublayer: list all of the model's")
    values = Cacheable(sublayers, levels, block_numbers(sublayers))
    for level in levels:
        _check_range(level, max(values.blocks) + 1)
    return values


def _check_range(level: str, count: int) -> None:
    if level in (OUTPUT, STACK):
        return
    match = RANGE.fullmatch(level)
    if match is None or not int(match[1]) < int(match[2]) <= count:
        raise ScheduleError(
            f"schedule: {level!r} is no range of the {counted(count, 'block')}: use stack[F:L] with 0 <= F < L <= {count}"
        )


def block_numbers(sublayers: Sequence[str]) -> tuple[int, ...]:
    """The block of every sublayer, counted in the order in which blocks appear."""
    numbers: dict[str, int] = {}
    return tuple(numbers.setdefault(_block(name), len(numbers)) for name in sublayers)


def _block(name: str) -> str:
    match = NUMBERED.match(name)
    return match[0] if match else name.rpartition(".")[0] or name


@functools.lru_cache(4096)
def matched(pattern: str, sublayers: tuple[str, ...]) -> frozenset[str]:
    """The sublayers that a pattern of `fnmatchcase` names."""
    return frozenset(name for name in sublayers if fnmatchcase(name, pattern))


def sublayers_of(family: str, columns: int | Sequence[str]) -> tuple[str, ...]:
    """The names of the columns, where only their number may be known.

    Those of the model, where its family's descriptor says them: column 2b of a DiT is the attention of block b, column 2b + 1
    its MLP (U-ViT: in blocks, the middle, out blocks).  Otherwise "0", "1", ..
    """
    if not isinstance(columns, int):
        return tuple(columns)
    if not 1 <= columns <= MOST:
        raise ScheduleError(f"schedule: {columns} columns: a model has 1 to {MOST} sublayers")
    return FAMILIES[family].sublayers(columns) if family in FAMILIES else tuple(map(str, range(columns)))


def columns_of(values: Cacheable, chosen: Collection[int | str]) -> tuple[int, ...]:
    """Columns, given by their numbers or names, ascending.  Raises KeyError for a name that is none."""
    numbers = {name: j for j, name in enumerate(values.sublayers)}
    return tuple(sorted({numbers[column] if isinstance(column, str) else column for column in chosen}))
