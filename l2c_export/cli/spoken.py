"""Errors speak of parameters, `threads=0`; who types commands reads of options, `--threads 0`."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping

import click

PARAMETER = re.compile(r"""(?<![\w.-])(?:--)?(\w+)=('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^\s,;:()'"]+)""")


def spoken(message: str, options: Mapping[str, click.Option]) -> str:
    """The message with the options of these names in place of parameters; what is no option stays as it is."""

    def option(found: re.Match[str]) -> str:
        name, value = found.groups()
        if name not in options:
            return found.group()
        if value in ("True", "False"):
            return switched(options[name], value == "True")
        text = str(ast.literal_eval(value)) if value[0] in "'\"" else value
        return f"{options[name].opts[0]} {text or value}"

    return PARAMETER.sub(option, message)


def switched(option: click.Option, on: bool) -> str:
    """How a flag is given: --with-vae, --no-cache."""
    return option.opts[0] if on or not option.secondary_opts else option.secondary_opts[0]


def options_of(ctx: click.Context) -> dict[str, click.Option]:
    """The options of a command by the names of their parameters, and for advice those of its neighbours."""
    whole = ctx.find_root().command
    others = list(whole.commands.values()) if isinstance(whole, click.Group) else []
    return {param.name: param for each in (*others, ctx.command) for param in each.params
            if isinstance(param, click.Option) and param.name}  # fmt: skip
