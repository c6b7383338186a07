"""An artefact that is part of the package: found by its name, from any folder, checked as any other, and never written to."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import texts
import tomllib
from blocked import without
from click.testing import CliRunner
from folders import GOLDEN, tree
from recorded import ROOT

import l2c_export
from l2c_export.artefact import shipped, store
from l2c_export.cli.main import l2c
from l2c_export.errors import ArtefactError
from l2c_export.runtime.prompts import encode

pytestmark = pytest.mark.usefixtures("one_thread")
PROMPT = ("--prompt", "a cat")


@pytest.fixture(scope="module")
def compiled(prompted_by, tmp_path_factory):
    """A PixArt with a BERT and a tiny decoder in few bytes, as the package would have it."""
    folder = prompted_by(texts.MINILM).folder
    stored = ("fp16", "text=int8")
    return texts.exported(texts.MINILM, folder, tmp_path_factory.mktemp("shipped") / "out", with_vae=True, store=stored).out


@pytest.fixture
def package(compiled, tmp_path, monkeypatch):
    """The package with it, in a folder where nobody may write; and one's own folder as the current one."""
    home, own = tmp_path / "site-packages" / "l2c_export", tmp_path / "own"
    shutil.copytree(compiled, home / "emoji" / "engines")
    (home / "emoji" / "README.md").write_text("where it comes from")
    own.mkdir()
    monkeypatch.setattr(shipped, "HOME", home)
    monkeypatch.chdir(own)
    paths = [home, *home.rglob("*")]
    for path in paths:
        path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
    yield home / "emoji" / "engines"
    for path in paths:
        path.chmod(path.stat().st_mode | stat.S_IWUSR)


def said(*words: object) -> str:
    done = CliRunner().invoke(l2c, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_its_name_is_enough(package, backend):
    before = tree(package)
    said("run", "emoji", *PROMPT, "--backend", backend, "--out", "cat.png")
    assert Path("cat.png").is_file()
    with l2c_export.load("emoji", backend=backend) as pipe:
        assert pipe.path == package
        images = pipe(prompt="a cat", output_type="np").images
    with l2c_export.load(package, backend=backend) as pipe:
        assert np.array_equal(pipe(prompt="a cat", output_type="np").images, images)
    assert tree(package) == before


def test_every_command_that_reads_an_artefact_takes_it(package):
    before = tree(package)
    assert "matrices stored in float16" in said("inspect", "emoji")
    assert "right" in said("check", "emoji")
    assert "right" in said("verify", "emoji")
    said("encode", "emoji", *PROMPT, "--out", "cat.npz")
    said("profile", "emoji", "--rounds", 1)
    assert l2c_export.check("emoji").passed
    assert l2c_export.verify("emoji").passed
    assert l2c_export.inspect("emoji").artefact["steps"] == 2
    assert l2c_export.Artefact.read("emoji").path == package
    assert np.array_equal(encode("emoji", "a cat")["prompt_embeds"], np.load("cat.npz")["prompt_embeds"])
    assert tree(package) == before


@pytest.mark.parametrize("words", [
    ("link", "emoji", "--weights", "random"), ("check", "emoji", "--record"),
    ("build", "emoji", "--backend", "tensorrt-rtx", "--target", "sm86"), ("remove", "emoji", "some-build"),
], ids=lambda words: words[0])  # fmt: skip
def test_it_stays_as_it_is(package, words):
    before = tree(package)
    for path in ("emoji", str(package)):
        done = CliRunner().invoke(l2c, [words[0], path, *words[2:]])
        assert done.exit_code == 1
        assert "engines comes with l2c-export and stays as it is: copy it (cp -r) and change the copy" in done.output
        assert len(done.output.strip().splitlines()) == 1
    assert tree(package) == before
    copy = shutil.copytree(package, "copy")
    for path in [copy, *Path(copy).rglob("*")]:
        os.chmod(path, 0o755)
    if words[0] == "link":
        said(words[0], copy, *words[2:])


def test_what_was_damaged_is_refused(package):
    file = package / "text" / "text_encoder.safetensors"
    file.chmod(0o644)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(ArtefactError, match=r"text_encoder\.safetensors"):
        l2c_export.load("emoji")


def test_an_artefact_of_ones_own_with_this_name_is_meant_and_said(package, caplog):
    shutil.copytree(GOLDEN, "emoji")
    with caplog.at_level("WARNING", "l2c_export"):
        assert l2c_export.Artefact.read("emoji").path == Path("emoji")
    assert f"the artefact in this folder, not the one that comes with l2c-export ({package})" in caplog.text
    done = CliRunner().invoke(l2c, ["inspect", "emoji"])
    assert "not the one that comes with l2c-export" in done.output
    caplog.clear()
    assert l2c_export.Artefact.read(Path("emoji")).path == Path("emoji"), "a path is no name"
    assert not caplog.text


def test_another_folder_of_this_name_is_not_in_the_way(package, caplog):
    Path("emoji").mkdir()
    (Path("emoji") / "holiday.png").write_bytes(b"")
    assert l2c_export.Artefact.read("emoji").path == package
    assert not caplog.text
    assert "float16" in said("inspect", "emoji")


@pytest.mark.parametrize("name", ["emojis", "../l2c_export/emoji", "emoji/engines", ".", "", "Emoji", "emoji\n", "e" * 5000])
def test_other_names_are_paths(package, name):
    assert shipped.named(name) is None
    with pytest.raises(ArtefactError):
        l2c_export.load(name)


def test_it_draws_where_no_framework_is(package, tmp_path):
    """From any folder, by somebody who may not write to the package's."""
    plain = ["setpriv", "--bounding-set=-dac_override"] if os.getuid() == 0 and shutil.which("setpriv") else []
    blocked = ("torch", "onnx", "onnxscript", "diffusers", "transformers", "sentencepiece", "huggingface_hub", "openvino")
    program = f"""{without(blocked)}from pathlib import Path
from l2c_export.artefact import shipped
shipped.HOME = Path({str(shipped.HOME)!r})
from l2c_export.cli.main import l2c

l2c(sys.argv[1:], standalone_mode=False)
"""
    words = ["run", "emoji", *PROMPT, "--out", "cat.png"]
    done = subprocess.run([*plain, sys.executable, "-c", program, *words], capture_output=True, text=True, cwd=tmp_path,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "cat.png").is_file()


def test_what_comes_with_the_package_is_in_its_wheel_and_whole():
    """Of this very package: every artefact in it is data of the package, and each of its files is what the manifest says."""
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    for folder in Path(l2c_export.__file__).parent.glob(f"*/{shipped.ENGINES}"):
        assert (folder.parent / "__init__.py").is_file()
        assert "engines/**" in data[f"l2c_export.{folder.parent.name}"]
        manifest = store.read(folder)
        assert {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} == {
            "manifest.json",
            *manifest.files,
        }
        assert not [name for name in manifest.files if re.search(r"\s", name)]
