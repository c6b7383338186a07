"""Tables on screens of any width: everything is there, numbers to the right, and commands in one piece."""

from __future__ import annotations

import re

import click
import pytest
from desk import E, invoke
from hypothesis import given
from hypothesis import strategies as st

from l2c_export.cli.tables import RANGE, table_lines

COMMAND = "pip uninstall onnxruntime, then pip install 'l2c-export[onnxruntime-gpu]'"
DOCTOR = [
    ("what", "works", "version", "what to know"),
    ("onnxruntime cuda", "no", "1.32.0", f"the one for CPUs: {COMMAND}"),
    ("cache", "yes", "-", "/a/folder"),
]
TIMES = [
    ("contender", "ours is", "in the rounds", "s/image", "images/s", "on disk MB"),
    ("ours", "", "", "0.8123", "1.231", "15.2"),
    ("torch-compile-cached", "12.31x", "11.20 .. 13.48", "10.02", "0.0998", "1,234"),
]


def lines(rows, width):
    return [click.unstyle(line) for line in table_lines(rows, width)]


def test_a_table_with_room_is_one_block():
    assert lines(TIMES, 100) == [
        "contender             ours is   in the rounds  s/image  images/s  on disk MB",
        "ours                                            0.8123     1.231        15.2",
        "torch-compile-cached   12.31x  11.20 .. 13.48    10.02    0.0998       1,234",
    ]


def test_a_wide_table_goes_on_below_with_its_first_column():
    output = lines(TIMES, 50)
    assert max(map(len, output)) <= 50
    assert "" in output
    assert sum(line.startswith("torch-compile-cached ") for line in output) == 2
    assert " ".join(output[0].split()) == "contender ours is in the rounds"
    assert all(cell in " ".join(output) for row in TIMES[1:] for cell in row)


def test_a_command_stays_in_one_piece():
    assert any(COMMAND in line for line in lines(DOCTOR, 140))
    output = lines(DOCTOR, 60)
    assert output[-2:] == [f"onnxruntime cuda: the one for CPUs: {COMMAND}", "cache: /a/folder"]
    assert max(map(len, output[:-2])) <= 60


@pytest.mark.parametrize("cell", ["12.3", "1,234", "-0.5", "1e-05", "78%", "1.23x", "1.2 .. 1.3", "-", "nan", ""])
def test_what_is_a_number(cell):
    assert RANGE.fullmatch(cell)
    output = lines([("a name", "value"), ("x", cell), ("y", "1234567")], 80)
    assert output[1] == f"x       {cell:>7}".rstrip()


@pytest.mark.parametrize("cell", ["fp32", "step-000", "1.7.1.116", "yes", "0.attn"])
def test_what_is_none(cell):
    assert lines([("a name", "value"), ("x", cell), ("y", "a long value")], 80)[1] == f"x       {cell}"


WORD = st.text("abcdefg", min_size=1, max_size=9)
CELL = st.one_of(st.integers(-99999, 99999), st.floats(0, 1e4).map(lambda x: round(x, 2)), WORD)


@given(st.integers(2, 9).flatmap(lambda n: st.tuples(*[st.lists(st.tuples(*[CELL] * n), min_size=1, max_size=4)])),
       st.integers(40, 130))  # fmt: skip
def test_nothing_is_lost_and_nothing_too_wide(tables, width):
    (rows,) = tables
    table = [tuple(f"c{n}" for n in range(len(rows[0]))), *rows]
    output = lines(table, width)
    assert max(map(len, output)) <= width
    words = " ".join(output).split()
    for cell in {str(cell) for row in table for cell in row}:
        assert words.count(cell) >= 1


@pytest.mark.parametrize("width", [60, 100])
@pytest.mark.parametrize("line", [
    "inspect engines", "inspect engines --device h100", "inspect router.pt", f"{E} --dry-run", "cache",
    "verify engines --golden case --backend onnxruntime", "profile engines --rounds 1 --backend onnxruntime",
])  # fmt: skip
def test_the_tables_of_commands_fit(desk, monkeypatch, line, width):
    monkeypatch.setenv("COLUMNS", str(width))
    done = invoke(line)
    assert done.exit_code == 0, done.stderr
    table = [text for text in done.stdout.splitlines() if re.match(r".*\S  +\S", text)]
    assert len(table) >= 2
    assert max(map(len, table)) <= width


@pytest.mark.parametrize("width", [60, 100])
def test_doctor_cuts_no_command(monkeypatch, width):
    whole = re.findall(r"pip install '\S+'", invoke("doctor", env={"COLUMNS": "400"}).stdout)
    monkeypatch.setenv("COLUMNS", str(width))
    assert re.findall(r"pip install '\S+'", invoke("doctor").stdout) == whole
