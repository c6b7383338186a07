"""A folder holds one whole artefact whatever happens to a compiler."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from folders import GOLDEN, replace, tree

import l2c_export
from l2c_export.artefact import staging, store
from l2c_export.artefact.records import FILE
from l2c_export.compiler.link import bind
from l2c_export.errors import ArtefactError

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


ACCESS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree")


def ends(act, moment: int, fault=lambda: os.kill(os.getpid(), signal.SIGKILL), access=ACCESS) -> bool:
    """Run `act` in a process of its own, with a fault before its `moment`-th access to the disk.  Whether it came that far."""
    child = os.fork()
    if not child:
        left = [moment]

        def watch(event, _):
            if event in access:
                left[0] -= 1
                if left[0] == 0:
                    fault()

        sys.addaudithook(watch)
        with contextlib.suppress(BaseException):
            act()
        os._exit(left[0] > 0)
    return os.waitpid(child, 0)[1] != 256


@needs_fork
def test_a_compiler_killed_at_any_moment_leaves_the_old_artefact_or_the_new_one(copy, other):
    old, new = store.read(copy), store.read(other)
    before, wanted, manifests, moment = tree(copy), tree(other), [], 1
    while ends(lambda: replace(copy, other), moment):
        manifests.append(store.read(copy))
        replace(copy, other)
        assert tree(copy) == wanted, moment
        shutil.rmtree(copy)
        shutil.copytree(GOLDEN, copy)
        moment += 2 if moment > 40 else 9  # copying into the stage is not where it is decided
    assert tree(copy) == wanted
    assert before != wanted
    assert len(manifests) > 20
    changed = manifests.index(new)
    assert changed > 3
    assert all(manifest == old for manifest in manifests[:changed])
    assert all(manifest == new for manifest in manifests[changed:]), "in one moment, and never back"


@needs_fork
def test_a_first_export_killed_at_any_moment_leaves_nothing_or_all(tmp_path, other):
    folder, moment, manifests = tmp_path / "fresh" / "out", 1, []
    while ends(lambda: replace(folder, other), moment):
        with contextlib.suppress(ArtefactError):
            manifests.append(store.read(folder))
        replace(folder, other)
        assert tree(folder) == tree(other)
        shutil.rmtree(folder)
        moment += 3
    assert manifests
    assert all(manifest == store.read(other) for manifest in manifests)


@needs_fork
def test_linking_killed_at_any_moment_leaves_the_old_weights_or_the_new_ones(copy, tmp_path):
    """The fingerprint goes with the old ones."""
    old, kept = store.read(copy), shutil.copytree(copy, tmp_path / "old")
    new = bind(shutil.copytree(copy, tmp_path / "new"), "random:5")
    assert old.fingerprint
    assert not new.fingerprint
    manifests, moment = [], 1
    while ends(lambda: bind(copy, "random:5"), moment):
        manifests.append(store.read(copy))
        shutil.rmtree(copy)
        shutil.copytree(kept, copy)
        moment += 2
    assert manifests.index(new) > 3
    assert set(map(bytes, map(msgspec.json.encode, manifests))) == set(map(msgspec.json.encode, (old, new)))


FULL = OSError(errno.ENOSPC, "No space left on device")


def no_space():
    raise FULL


def interrupt():
    raise KeyboardInterrupt


@needs_fork
@pytest.mark.parametrize("fault", [no_space, interrupt])
def test_a_fault_before_the_change_leaves_the_old_artefact_to_the_byte(copy, other, fault):
    before = tree(copy)
    for moment in (1, 2, 3, 5, 20, 30, 40):
        assert ends(lambda: replace(copy, other), moment, fault, access=["open"])
        assert {n: d for n, d in tree(copy).items() if not n.startswith(".l2c")} == before, moment
    replace(copy, other)
    assert tree(copy) == tree(other), "and what it left behind is gone"


@pytest.mark.parametrize("cause", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("call", ["fsync", "rename", "replace"])
def test_a_disk_that_fails_is_one_line(copy, other, monkeypatch, call, cause):
    def fail(*_):
        raise OSError(cause, os.strerror(cause))

    with monkeypatch.context() as patched:
        patched.setattr(os, call, fail)
        for act in (lambda: replace(copy, other), lambda: bind(copy, "random:3")):
            with pytest.raises(ArtefactError, match=os.strerror(cause)) as error:
                act()
            assert "\n" not in str(error.value)
    whole = store.read(other if call == "replace" else GOLDEN)  # it was ready by then, and is finished when it can be
    assert store.read(copy) == whole


def test_a_replacement_that_cannot_be_finished_says_so(copy, other, monkeypatch):
    def fail(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", fail)
        with pytest.raises(ArtefactError, match="Read-only"):
            replace(copy, other)  # ready, and not moved
        patched.setattr(staging, "_stage", None)
        with pytest.raises(
            ArtefactError, match="its replacement was interrupted and cannot be finished: Read-only file system"
        ):
            l2c_export.load(copy)
    assert store.read(copy) == store.read(other), "who can write finishes it"
    assert tree(copy) == tree(other)


def test_everything_is_on_the_disk_before_the_artefact_changes(copy, other, disk):
    replace(copy, other)
    before = {path.name for _, path in disk[: disk.index(("move", copy / staging.READY))]}
    assert {Path(name).name for name in tree(other)} <= before
    assert {"segments", "extra"} <= before


def test_the_change_is_on_the_disk_before_the_old_files_go(copy, other, disk):
    replace(copy, other)
    assert disk[disk.index(("move", copy / staging.READY)) + 1] == ("sync", copy)


def test_the_names_of_all_files_are_on_the_disk_before_the_manifest_lists_them(copy, other, disk):
    replace(copy, other)
    manifest = disk.index(("move", copy / FILE))
    last = max(n for n, (kind, _) in enumerate(disk[:manifest]) if kind == "move")
    assert {path for kind, path in disk[last:manifest] if kind == "sync"} >= {(copy / name).parent for name in tree(other)}
    assert disk[manifest + 1 :] == [("sync", copy)]


@pytest.mark.parametrize("existed", [True, False])
def test_a_failed_export_leaves_the_users_empty_folder_and_none_of_its_own(tmp_path, existed):
    folder = tmp_path / "out"
    if existed:
        folder.mkdir()
    with pytest.raises(KeyboardInterrupt), staging.staged(folder):
        interrupt()
    assert folder.exists() == existed


def test_the_disk_is_full(tmp_path, other):
    """A process that may write no large file stands for a full disk: the weights do not fit."""
    folder = shutil.copytree(GOLDEN, tmp_path / "old")
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        "from l2c_export.cli.main import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code, "link", folder, "--weights", "random:2"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == f"error: {folder}: cannot be written: File too large: check the disk\n"
    assert tree(folder) == tree(GOLDEN)
