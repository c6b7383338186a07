"""A folder holds one whole artefact whatever happens to a compiler; a generation is right whatever happened to the last one."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest

import l2c_export
from l2c_export.artefact import integrity, staging, store
from l2c_export.artefact.manifest import FILE
from l2c_export.backends import builds, units
from l2c_export.backends.tensorrt.builder import Builder, BuildSettings
from l2c_export.compiler.link import bind
from l2c_export.errors import ArtefactError, RunError
from l2c_export.runtime import images, loop, pipeline
from l2c_export.support import cache, files

GOLDEN = Path(__file__).parents[1] / "golden" / "v1" / "engines"
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture
def copy(tmp_path):
    """A small artefact of one's own."""
    return shutil.copytree(GOLDEN, tmp_path / "engines")


@pytest.fixture
def other(tmp_path):
    """Another one, with more files and other weights."""
    folder = shutil.copytree(GOLDEN, tmp_path / "other")
    bind(folder, "random:9")
    manifest = store.read(folder)
    (folder / "extra").mkdir()
    (folder / "extra" / "new.plan").write_bytes(b"plan")
    more = {**manifest.files, "extra/new.plan": integrity.info(folder / "extra" / "new.plan")}
    store.write_json(folder / FILE, msgspec.structs.replace(manifest, files=more))
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def export(folder: Path, made: Path) -> None:
    """What a compiler does at its end: `made` takes the place of the artefact in `folder`."""
    with staging.staged(folder) as stage:
        shutil.copytree(made, stage, dirs_exist_ok=True)


# a kill at every moment


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
    before, wanted, found, moment = tree(copy), tree(other), [], 1
    while ends(lambda: export(copy, other), moment):
        found.append(store.read(copy))
        export(copy, other)
        assert tree(copy) == wanted, moment
        shutil.rmtree(copy)
        shutil.copytree(GOLDEN, copy)
        moment += 2 if moment > 40 else 9  # copying into the stage is not where it is decided
    assert tree(copy) == wanted
    assert before != wanted
    assert len(found) > 20
    changed = found.index(new)
    assert changed > 3
    assert all(manifest == old for manifest in found[:changed])
    assert all(manifest == new for manifest in found[changed:]), "in one moment, and never back"


@needs_fork
def test_a_first_export_killed_at_any_moment_leaves_nothing_or_all(tmp_path, other):
    folder, moment, found = tmp_path / "fresh" / "out", 1, []
    while ends(lambda: export(folder, other), moment):
        with contextlib.suppress(ArtefactError):
            found.append(store.read(folder))
        export(folder, other)
        assert tree(folder) == tree(other)
        shutil.rmtree(folder)
        moment += 3
    assert found
    assert all(manifest == store.read(other) for manifest in found)


@needs_fork
def test_linking_killed_at_any_moment_leaves_the_old_weights_or_the_new_ones(copy, tmp_path):
    old = store.read(copy)
    new = bind(shutil.copytree(copy, tmp_path / "new"), "random:5")
    found, moment = [], 1
    while ends(lambda: bind(copy, "random:5"), moment):
        found.append(store.read(copy))
        bind(copy, "random:1")
        assert store.read(copy) == old
        moment += 2
    assert found.index(new) > 3
    assert set(map(bytes, map(msgspec.json.encode, found))) == set(map(msgspec.json.encode, (old, new)))


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
        assert ends(lambda: export(copy, other), moment, fault, access=["open"])
        assert {n: d for n, d in tree(copy).items() if not n.startswith(".l2c")} == before, moment
    export(copy, other)
    assert tree(copy) == tree(other), "and what it left behind is gone"


