"""The pages: their commands do what they say, their links lead somewhere, and the files that they name exist."""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from version2 import EXAMPLE

from l2c_export.cli.main import l2c

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "l2c_export"
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in sorted([*ROOT.glob("*.md"), *(ROOT / ".github").glob("*.md"), *(ROOT / "engines").glob("*.md"),
                        *(ROOT / "scripts").rglob("*.md"), *PACKAGE.rglob("*.md")])
}  # fmt: skip
README, MAP = PAGES["README.md"], PAGES["l2c_export/ARCHITECTURE.md"]
COMMAND = re.compile(r"(?:^|[`(|] ?| {4})(l2c-export|l2c) ?([a-z]*)([^`|#\n]*)", re.MULTILINE)
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGES[page], re.DOTALL)


def python(folder: Path, *words: str) -> str:
    """What Python prints in a folder, with this package in its path."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *words], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{words}: {done.stderr}"
    return done.stdout


def cli(folder: Path, line: str) -> str:
    tool, *words = shlex.split(line)
    return python(folder, "-m", "l2c_export", *(["export"] if tool == "l2c-export" else []), *words)


# the first page


def test_the_first_page_is_short():
    assert len(README.splitlines()) <= 170


def test_the_commands_to_try_work(tmp_path):
    for line in blocks("README.md", "bash")[0].strip().splitlines():
        cli(tmp_path, line)
    assert (tmp_path / "three.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "schedule.png").stat().st_size > 1000


def test_the_lines_of_python_end_in_a_picture(tmp_path):
    code = blocks("README.md", "python")[0]
    assert len(code.replace("\n\n", "\n").strip().splitlines()) <= 5
    python(tmp_path, "-c", code)
    assert (tmp_path / "digits.png").read_bytes().startswith(b"\x89PNG")


def test_every_install_line_names_extras_that_exist():
    text = (ROOT / "pyproject.toml").read_text()
    for page, words in PAGES.items():
        for extras in re.findall(r"pip install '\.\[([\w,-]+)\]'", words):
            for extra in extras.split(","):
                assert f"\n{extra} = [" in text, f"{page}: {extra}"


# what the other pages show


def test_the_schedule_that_is_shown_is_one(tmp_path):
    shown = blocks("l2c_export/schedules/README.md", "json")[0]
    (tmp_path / "schedule.json").write_text(shown)
    document = json.loads(cli(tmp_path, "l2c inspect schedule.json --json"))
    computed = [[document["sublayers"][j] for j in call["computed"]] for call in document["calls"]]
    everything = ["blocks.0.attn", "blocks.0.mlp"]
    assert [everything if call["computed"] == "all" else call["computed"] for call in json.loads(shown)["calls"]] == computed
    assert json.loads(shown) == json.loads(EXAMPLE)


def test_the_model_that_is_shown_is_one(tmp_path):
    (tmp_path / "model.json").write_text(blocks("l2c_export/models/README.md", "json")[0])
    cli(tmp_path, "l2c-export --model model.json --weights random --schedule every:2 --steps 4 --dry-run")


# options


@functools.cache
def options(command: str) -> frozenset[str]:
    """All that the help of a command mentions, or those of a group of commands."""
    inside = getattr(l2c.commands[command], "commands", {})
    lines = [[command, name] for name in inside] or [[command]]
    return frozenset(option for line in lines for option in OPTION.findall(python(ROOT, "-m", "l2c_export", *line, "--help")))


@pytest.mark.parametrize("page", PAGES)
def test_every_option_of_a_command_exists(page):
    for tool, command, rest in COMMAND.findall(PAGES[page]):
        name = "export" if tool == "l2c-export" else command
        mentioned = set(OPTION.findall(rest))
        assert not mentioned or mentioned <= options(name), f"{page}: {tool} {command}{rest}"


@pytest.mark.parametrize(
    ("page", "command"), [("l2c_export/compiler/README.md", "export"), ("l2c_export/training/README.md", "train")]
)
def test_every_option_of_a_page_exists(page, command):
    text = re.sub(r"`[^`]*torchrun[^`]*`", "", PAGES[page]).replace("l2c cache --prune", "").replace("l2c inspect --json", "")
    mentioned = {option for option in OPTION.findall(text) if command == "export" or f"`{option}" in text}
    assert mentioned
    assert mentioned <= options(command)


def test_the_table_of_options_is_complete():
    table = PAGES["l2c_export/compiler/README.md"] + PAGES["l2c_export/schedules/README.md"]
    known = options("export") - {"--help", "--verbose", "--json", "--cache", "--hoist", "--fold"}
    assert all(option in table for option in known), known - set(OPTION.findall(table))


# links and files


def anchors(text: str) -> set[str]:
    """What GitHub calls the headings of a page."""
    plain = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", plain, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)", PAGES[page]) + re.findall(r'<img src="([^"]+)"', PAGES[page])
    for link in links:
        if link.startswith("http"):
            continue
        name, _, anchor = link.partition("#")
        target = ((ROOT / page).parent / name).resolve() if name else ROOT / page
        assert target.exists(), f"{page}: {link}"
        if anchor:
            assert anchor in anchors(target.read_text()), f"{page}: {link}"


def test_every_page_is_linked():
    linked = set()
    for page, text in PAGES.items():
        names = [name for name in re.findall(r"\]\(([^)\s#]+\.md)", text) if not name.startswith("http")]
        linked |= {((ROOT / page).parent / name).resolve() for name in names}
    assert [page for page in PAGES if (ROOT / page).resolve() not in linked] == ["README.md"]


def named(text: str) -> set[str]:
    """Files and folders in code: `ir/graph.py`, `backends/cuda/`, but not patterns."""
    return set(re.findall(r"`([\w./-]*(?:\w\.py|\w/))`", text))


def test_every_file_of_the_map_exists():
    assert len(named(MAP)) > 60
    missing = [name for name in named(MAP) if not (PACKAGE / name).exists() and not (ROOT / name).exists()]
    assert not [name for name in missing if "NAME" not in name]


def test_the_map_has_every_folder():
    folders = {path.parent.name for path in PACKAGE.glob("*/*.py")}
    table = MAP[MAP.index("| folder") : MAP.index("## From a schedule")]
    assert folders <= {name.strip("/") for name in named(table)}


def test_pages_are_shipped():
    text = (ROOT / "pyproject.toml").read_text()
    assert '"*" = ["*.md", "py.typed"]' in text
    assert (PACKAGE / "py.typed").is_file()
