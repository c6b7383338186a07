"""In a terminal: bars while it takes long, lines above them, and nothing of them left at the end."""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path

import pytest
from desk import GOOD, ROOT, invoke

pty = pytest.importorskip("pty", reason="no terminals of POSIX here")
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def seen(line: str, width: int = 80, **environment: str) -> str:
    """All that a command writes to a terminal, as it comes."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(PYTHONPATH=str(ROOT), COLUMNS=str(width), TERM="xterm", **environment)
        os.execv(sys.executable, [sys.executable, "-m", "l2c_export", *shlex.split(line)])
    written = b""
    while part := read(terminal):
        written += part
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 0, written.decode()
    return written.decode()


def read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # Linux: the other end is closed
        return b""


def screen(written: str) -> list[str]:
    """The lines that are left to read, as a terminal shows them: a bar writes over itself and is erased."""
    lines, row, column = [""], 0, 0
    for token in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+", written):
        if token == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif token == "\r":
            column = 0
        elif token.endswith("A") and token.startswith("\x1b"):
            row -= int(token[2:-1] or 1)
        elif token == "\x1b[2K":
            lines[row] = ""
        elif not token.startswith("\x1b"):
            lines[row] = lines[row][:column].ljust(column) + token + lines[row][column + len(token) :]
            column += len(token)
    return [line.rstrip() for line in lines if line.strip()]


def test_export_shows_how_far_it_is(new, tmp_path):
    written = seen(f"export {GOOD}", L2C_CACHE=str(tmp_path))
    shown = CONTROL.sub("", written)
    assert re.search(r"writing weights \S+ +100%", shown)
    silent = invoke(f"export {GOOD}").stderr.splitlines()
    assert screen(written)[:-1] == silent[:-1], "the bars are gone, and the lines are those of a file"
    assert re.fullmatch(r"new: .* MB in .* s", screen(written)[-1])


def test_link_shows_how_far_it_is(copy):
    written = seen("link copy --weights random:2")
    assert re.search(r"writing weights \S+ +\d+%", CONTROL.sub("", written))
    assert screen(written)[1:] == [
        "copy: linked with random:2", "RANDOM weights, seed 2: good for latency, the images mean nothing",
    ]  # fmt: skip


def test_the_lines_of_training_stand_above_its_bar(new, tmp_path):
    line = f"train --model demo --steps 4 --data self --iterations 2 --batch 2 --target-reduction 0.4 --out {tmp_path}/r"
    written = seen(line, width=60)
    assert re.search(r"training \S+ +50%", CONTROL.sub("", written))
    left = "".join(screen(written))
    assert "training" not in re.sub(r"https?\S+|/\S+", "", left).replace("training goes", "")
    assert re.search(r"lambda \S+, which 40% of the sublayers are not worth", left)
    assert (tmp_path / "r/schedule.json").is_file()
    assert f"compile it with l2c-export --schedule {tmp_path}/r/schedule.json" in left


def test_a_table_takes_the_width_of_the_terminal(desk):
    for width in (60, 100):
        shown = CONTROL.sub("", seen("inspect engines", width)).splitlines()
        table = [line for line in shown if re.match(r" *\S+  +\S", line)]
        assert len(table) > 7
        assert max(map(len, table)) <= width
    assert "\x1b[1m" in seen("inspect engines"), "headings are bold in a terminal"


def test_without_a_terminal_there_is_no_bar(copy):
    done = invoke("link copy --weights random:2")
    assert "\x1b" not in done.stderr
    assert "%" not in done.stderr
    assert Path("copy/weights.safetensors").is_file()