@pytest.mark.parametrize("cause", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("call", ["fsync", "rename", "replace"])
def test_a_disk_that_fails_is_one_line(copy, other, monkeypatch, call, cause):
    def fail(*_):
        raise OSError(cause, os.strerror(cause))

    with monkeypatch.context() as patched:
        patched.setattr(os, call, fail)
        for act in (lambda: export(copy, other), lambda: bind(copy, "random:3")):
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
            export(copy, other)  # ready, and not moved
        patched.setattr(staging, "_stage", None)
        with pytest.raises(
            ArtefactError, match="its replacement was interrupted and cannot be finished: Read-only file system"
        ):
            l2c_export.load(copy)
    assert store.read(copy) == store.read(other), "who can write finishes it"
    assert tree(copy) == tree(other)


@pytest.fixture
def disk(monkeypatch):
    """What is moved where, and which file's bytes or folder's names are waited for, in order."""
    events: list[tuple[str, Path]] = []

    def noted(kind, act):
        return lambda *paths: (events.append((kind, Path(paths[-1]))), act(*paths))[1]

    sync = noted("sync", files.sync)
    for module, name, act in (
        (os, "rename", noted("move", os.rename)),
        (os, "replace", noted("move", os.replace)),
        (files, "sync", sync),
        (staging, "sync", sync),
    ):
        monkeypatch.setattr(module, name, act)
    return events


def test_everything_is_on_the_disk_before_the_artefact_changes(copy, other, disk):
    export(copy, other)
    before = {path.name for _, path in disk[: disk.index(("move", copy / staging.READY))]}
    assert {Path(name).name for name in tree(other)} <= before
    assert {"segments", "extra"} <= before


def test_the_change_is_on_the_disk_before_the_old_files_go(copy, other, disk):
    export(copy, other)
    assert disk[disk.index(("move", copy / staging.READY)) + 1] == ("sync", copy)


def test_the_names_of_all_files_are_on_the_disk_before_the_manifest_lists_them(copy, other, disk):
    export(copy, other)
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


# one writer at a time


def test_the_second_writer_waits_and_says_so(copy, other, tmp_path):
    said, order = [], []
    with staging.changed(copy) as stage:
        second = threading.Thread(target=lambda: (bind(copy, "random:4", said.append), order.append("second")))
        second.start()
        deadline = time.monotonic() + 100
        while not said and time.monotonic() < deadline:
            time.sleep(0.01)
        order.append("first")
        shutil.copytree(other, stage, dirs_exist_ok=True)
    second.join(100)
    assert said == [f"{copy}: another process is writing here: waiting for it"]
    assert order == ["first", "second"]
    assert store.read(copy).weights.random == 4
    assert set(store.read(copy).files) == set(store.read(other).files), "it changed what the first has made"


@needs_fork
def test_a_writer_that_died_blocks_nobody(copy):
    ready, go = os.pipe()
    child = os.fork()
    if not child:
        with staging.changed(copy):
            os.write(go, b"x")
            time.sleep(60)
        os._exit(0)
    assert os.read(ready, 1) == b"x"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    said = []
    bind(copy, "random:4", said.append)
    assert not said
    assert not list(copy.glob(".l2c*")), "and what it left is gone"


def test_a_folder_that_vanishes_while_one_waits_for_it_is_made_again(tmp_path, other):
    folder, done = tmp_path / "out", []
    with contextlib.suppress(ZeroDivisionError), staging.staged(folder):
        waiting = threading.Thread(target=lambda: (export(folder, other), done.append(1)))
        waiting.start()
        time.sleep(0.2)
        1 / 0  # noqa: B018  (the first writer fails, and removes the folder that it made)
    waiting.join(100)
    assert done
    assert tree(folder) == tree(other)


def test_without_locks_one_still_writes(copy, monkeypatch):
    monkeypatch.setattr(files, "fcntl", None)
    (copy / ".l2c-partial-of-somebody").mkdir()
    bind(copy, "random:4")
    assert store.read(copy).weights.random == 4
    assert (copy / ".l2c-partial-of-somebody").exists(), "perhaps he is still at it"


def test_who_loads_while_the_artefact_is_replaced_is_told(copy, other, monkeypatch):
    opened = pipeline.open_backend

    def meanwhile(*given):
        export(copy, other)
        return opened(*given)

    monkeypatch.setattr(pipeline, "open_backend", meanwhile)
    with pytest.raises(ArtefactError, match="was replaced since it was loaded: load it again"):
        l2c_export.load(copy)


def test_who_reads_while_the_artefact_is_replaced_sees_the_new_one(copy, other, monkeypatch):
    verify, done = integrity.check_file, []

    def meanwhile(*given):
        if not done:
            done.append(export(copy, other))
        verify(*given)

    monkeypatch.setattr(integrity, "_verify", meanwhile)
    assert store.read(copy) == store.read(other)


def test_what_is_parsed_is_what_was_hashed(copy, monkeypatch):
    """A file that changes between the check and its use is refused by the second look at the same bytes."""
    from l2c_export.runtime import program

    load_program = program.load_program

    def swapped(folder, manifest, backend, link):
        segment = folder / next(iter(manifest.segments.values())).file
        segment.write_bytes(segment.read_bytes()[:-1] + b"\0")
        return load_program(folder, manifest, backend, link)

    monkeypatch.setattr(program, "load_program", swapped)
    with pytest.raises(ArtefactError, match="does not match its hash"):
        l2c_export.load(copy)


# the cache


def test_what_was_made_is_kept_under_its_key(empty_cache):
    made = []

    def make():
        made.append(1)
        return b"engine"

    assert [cache.cached("plans", key, make) for key in (["a", 1], ["a", 1], ["a", 2])] == [b"engine"] * 3
    assert len(made) == 2


@pytest.mark.parametrize("damage", [lambda d: d[:-1], lambda d: d[:5], lambda d: b"", lambda d: d[:40] + b"X" + d[41:]])
def test_a_damaged_entry_is_made_again(empty_cache, damage):
    data = bytes(range(100))
    cache.cached("plans", "k", lambda: data)
    (path,) = (empty_cache / "plans").iterdir()
    path.write_bytes(damage(path.read_bytes()))
    assert cache.cached("plans", "k", lambda: data) == data
    assert cache.cached("plans", "k", lambda: b"not again") == data


def test_the_cache_has_a_bound_and_what_was_used_last_stays(empty_cache, monkeypatch):
    monkeypatch.setattr(cache, "LIMIT", 350)
    for n, key in enumerate("abc"):
        cache.cached("plans", key, lambda: bytes(68))
        path = next(p for p in (empty_cache / "plans").iterdir() if p.stat().st_mtime > 10**6)
        os.utime(path, (n, n))
    cache.cached("plans", "a", bytes)  # used
    cache.cached("plans", "d", lambda: bytes(68))
    cache.cached("plans", "e", lambda: bytes(68))
    made = []
    for key in "ade":
        cache.cached("plans", key, lambda: (made.append(1), bytes(68))[1])
    assert not made, "b went, then c"
    assert sum(entry.bytes for entry in cache.entries()) == 300


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("L2C_CACHE", str(tmp_path / "file"))
    assert cache.cached("plans", "k", lambda: b"made") == b"made"
    assert not list(cache.entries())
    assert cache.prune(0) == []


def test_a_cache_that_cannot_be_read_costs_time_only(empty_cache, monkeypatch):
    """As where a container's user has the home folder of root."""

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "rglob", refuse)
    assert cache.cached("plans", "k", lambda: b"made") == b"made"
    assert not list(cache.entries())


