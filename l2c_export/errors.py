"""Every error a user can cause.

    L2CError
    ├── UsageError        a value given by the caller is wrong (exit code 2)
    ├── ScheduleError     a router or schedule file cannot be used
    ├── ModelError        an unknown or inconsistent model description
    ├── WeightsError      weights that do not fit the model
    ├── ArtefactError     an output folder or artefact that cannot be used
    ├── BackendError      a backend that is missing or cannot run here
    │   └── MissingExtra  a package that an optional extra installs
    └── RunError          the generation itself failed (NaN, out of memory)

A message is one line: what was wrong with which value, and what to do about it.  It speaks Python: `threads=0: must be at
least 1`, `give them as weights=..`, `run l2c_export.link('engines', weights='PATH')`.  The command line shows it through
`on_command_line`, as `--threads 0: ..` and `run l2c link engines --weights PATH`.
"""

from __future__ import annotations

import ast
import re
import shlex


class L2CError(Exception):
    """The base of all errors of this package; the command line prints it as one line.

    Names from files are part of messages: what would break the line, or speak to the terminal, is written as an escape.
    """

    exit_code = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(message))


class UsageError(L2CError, ValueError):
    """A value given by the caller is wrong."""

    exit_code = 2


class ScheduleError(L2CError):
    """A router or a schedule file cannot be used."""


class ModelError(L2CError):
    """A model description is unknown or contradicts itself."""


class WeightsError(L2CError):
    """Weights are missing, damaged, or do not fit the model."""


class ArtefactError(L2CError):
    """An artefact is incomplete, damaged, of another version, or its folder is not ours to write."""


class BackendError(L2CError):
    """A backend is unknown, or cannot run on this machine."""


class MissingExtra(BackendError):
    """A package is missing that one of our extras installs."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed: pip install 'l2c-export[{extra}]'")


class RunError(L2CError):
    """A generation failed: a NaN, a callback's bad latents, no memory."""


OPTIONS = frozenset({
    "against", "atol", "backend", "batch", "cache", "checkpoint_every", "class_labels", "data", "device", "dump",
    "fold", "fp32", "golden", "guidance", "guidance_scale", "hardware_compatible", "hoist", "images", "iterations",
    "lambda_", "level", "link", "lr", "max_graphs", "model", "out", "precision", "rounds", "rtol", "sampler",
    "schedule", "seed", "steps", "target_reduction", "targets", "threads", "threshold", "tile", "timing_cache", "vae",
    "verify", "version_compatible", "weights", "with_vae",
})  # fmt: skip
SPELLED = {"class_labels": "class-label", "lambda_": "lambda", "level": "optimization-level", "targets": "target"}
TEXT = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
ARGUMENT = re.compile(rf"(?<![\w.])({'|'.join(sorted(OPTIONS, key=len, reverse=True))})=({TEXT}|\.\.|[-+]?\w(?:[\w.+-]*\w)?)")
CALL = re.compile(rf"l2c_export\.(\w+)(\((?:[^()'\"]|{TEXT})*\))?")


def on_command_line(message: str) -> str:
    """A message of this package in the words of the command line: arguments become options, calls become commands.

    `batch=4` is `--batch 4`, `weights=..` (any) is `--weights`, `with_vae=True` is `--with-vae`, `cache=False` is `--no-cache`;
    `l2c_export.link('a b', weights='w.pt')` is `l2c link 'a b' --weights w.pt`, fit to be copied into a shell.
    """
    return ARGUMENT.sub(lambda found: _option(found[1], _value(found[2])), CALL.sub(_command, message))


def _command(found: re.Match[str]) -> str:
    """A call as the command that does the same."""
    name = "l2c-export" if found[1] == "compile" else f"l2c {found[1]}"
    if not found[2]:
        return name
    try:
        call = ast.parse(f"call{found[2]}", mode="eval").body
        assert isinstance(call, ast.Call)
        words = [_word(value) for value in call.args]
        return " ".join([name, *words, *(_option(str(each.arg), _word(each.value)) for each in call.keywords)])
    except (SyntaxError, ValueError):  # a file's name, perhaps, that looks like one
        return found[0]


def _word(value: ast.expr) -> str:
    return shlex.quote(printable(str(ast.literal_eval(value))))


def _option(name: str, value: str) -> str:
    option = f"--{SPELLED.get(name, name.replace('_', '-'))}"
    if value == "False":
        return "--trust" if name == "verify" else option.replace("--", "--no-", 1)
    return option if value in ("..", "True") else f"{option} {value}"


def _value(text: str) -> str:
    """What a value is outside of Python."""
    try:
        return printable(ast.literal_eval(text)) if text[0] in "'\"" else text
    except (SyntaxError, ValueError):
        return text


def printable(text: str) -> str:
    """Text on one line, in which what would speak to the terminal is written as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
