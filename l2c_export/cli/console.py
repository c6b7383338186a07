"""What all commands share: where words go, how errors end, tables and progress.

Data on stdout, everything else on stderr, errors as one line.  Exit codes: 0 done, 1 failed, 2 wrong usage.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from ..errors import L2CError
from ..support.files import check_place, write


def check_places(as_json: str | None, **files: Path | None) -> None:
    """Before a long measurement: whether its results can be written."""
    for option, path in {**files, "json": None if as_json in (None, "-") else Path(as_json)}.items():
        if path:
            check_place(path, f"--{option}")


def write_json(to: str | None, value: object) -> None:
    """To a file, to stdout for "-", or nowhere."""
    if to == "-":
        click.echo(msgspec.json.encode(value))
    elif to:
        write(Path(to), msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n", "--json")
        say(f"{to}: written")


FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)


def say(line: object) -> None:
    """Logs and progress go to stderr.  If nobody can read them, that is no reason to stop."""
    with contextlib.suppress(OSError):
        click.echo(line, err=True)


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Errors become one line and an exit code here, and only here; -v shows the traceback."""

    @click.option("-v", "--verbose", is_flag=True, help="Show a traceback when something fails.")
    @functools.wraps(function)
    def run(verbose: bool, **options: Any) -> None:
        if sys.stderr is None:  # closed by whoever started this
            sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        try:
            function(**options)
        except L2CError as error:
            if verbose:
                traceback.print_exc()
            else:
                say(f"error: {error}")
            sys.exit(error.exit_code)
        except KeyboardInterrupt:
            say("interrupted")
            sys.exit(130)
        except BrokenPipeError:  # whoever reads the output has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is left: Python would complain
            sys.exit(1)
        except OSError as error:
            say(f"error: {error.filename or 'standard output'}: {error.strerror or error}: check the folder and the disk")
            sys.exit(1)
        except MemoryError:
            say("error: out of memory: use a smaller --batch")
            sys.exit(1)

    return run


class OneLine(click.Command):
    """A command whose wrong options end in one line, too."""

    def main(
        self, args: Sequence[str] | None = None, prog_name: str | None = None, complete_var: str | None = None,
        standalone_mode: bool = True, **extra: Any,
    ) -> Any:  # fmt: skip
        run: Callable[[], Any] = functools.partial(super().main, args, prog_name, complete_var, standalone_mode=False, **extra)
        if not standalone_mode:
            return run()
        try:
            code = run()
        except click.UsageError as error:
            if isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):
                error.show()
            else:
                where = f" ({error.ctx.command_path} --help)" if error.ctx else ""
                say(f"error: {error.format_message().rstrip('.')}{where}")
            sys.exit(error.exit_code)
        except click.ClickException as error:
            say(f"error: {error.format_message()}")
            sys.exit(error.exit_code)
        except click.Abort:
            say("interrupted")
            sys.exit(130)
        sys.exit(code or 0)


class Commands(OneLine, click.Group):
    pass


class Bar:
    """A progress bar as a callback: one step further."""

    def __init__(self, shown: Any, what: str, total: int) -> None:
        self._shown, self._what, self._done = shown, what, 0
        self._task = shown.add_task(what, total=total)

    def __call__(self, *_: object) -> None:
        self._done += 1
        self._shown.update(self._task, completed=self._done, description=self._what)

    def within(self, phase: str, share: float) -> None:
        """What the present step is doing, and the share of it that is done."""
        self._shown.update(self._task, completed=self._done + share, description=f"{self._what}: {phase}")


@contextlib.contextmanager
def progress(what: str, total: int) -> Iterator[Bar]:
    """A progress bar on stderr; silent when that is not a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as shown:
        yield Bar(shown, what, total)


def print_table(title: str, rows: list[tuple[Any, ...]]) -> None:
    """The first row is the header; numbers are aligned to the right."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    numeric = [all(isinstance(row[i], (int, float)) for row in rows[1:]) for i in range(len(rows[0]))]
    for name, right in zip(rows[0], numeric, strict=True):
        table.add_column(str(name), justify="right" if right else "left")
    for row in rows[1:]:
        table.add_row(*map(str, row))
    width = None if sys.stdout and sys.stdout.isatty() else 120
    console = Console(width=width, markup=False, highlight=False)
    console.print(title, soft_wrap=True)  # the table would break it at its own width
    console.print(table)