def test_a_compiled_model_that_was_damaged_is_compiled_again(empty_cache):
    """OpenVINO itself would run it."""
    with l2c_export.load(GOLDEN, "openvino") as pipe:
        wanted = latents(pipe)
    entries = list((empty_cache / "openvino").iterdir())
    for path in entries:
        data = bytearray(path.read_bytes())
        data[-len(data) // 3] ^= 1
        path.write_bytes(data)
    with l2c_export.load(GOLDEN, "openvino") as pipe:
        assert np.array_equal(latents(pipe), wanted)
    assert len(entries) == len(store.read(GOLDEN).segments)


def test_an_interrupted_build_goes_on_where_it_was(copy, empty_cache, monkeypatch):
    pytest.importorskip("tensorrt_rtx")
    build, built = Builder.build, []

    def counted(self, *given):
        if len(built) == 4:
            built.append("interrupt")
            raise KeyboardInterrupt
        built.append(build(self, *given))
        return built[-1]

    monkeypatch.setattr(Builder, "build", counted)
    with pytest.raises(KeyboardInterrupt):
        builds.build(copy, "tensorrt-rtx", BuildSettings(targets=("sm86",)))
    assert store.read(copy) == store.read(GOLDEN)
    assert not list(copy.glob(".l2c*"))
    made = builds.build(copy, "tensorrt-rtx", BuildSettings(targets=("sm86",)))
    assert len(built) == units.count(made) + 1, "the first four were not built again"
    before = len(built)
    builds.build(copy, "tensorrt-rtx", BuildSettings(targets=("sm86",), level=1))
    assert len(built) == 2 * before - 1, "other settings are other engines"


def test_the_command_shows_and_empties_the_cache(empty_cache):
    from click.testing import CliRunner

    from l2c_export.cli.main import l2c

    cache.cached("segments", "k", lambda: bytes(2**20))
    shown = CliRunner().invoke(l2c, ["cache", "--json"])
    kinds = msgspec.json.decode(shown.stdout)["kinds"]
    assert kinds == {"segments": {"entries": 1, "bytes": 2**20 + 32}}
    assert "segments" in CliRunner().invoke(l2c, ["cache"]).stdout
    done = CliRunner().invoke(l2c, ["cache", "--prune"])
    assert done.stderr == "removed 1 entry, 1.0 MB\n"
    assert not list(cache.entries())


# files that are whole or absent


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "x.npy"
    images.Output(np.zeros(3)).save(path)
    before = path.read_bytes()

    def half():
        with files.replacing(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half()
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["x.npy"]


def test_the_name_of_a_new_file_is_on_the_disk_too(tmp_path, disk):
    files.write(tmp_path / "x", b"1")
    assert disk == [("move", tmp_path / "x"), ("sync", tmp_path)]


def test_a_small_file_may_be_as_large_as_allowed_and_no_larger(tmp_path):
    (tmp_path / "x").write_bytes(b"12345")
    assert files.small(tmp_path / "x", 5) == b"12345"
    with pytest.raises(OSError, match="it has more than"):
        files.small(tmp_path / "x", 4)


def test_latents_that_do_not_fit_on_the_disk_leave_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.npy"
    images.Output(np.zeros(3)).save(path)
    before = tree(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda _: no_space())
    with pytest.raises(RunError, match=r"x\.npy': cannot be written: No space left on device"):
        images.Output(np.ones(3)).save(path)
    assert tree(tmp_path) == before


# long runs


@pytest.fixture
def pipe():
    with l2c_export.load(GOLDEN) as loaded:
        yield loaded


def latents(pipe, seed: int = 0) -> np.ndarray:
    return pipe([0, 1], 2.0, seed=seed).latents


def test_threads_take_turns_and_get_what_one_alone_gets(pipe):
    serial = [latents(pipe, seed) for seed in range(40)]
    found: dict[int, np.ndarray] = {}

    def work(first: int) -> None:
        for seed in range(first, 40, 8):
            found[seed] = latents(pipe, seed)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(600)
    assert all(np.array_equal(found[seed], serial[seed]) for seed in range(40))


def test_a_generation_inside_a_generation_is_an_error(pipe):
    wanted = latents(pipe)

    def again(pipe, step, timestep, given):
        return {"latents": latents(pipe)}

    with pytest.raises(RunError, match="in the middle of a generation: end it first, or load a second pipeline"):
        pipe([0, 1], 2.0, callback_on_step_end=again)
    stepwise = pipe.steps([0, 1], 2.0, pipe.noise(2, 0))
    next(stepwise)
    for act in (lambda: latents(pipe), lambda: next(pipe.steps([0], None, pipe.noise(1, 0))), pipe.close):
        with pytest.raises(RunError, match="in the middle of a generation"):
            act()
    stepwise.close()
    assert np.array_equal(latents(pipe), wanted)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, MemoryError, RunError, SystemExit, StopIteration])
