"""What all commands share: where words go, how errors end, what the help looks like.

Data on stdout, everything else on stderr, errors as one line.  Exit codes: 0 done, 1 failed, 2 wrong usage.
With --json there is one JSON document on stdout: what was found, or {"error": {"type": .., "message": ..}}.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import click
import msgspec

from ..errors import L2CError
from ..support.files import check_place, write
from .progress import above
from .spoken import options_of, spoken

SETTINGS = {"help_option_names": ["-h", "--help"], "show_default": True, "max_content_width": 100}
EVERYWHERE = "In every command"  # the heading of what all commands have
INTERRUPTED = 130  # what a shell makes of Control-C


def say(line: object) -> None:
    """Logs and progress go to stderr, above a bar if there is one.  If nobody can read them, that is no reason to stop.

    What speaks Python, `threads=1`, is said in the words of the command line.
    """
    with contextlib.suppress(OSError):
        echo = above() or functools.partial(click.echo, err=True)
        echo(in_words(str(line)))


def in_words(text: str) -> str:
    """What a function of Python says, in the words of the command that runs."""
    ctx = click.get_current_context(silent=True)
    return spoken(text, options_of(ctx)) if ctx else text


class Warnings(logging.Handler):
    """What the package warns of is said, too; the rest of its log is for programs."""

    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage())


@contextlib.contextmanager
def warnings_said() -> Iterator[None]:
    """Say warnings while a command runs."""
    logger, handler = logging.getLogger("l2c_export"), Warnings(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def print_json(value: object) -> None:
    click.echo(msgspec.json.encode(value, enc_hook=_plain))


def _plain(value: Any) -> object:
    """Paths as text, numbers of numpy as Python's."""
    return str(value) if isinstance(value, Path) else value.item()


def check_places(**files: Path | None) -> None:
    """Before a long measurement: whether its results can be written."""
    for option, path in files.items():
        if path:
            check_place(path, option)


def save_json(path: Path, value: object) -> None:
    """The file of --save."""
    write(path, msgspec.json.format(msgspec.json.encode(value, enc_hook=_plain), indent=1) + b"\n", "save")
    say(f"{path}: written")


def fail(kind: str, message: str, code: int, as_json: bool) -> NoReturn:
    """The end of a command that failed: a line, the JSON if that is asked for, and the exit code."""
    say("interrupted" if code == INTERRUPTED else f"error: {message}")
    if as_json:
        with contextlib.suppress(OSError):
            print_json({"error": {"type": kind, "message": message}})
    sys.exit(code)


class Formatter(click.HelpFormatter):
    """Names like torch-compile are not broken at their hyphens."""

    def write_dl(self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        rows = list(rows)
        column = min(max((len(name) for name, _ in rows), default=0), col_max) + col_spacing
        room = max(self.width - self.current_indent - column, 10)
        for name, text in rows:
            lines = textwrap.wrap(text, room, break_on_hyphens=False, break_long_words=False) or [""]
            if len(name) + col_spacing > column:
                lines.insert(0, "")
            for first, line in zip([name, *[""] * len(lines)], lines, strict=False):
                self.write(f"{'':{self.current_indent}}{first:{column}}{line}".rstrip() + "\n")


class Context(click.Context):
    formatter_class = Formatter


class Help(click.Command):
    """A command whose help has headings and an example, and whose wrong options end in one line."""

    heading = EVERYWHERE  # of -h

    context_class = Context

    def __init__(self, *args: Any, example: str = "", **options: Any) -> None:
        super().__init__(*args, **{"context_settings": SETTINGS, **options})
        self.example = example

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            heading = getattr(param, "heading", self.heading)
            if isinstance(param, click.Option) and (shown := param.get_help_record(ctx)):
                sections.setdefault(heading, []).append(shown)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The lines of the example as they are: to be copied."""
        if self.example:
            with formatter.section("Example"):
                formatter.write("".join(f"  {line}\n" for line in self.example.splitlines()))

    def main(
        self, args: Sequence[str] | None = None, prog_name: str | None = None, complete_var: str | None = None,
        standalone_mode: bool = True, **extra: Any,
    ) -> Any:  # fmt: skip
        arguments = list(sys.argv[1:] if args is None else args)
        run: Callable[[], Any] = functools.partial(
            super().main, arguments, prog_name, complete_var, standalone_mode=False, **extra
        )
        if not standalone_mode:
            return run()
        as_json = "--json" in arguments
        try:
            code = run()
        except click.UsageError as error:
            if isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):
                error.show()
                sys.exit(error.exit_code)
            where = f" ({error.ctx.command_path} --help)" if error.ctx else ""
            fail("UsageError", f"{error.format_message().rstrip('.')}{where}", error.exit_code, as_json)
        except click.ClickException as error:
            fail("UsageError", error.format_message(), error.exit_code, as_json)
        except click.Abort:
            fail("Interrupted", "interrupted", INTERRUPTED, as_json)
        sys.exit(code or 0)


class Command(Help):
    """A command: what it is given as options, --json (`as_json`) among them; its errors become one line and an exit code."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        shared = [
            click.Option(["--json", "as_json"], is_flag=True, help="Print one JSON document on stdout, also for an error."),
            click.Option(["-v", "--verbose"], is_flag=True, help="Show a traceback when something fails."),
        ]
        for option in shared:
            option.heading = EVERYWHERE  # type: ignore[attr-defined]
        self.params += shared

    def invoke(self, ctx: click.Context) -> Any:
        """Run it; -v shows the traceback of an error."""
        verbose, as_json = ctx.params.pop("verbose"), ctx.params["as_json"]
        if sys.stderr is None:  # closed by whoever started this
            sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        try:
            with warnings_said():
                return super().invoke(ctx)
        except L2CError as error:
            if verbose:
                traceback.print_exc()
            fail(type(error).__name__, spoken(str(error), options_of(ctx)), error.exit_code, as_json)
        except KeyboardInterrupt:
            fail("Interrupted", "interrupted", INTERRUPTED, as_json)
        except BrokenPipeError:  # whoever reads the output has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is left: Python would complain
            sys.exit(1)
        except OSError as error:
            where = error.filename or "standard output"
            fail("OSError", f"{where}: {error.strerror or error}: check the folder and the disk", 1, as_json)
        except MemoryError:
            fail("MemoryError", "out of memory: use a smaller --batch", 1, as_json)


class Commands(Help, click.Group):
    """Commands in the order of their use, each with the whole of its first sentence."""

    heading = "Options"

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.get_short_help_str(limit=300)) for name, command in self.commands.items()])

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_options(ctx, formatter)
        self.format_commands(ctx, formatter)
