"""Errors speak Python, `threads=0`; who types commands reads of options, `--threads 0`."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Mapping

import click

from ..errors import printable

TEXT = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
ARGUMENT = re.compile(rf"(?<![\w.-])(?:--)?(\w+)=({TEXT}|\.\.|[-+]?\w(?:[\w.+-]*\w)?)")
CALL = re.compile(rf"l2c_export\.(\w+)(\((?:[^()'\"]|{TEXT})*\))?")

OTHERS = {"verify": "trust", "class_labels": "labels"}  # what Python calls otherwise: verify=False is --trust


def spoken(message: str, options: Mapping[str, click.Option]) -> str:
    """The message in the words of the command line: arguments become these options, calls become commands.

    `batch=4` is `--batch 4`, `weights=..` (any) is `--weights`, `with_vae=True` is `--with-vae`, `cache=False` is `--no-cache`;
    `l2c_export.link('a b', weights='w.pt')` is `l2c link 'a b' --weights w.pt`, fit to be copied into a shell.  What is no
    option stays as it is.
    """

    def argument(match: re.Match[str]) -> str:
        name, value = match.groups()
        return _option(options, name, _text(value)) if name in options else match.group()

    return ARGUMENT.sub(argument, CALL.sub(lambda match: _command(options, match), message))


def options_of(ctx: click.Context) -> dict[str, click.Option]:
    """The options of a command by the names of their parameters, and for advice those of its neighbours."""
    whole = ctx.find_root().command
    others = list(whole.commands.values()) if isinstance(whole, click.Group) else []
    options = {param.name: param for command in (*others, ctx.command) for param in command.params
               if isinstance(param, click.Option) and param.name}  # fmt: skip
    return options | {name: options[other] for name, other in OTHERS.items() if other in options}


def _command(options: Mapping[str, click.Option], match: re.Match[str]) -> str:
    """A call as the command that does the same."""
    name = "l2c-export" if match[1] == "compile" else f"l2c {match[1]}"
    if not match[2]:
        return name
    try:
        call = ast.parse(f"call{match[2]}", mode="eval").body
        assert isinstance(call, ast.Call)
        words = [_word(value) for value in call.args]
        named = [_option(options, str(keyword.arg), _word(keyword.value)) for keyword in call.keywords]
        return " ".join([name, *words, *named])
    except (SyntaxError, ValueError):  # a file's name, perhaps, that looks like one
        return match[0]


def _option(options: Mapping[str, click.Option], name: str, value: str) -> str:
    option = options.get(name)
    spelled = option.opts[0] if option else f"--{name.replace('_', '-')}"
    if value == "False" and option and option.secondary_opts:
        return option.secondary_opts[0]
    return spelled if value in ("..", "True", "False") else f"{spelled} {value or repr(value)}"


def _word(value: ast.expr) -> str:
    return shlex.quote(printable(str(ast.literal_eval(value))))


def _text(value: str) -> str:
    """What a value is outside of Python."""
    try:
        return printable(ast.literal_eval(value)) if value[0] in "'\"" else value
    except (SyntaxError, ValueError):
        return value