def test_after_an_error_in_a_callback_the_pipeline_is_as_before(pipe, error):
    wanted = latents(pipe)

    def fail(pipe, step, *_):
        if step == 1:
            raise error

    with pytest.raises((error, RunError)):
        pipe([0, 1], 2.0, seed=3, callback_on_step_end=fail)
    assert np.array_equal(latents(pipe), wanted)


def test_a_cancelled_generation_leaves_the_pipeline_as_before(pipe):
    wanted = latents(pipe)
    for steps in range(1, 4):
        stepwise = pipe.steps([0, 1], 2.0, pipe.noise(2, 9))
        for _ in range(steps):
            next(stepwise)
        stepwise.close()
        assert np.array_equal(latents(pipe), wanted)
    for _ in pipe.steps([0, 1], 2.0, pipe.noise(2, 9)):
        break
    assert np.array_equal(latents(pipe), wanted)


@pytest.mark.parametrize("place", ["a buffer", "the loop", "an engine"])
def test_without_memory_a_generation_fails_and_the_next_one_does_not(pipe, monkeypatch, place):
    wanted = latents(pipe)

    def fail(*_):
        raise MemoryError

    with monkeypatch.context() as patched:
        if place == "a buffer":
            patched.setattr(type(pipe._program.backend.memory), "empty", fail)
        elif place == "the loop":
            patched.setattr(loop.Loop, "bound", fail)
        else:
            engine = next(iter(pipe._program.engines.values()))
            patched.setattr(type(engine), "bind", fail)
        with pytest.raises(RunError, match="out of memory: generate fewer images at once"):
            pipe([0])  # a batch size that is new, so that buffers are made
    assert np.array_equal(latents(pipe), wanted)


