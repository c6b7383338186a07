"""To the Hugging Face hub and back, by its own client, which is told in a process of its own where the hub is."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
import yaml
from distribution.hub_server import Hub, HubState
from distribution.servers import Fault, serving
from folders import GOLDEN, tree
from recorded import ROOT

from l2c_export.artefact import store
from l2c_export.compiler.link import bind

pytest.importorskip("huggingface_hub", reason="no huggingface_hub here: pip install 'l2c-export[registry]'")
FILES = store.read(GOLDEN).files
LARGE = max(FILES, key=lambda name: FILES[name].bytes)

PROGRAM = """
import sys
from l2c_export.distribution.transfer import pull, push
from l2c_export.errors import L2CError

for line in sys.stdin:
    what, folder, address = line.split()
    try:
        done = (push if what == "push" else pull)(folder, address, report=lambda line: print("said", line))
        print("done", done.address if what == "push" else "", done.sent if what == "push" else "", flush=True)
    except L2CError as error:
        print(f"{type(error).__name__}: {error}", flush=True)
"""


@pytest.fixture
def hub():
    with serving(Hub, HubState) as state:
        yield state


@pytest.fixture
def client(hub, tmp_path):
    """Tell the process what to do: all lines up to the last word of it."""
    home = {"HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": "hf_token", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    env = {**os.environ, **home, "HF_ENDPOINT": hub.url, "PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, "-u", str(tmp_path / "program.py")]
    process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def tell(*words):
        process.stdin.write(f"{' '.join(map(str, words))}\n")
        process.stdin.flush()
        said = []
        while not said or said[-1].startswith("said"):
            said.append(process.stdout.readline().rstrip())
            assert said[-1], "it has died"
        return said

    yield tell
    process.stdin.close()
    process.wait()


def test_an_artefact_on_the_hub(hub, client, copy, tmp_path, unchanged):
    """The whole life of a repository, in one process, which takes a second to start."""
    # made, private, with a card
    said = client("push", GOLDEN, "hf://me/dit")
    assert said[0] == "said hf://me/dit: made, private: whom it is for is said on its page"
    assert hub.private is True
    assert said[-1].startswith("done"), (said, hub.asked[-3:])
    first = said[-1].split()[1]
    assert re.fullmatch(r"hf://me/dit@[0-9a-f]{40}", first)
    card = hub.main["README.md"].decode()
    assert {name: data for name, data in hub.main.items() if name != "README.md"} == tree(GOLDEN)
    assert len(hub.order) == 2, "one commit besides that of making it"
    head = yaml.safe_load(card.split("---")[1])
    assert (head["library_name"], "l2c-export" in head["tags"]) == ("l2c-export", True)
    assert "l2c pull engines hf://me/dit" in card
    assert str(ROOT) not in card

    # what is there is not sent again
    hub.received = 0
    assert client("push", GOLDEN, "hf://me/dit") == [f"said {first}: 0 files of {len(FILES)} sent, 0.0 MB", f"done {first} 0"]
    assert (hub.received, len(hub.order)) == (0, 2)

    # another one: what has changed, and without what only the first had; the card is its owner's by now
    hub.commits[hub.order[-1]] = {**hub.main, "README.md": b"my words", "notes.txt": b"my notes"}
    bind(copy, "random:9")
    changed = {name for name, info in store.read(copy).files.items() if FILES.get(name) != info}
    assert client("push", copy, "hf://me/dit")[-1].split()[2] == str(len(changed))
    assert hub.main == {**tree(copy), "README.md": b"my words", "notes.txt": b"my notes"}

    # back: the last one, and the first one by its commit
    client("pull", tmp_path / "a", "hf://me/dit")
    assert tree(tmp_path / "a") == tree(copy)
    client("pull", tmp_path / "a", first)
    assert tree(tmp_path / "a") == tree(GOLDEN)
    client("pull", tmp_path / "b", "hf://me/dit")

    # what is wrong
    hub.main[LARGE] = bytes(FILES[LARGE].bytes)
    bind(tmp_path / "b", "random:3")
    look = unchanged(tmp_path / "b")
    (line,) = client("pull", tmp_path / "b", "hf://me/dit")
    assert line.startswith(f"ArtefactError: hf://me/dit: {LARGE} is not what its digest says: nothing was changed")
    look()
    hub.faults = [Fault("GET|HEAD", "resolve", 403, 99)]
    (line,) = client("pull", tmp_path / "b", "hf://me/dit")
    assert line.startswith("RunError: hf://me/dit: ")
    assert "403" in line
    look()
    hub.faults, before = [], dict(hub.main)
    hub.faults = [Fault("POST", "/commit/", 403)]
    (line,) = client("push", GOLDEN, "hf://me/dit")
    assert line.startswith("RunError: hf://me/dit: ")
    assert hub.main == before
    hub.faults, hub.ignored = [], LARGE
    (line,) = client("push", GOLDEN, "hf://me/dit")
    assert line.startswith(f"RunError: hf://me/dit: the hub has left out {LARGE}, perhaps by a .gitignore there: remove that")
    (line,) = client("pull", tmp_path / "c", "hf://me/other")
    assert line.startswith("RunError: hf://me/other: ")
    assert "hf auth login" in line
    assert not (tmp_path / "c").exists()
    assert list(tmp_path.glob("l2c-*")) == []