def test_more_memory_than_the_machine_has_is_refused_before_it_is_taken(pipe):
    with pytest.raises(RunError, match="MB are needed at once, the machine has"):
        pipe._program.backend.memory.empty((2**20, 2**20), "float32")


def test_a_closed_pipeline_says_so_and_has_let_go_of_everything(copy):
    def mapped() -> bool:
        return str(copy) in Path("/proc/self/maps").read_text()

    with l2c_export.load(copy) as pipe:
        latents(pipe)
        if sys.platform == "linux":
            assert mapped()
    for act in (lambda: latents(pipe), lambda: next(pipe.steps([0], None, pipe.noise(1, 0)))):
        with pytest.raises(RunError, match="this pipeline is closed: load the artefact again"):
            act()
    pipe.close()
    assert pipe.manifest.batch == 2
    if sys.platform == "linux":
        assert not mapped(), "the weights are not mapped any more"


def test_closing_waits_for_the_generation_that_runs(pipe):
    stepwise, closed = pipe.steps([0, 1], 2.0, pipe.noise(2, 0)), []
    next(stepwise)
    closing = threading.Thread(target=lambda: (pipe.close(), closed.append(1)))
    closing.start()
    closing.join(0.2)
    assert not closed
    *_, last = stepwise
    closing.join(100)
    assert closed
    assert np.isfinite(last.x).all()


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_stays_flat(pipe):
    for seed in range(50):
        latents(pipe, seed)
    before = resident()
    for seed in range(150):
        latents(pipe, seed)
        with contextlib.closing(pipe.steps([0], None, pipe.noise(1, seed))) as stepwise:
            next(stepwise)  # another batch size, and cancelled
    assert resident() <= 1.01 * before


def test_a_file_is_whole_or_absent_and_a_pipe_is_written_to(tmp_path):
    files.write(tmp_path / "x", b"1")
    assert (tmp_path / "x").read_bytes() == b"1"
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    files.check_place(tmp_path / "pipe")
    files.write(tmp_path / "pipe", b"2")
    assert os.read(reader, 9) == b"2"
    os.close(reader)
    with pytest.raises(RunError, match=r"out='.*/no/x': cannot be written: No such file or directory: choose another file"):
        files.write(tmp_path / "no" / "x", b"3", "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pipe", "x"]
