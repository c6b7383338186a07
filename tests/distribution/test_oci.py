"""To a registry of containers and back, over HTTP, with everything that goes wrong on the way."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import urllib.request

import pytest
from click.testing import CliRunner
from distribution.servers import Containers, Fault, serving
from folders import GOLDEN, tree
from recorded import ROOT

from l2c_export.artefact import store
from l2c_export.cli.main import l2c
from l2c_export.compiler.link import bind
from l2c_export.errors import ArtefactError, L2CError, RunError, UsageError

pytest.importorskip("httpx", reason="no httpx here: pip install 'l2c-export[registry]'")

from l2c_export.distribution import oci
from l2c_export.distribution.address import address_of
from l2c_export.distribution.http import Session
from l2c_export.distribution.transfer import pull, push

BLOB, UPLOAD, MANIFEST = r"/blobs/sha256:", r"/blobs/uploads/", r"/manifests/"
FILES = store.read(GOLDEN).files
TOTAL = sum(info.bytes for info in FILES.values()) + (GOLDEN / "manifest.json").stat().st_size
LARGE = max(FILES, key=lambda name: FILES[name].bytes)
INDEX = b'{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []}'


@pytest.fixture
def registry():
    with serving(Containers) as state:
        yield state


@pytest.fixture
def address(registry):
    return f"oci://{registry.host}/team/digits:v1"


@pytest.fixture
def pushed(registry, address):
    """The golden artefact is there; the registry's log is empty."""
    result = push(GOLDEN, address)
    registry.asked.clear()
    registry.sent = registry.received = 0
    return result


def by_the_specification(url, reference):
    """The files of an image, as any tool reads them: by their titles."""
    root = f"{url}/v2/team/digits"
    with urllib.request.urlopen(f"{root}/manifests/{reference}") as answer:
        image = json.load(answer)
    files = {}
    for name, blob in (("manifest.json", image["config"]), *((b["annotations"][oci.TITLE], b) for b in image["layers"])):
        with urllib.request.urlopen(f"{root}/blobs/{blob['digest']}") as answer:
            files[name] = answer.read()
        assert blob["size"] == len(files[name])
        assert blob["digest"] == f"sha256:{hashlib.sha256(files[name]).hexdigest()}"
    return image, files


# there


def test_every_file_is_a_blob_by_the_manifests_own_digest(registry, address):
    result = push(GOLDEN, address)
    asked = list(registry.asked)
    image, files = by_the_specification(registry.url, "v1")
    assert files == tree(GOLDEN)
    assert {b["annotations"][oci.TITLE]: b["digest"] for b in image["layers"]} == {
        name: f"sha256:{info.sha256}" for name, info in FILES.items()
    }
    assert image["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert image["artifactType"].startswith("application/vnd.l2c-export")
    digest = hashlib.sha256(registry.manifests["v1"]).hexdigest()
    assert result.address == f"oci://{registry.host}/team/digits@sha256:{digest}"
    assert (result.files, result.bytes_sent) == (len(FILES), sum(info.bytes for info in FILES.values()))
    assert registry.uploads == {}
    assert asked[-1] == ("PUT", "/v2/team/digits/manifests/v1"), "last, when all that it names is there"
    assert len([method for method, _ in asked if method == "PUT"]) == len(registry.blobs) + 1


def test_what_is_there_is_not_sent_again(registry, address, pushed, copy):
    assert (push(GOLDEN, address).sent, registry.received) == (0, 0)
    bind(copy, "random:9")
    changed = [name for name, info in store.read(copy).files.items() if FILES[name] != info]
    result = push(copy, address.replace("v1", "v2"))
    assert 0 < result.sent == len(changed) < len(FILES)
    assert by_the_specification(registry.url, "v2")[1] == tree(copy)
    assert by_the_specification(registry.url, "v1")[1] == tree(GOLDEN)


def test_a_damaged_artefact_is_not_sent(registry, address, copy):
    (copy / LARGE).write_bytes(b"x" * FILES[LARGE].bytes)
    with pytest.raises(ArtefactError, match="does not match its hash"):
        push(copy, address)
    assert registry.asked == []


def test_a_large_file_goes_in_pieces(registry, address, monkeypatch):
    monkeypatch.setattr(oci, "CHUNK", 4000)
    push(GOLDEN, address)
    assert len(registry.of("PATCH")) == sum(
        -(-i.bytes // 4000) for i in {i.sha256: i for i in FILES.values()}.values() if i.bytes > 4000
    )
    assert by_the_specification(registry.url, "v1")[1] == tree(GOLDEN)


@pytest.mark.parametrize(("what", "after"), [("drop", 1500), ("drop", 0), ("lost", 0), (500, 0), (429, 0)])
def test_a_piece_that_is_lost_costs_a_piece(registry, address, monkeypatch, what, after):
    monkeypatch.setattr(oci, "CHUNK", 4000)
    registry.faults = [Fault("PATCH", UPLOAD, what, after=after)]
    push(GOLDEN, address)
    assert len(registry.of("GET", UPLOAD)) == 1
    assert registry.received <= TOTAL + 4000
    assert by_the_specification(registry.url, "v1")[1] == tree(GOLDEN)


@pytest.mark.parametrize("fault", [
    Fault("POST", UPLOAD, "drop"), Fault("POST", UPLOAD, "lost"), Fault("POST", UPLOAD, 503, 4),
    Fault("PUT", UPLOAD, "drop", after=7), Fault("PUT", UPLOAD, "lost"), Fault("PUT", UPLOAD, 500, 3), Fault("HEAD", BLOB, 502),
    Fault("HEAD", BLOB, "lost"), Fault("PUT", MANIFEST, "lost"), Fault("PUT", MANIFEST, 504),
], ids=str)  # fmt: skip
@pytest.mark.parametrize("chunk", [2000, 2**30])
def test_a_connection_that_breaks_is_tried_again(registry, address, monkeypatch, fault, chunk):
    monkeypatch.setattr(oci, "CHUNK", chunk)
    registry.faults = [Fault(fault.method, fault.path, fault.what, fault.times, fault.after)]
    push(GOLDEN, address)
    assert registry.faults[0].times == 0
    assert by_the_specification(registry.url, "v1")[1] == tree(GOLDEN)


@pytest.mark.parametrize("chunk", [2000, 2**30])
def test_a_file_whose_last_answer_was_lost_is_not_sent_again(registry, address, monkeypatch, chunk):
    monkeypatch.setattr(oci, "CHUNK", chunk)
    registry.faults = [Fault("PUT", UPLOAD, "lost", 2)]
    push(GOLDEN, address)
    assert registry.received <= TOTAL


@pytest.mark.parametrize("what", ["drop", 500])
def test_one_that_stays_broken_is_one_error_and_the_same_command_goes_on(registry, address, what):
    push_of = sorted({info.sha256 for info in FILES.values()})
    registry.faults = [Fault("PUT", UPLOAD, "never", 3), Fault("PUT", UPLOAD, what, 10**6)]
    with pytest.raises(RunError, match=rf"^{address}: .* \(5 times\): check the network, and give the same command again$"):
        push(GOLDEN, address)
    assert registry.manifests == {}
    there = len(registry.blobs)
    assert there == 3
    registry.faults = []
    assert push(GOLDEN, address).sent == len(push_of) - there or len(FILES) != len(push_of)
    assert by_the_specification(registry.url, "v1")[1] == tree(GOLDEN)


def test_what_a_registry_refuses_is_said_in_its_words(registry, address):
    registry.faults = [Fault("PUT", MANIFEST, 413)]
    with pytest.raises(RunError, match=rf"^{address}: {registry.host} answers 413, so it is$"):
        push(GOLDEN, address)
    with pytest.raises(
        RunError, match=rf"{registry.host} has nothing there \(404, repository name not known\): check the addr"
    ):
        push(GOLDEN, address.replace("digits", "letters"))


# back


def test_an_artefact_comes_back_by_tag_and_by_digest(registry, address, pushed, tmp_path):
    for source, name in ((address, "a"), (pushed.address, "b"), (f"{address}@{pushed.address.partition('@')[2]}", "c")):
        pulled = pull(tmp_path / name, source)
        assert tree(tmp_path / name) == tree(GOLDEN)
        assert (os.fspath(pulled), pulled.fetched) == (str(tmp_path / name), len(FILES))


def test_latest_is_what_is_meant_without_a_tag(registry, tmp_path):
    push(GOLDEN, f"oci://{registry.host}/team/digits")
    assert next(iter(registry.manifests)) == "latest"
    pull(tmp_path / "a", f"oci://{registry.host}/team/digits")
    assert tree(tmp_path / "a") == tree(GOLDEN)


def test_only_what_the_folder_has_not_is_fetched(registry, address, copy, other):
    bind(copy, "random:9")
    (copy / "README.md").write_text("mine")
    push(GOLDEN, address)
    present = {info.sha256 for info in store.read(copy).files.values()}
    registry.asked.clear()
    pull(copy, address)
    lacking = [info for info in FILES.values() if info.sha256 not in present]
    assert 0 < len(registry.of("GET", BLOB)) == len(lacking) + 1 < len(FILES)  # and manifest.json
    assert tree(copy) == {**tree(GOLDEN), "README.md": b"mine"}
    pull(other, address)
    assert tree(other) == tree(GOLDEN), "what only the old artefact had is gone"


def test_what_is_damaged_here_is_fetched(registry, address, pushed, copy):
    (copy / LARGE).write_bytes(b"x" * FILES[LARGE].bytes)
    pull(copy, address)
    assert tree(copy) == tree(GOLDEN)


def test_a_download_goes_on_where_it_broke(registry, address, pushed, tmp_path):
    digest = FILES[LARGE].sha256
    registry.faults = [Fault("GET", digest, "drop", after=3000), Fault("GET", digest, "drop", after=500)]
    pull(tmp_path / "a", address)
    assert tree(tmp_path / "a") == tree(GOLDEN)
    assert len(registry.of("GET", digest)) == 3
    assert registry.sent - TOTAL < 2 * FILES[LARGE].bytes


@pytest.mark.parametrize("fault", [
    Fault("GET", MANIFEST, "drop", after=9), Fault("GET", MANIFEST, 500, 4), Fault("GET", BLOB, "lost", 3),
    Fault("GET", BLOB, 429), Fault("GET", FILES[LARGE].sha256, "drop", 12, after=1000),
], ids=str)  # fmt: skip
def test_a_connection_that_breaks_on_the_way_back_is_tried_again(registry, address, pushed, tmp_path, fault):
    registry.faults = [Fault(fault.method, fault.path, fault.what, fault.times, fault.after)]
    pull(tmp_path / "a", address)
    assert tree(tmp_path / "a") == tree(GOLDEN)


CUT, LONGER, OTHER = (lambda d: d[:-1]), (lambda d: d + b"x"), (lambda d: bytes([d[0] ^ 1]) + d[1:])


@pytest.mark.parametrize("existed", [True, False])
@pytest.mark.parametrize(("fault", "words"), [
    (Fault("GET", FILES[LARGE].sha256, OTHER, 99), rf"{LARGE} is not what its digest says: nothing was changed"),
    (Fault("GET", FILES[LARGE].sha256, LONGER, 99), rf"{LARGE} is not what its digest says"),
    (Fault("GET", FILES[LARGE].sha256, CUT, 99), rf"{LARGE}: .* ended after {FILES[LARGE].bytes - 1} of \d+ bytes"),
    (Fault("GET", FILES[LARGE].sha256, "drop", 99), r"the connection to .* failed: .* \(5 times\): check the network"),
    (Fault("GET", FILES[LARGE].sha256, 404), r"has nothing there \(404, so it is\): check the address"),
    (Fault("GET", BLOB, OTHER), r"manifest.json is not what its digest says"),
    (Fault("GET", MANIFEST, OTHER), r"is no image manifest of one artefact"),
    (Fault("GET", MANIFEST, lambda d: INDEX), r"is no image manifest of one artefact"),
    (Fault("GET", MANIFEST, lambda d: b" " * (2**22 + 1)), r"/manifests/v1 has more than 4194304 bytes"),
    (Fault("GET", MANIFEST, lambda d: d.replace(b"vnd.l2c-export.manifest+json", b"vnd.oci.image.config.v1+json")),
     r"holds application/vnd.oci.image.config.v1\+json, no artefact of l2c-export"),
])  # fmt: skip
def test_what_is_wrong_is_one_line_and_nothing_has_changed(
    registry, address, pushed, other, tmp_path, unchanged, existed, fault, words
):
    folder = other if existed else tmp_path / "new"
    look = unchanged(folder)
    registry.faults = [Fault(fault.method, fault.path, fault.what, fault.times, fault.after)]
    with pytest.raises(L2CError, match=words) as caught:
        pull(folder, address)
    assert str(caught.value).startswith(address)
    look()


def test_a_digest_means_one_artefact_for_ever(registry, address, pushed, copy, tmp_path, unchanged):
    bind(copy, "random:9")
    push(copy, address)  # the tag moves
    digest = pushed.address.partition("@")[2]
    registry.manifests[digest] = registry.manifests["v1"]
    look = unchanged(tmp_path / "a")
    with pytest.raises(ArtefactError, match="the image manifest is not what its digest says"):
        pull(tmp_path / "a", pushed.address)
    look()


def test_a_blob_without_an_end_does_not_fill_the_disk(registry, address, pushed, tmp_path, unchanged):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    registry.faults = [Fault("GET", FILES[LARGE].sha256, lambda d: d + bytes(8 * 2**20), 99)]
    look = unchanged(tmp_path / "a")
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
    try:
        with pytest.raises(ArtefactError, match=rf"{LARGE} is not what its digest says"):
            pull(tmp_path / "a", address)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    look()


def test_killed_in_the_middle_the_old_artefact_is_there_and_the_same_command_goes_on(registry, address, pushed, copy):
    bind(copy, "random:9")
    before = tree(copy)
    registry.faults = [Fault("GET", FILES[LARGE].sha256, "stall", after=3000)]
    command = [sys.executable, "-m", "l2c_export", "pull", str(copy), address]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL)
    assert registry.stalled.wait(60)
    process.kill()
    process.wait()
    registry.go_on.set()
    assert {name: data for name, data in tree(copy).items() if not name.startswith(".l2c-partial-")} == before
    assert store.read(copy).denoiser.weights.random == 9
    pull(copy, address)
    assert tree(copy) == tree(GOLDEN)


def test_a_full_disk_is_one_line_and_nothing_is_left(registry, address, pushed, tmp_path, unchanged):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    look = unchanged(tmp_path / "a")
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILES[LARGE].bytes // 2, hard))
    try:
        with pytest.raises(ArtefactError, match=rf"^{tmp_path / 'a'}: cannot be written: File too large"):
            pull(tmp_path / "a", address)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    look()


def test_a_folder_of_others_is_not_touched(registry, address, pushed, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.tex").write_text("my only copy")
    with pytest.raises(ArtefactError, match=rf"^{tmp_path / 'a'}: holds thesis.tex, which is not ours"):
        pull(tmp_path / "a", address)
    assert registry.asked == []


# engines are programs


@pytest.fixture
def built(copy):
    """An artefact with an engine for a GPU."""
    import msgspec

    from l2c_export.artefact import integrity
    from l2c_export.artefact.records import FILE, Build

    manifest = store.read(copy)
    (copy / "tensorrt-10-sm90").mkdir()
    engines = {name: f"tensorrt-10-sm90/{n}.plan" for n, name in enumerate(manifest.denoiser.segments)}
    for name in engines.values():
        (copy / name).write_bytes(b"plan" + name.encode())
    build = Build(backend="tensorrt", version="10.0", targets=("sm90",), images=(1, 1, 1), level=None, version_compatible=False,
                  hardware_compatible=False, engines=engines)  # fmt: skip
    files = {**manifest.files, **{name: integrity.info(copy / name) for name in engines.values()}}
    store.write_json(copy / FILE, msgspec.structs.replace(manifest, files=files, builds={"tensorrt-10-sm90": build}))
    return copy


def test_engines_for_gpus_are_refused_before_anything_is_fetched(registry, address, built, tmp_path, unchanged):
    push(built, address)
    registry.asked.clear()
    look = unchanged(tmp_path / "a")
    with pytest.raises(
        UsageError, match=r"holds engines for GPUs \(tensorrt-10-sm90\), which are programs: .* trust_engines=True"
    ):
        pull(tmp_path / "a", address)
    look()
    assert len(registry.of("GET", BLOB)) == 1
    pull(tmp_path / "a", address, trust_engines=True)
    assert tree(tmp_path / "a") == tree(built)


def test_no_name_leads_out_of_the_folder(registry, address, copy, tmp_path):
    """A manifest that was signed again, by somebody who means harm."""
    import msgspec

    from l2c_export.artefact.records import FILE

    manifest = store.read(copy)
    for name in ("../evil", "/tmp/evil", "segments/../../evil", "manifest.json", ".gitignore", "README.md"):
        files = {**manifest.files, name: manifest.files[LARGE]}
        store.write_json(copy / FILE, msgspec.structs.replace(manifest, files=files))
        data = (copy / FILE).read_bytes()
        place = oci.Repository(address_of(address), False)
        for path in (copy / n for n in manifest.files):
            place.send(path.name, path, manifest.files[path.relative_to(copy).as_posix()])
        place.publish(data, msgspec.structs.replace(manifest, files=manifest.files))
        place.close()
        with pytest.raises(ArtefactError):
            pull(tmp_path / "a", address)
        assert not (tmp_path / "a").exists()
        assert not (tmp_path / "evil").exists()


# who we are


def login(tmp_path, host, user, **more):
    (tmp_path / "docker").mkdir(exist_ok=True)
    auths = {"auths": {host: {"auth": base64.b64encode(user.encode()).decode()}}, **more}
    (tmp_path / "docker" / "config.json").write_text(json.dumps(auths))


@pytest.mark.parametrize("basic", [True, False])
def test_a_registry_that_asks_who_we_are(registry, address, tmp_path, basic):
    registry.user, registry.basic = "me:secret:with colon", basic
    words = r"does not let us \(401(, who are you\?|, authentication required)?\): docker login"
    with pytest.raises(RunError, match=words):
        push(GOLDEN, address)
    login(tmp_path, registry.host, "me:wrong")
    with pytest.raises(RunError, match=words):
        push(GOLDEN, address)
    login(tmp_path, registry.host, registry.user)
    push(GOLDEN, address)
    pull(tmp_path / "a", address)
    assert tree(tmp_path / "a") == tree(GOLDEN)
    if not basic:
        assert 1 <= len(registry.of("GET", "/token")) <= 6


def test_a_program_that_keeps_passwords(registry, address, tmp_path, monkeypatch):
    registry.user = "me:secret"
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "docker-credential-vault"
    program.write_text(
        f'#!/bin/sh\nread host; [ "$1 $host" = \'get {registry.host}\' ] && echo \'{{"Username": "me", "Secret": "secret"}}\'\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    login(tmp_path, "elsewhere", "x:y", credHelpers={registry.host: "vault"})
    push(GOLDEN, address)
    assert by_digest(registry)
    login(tmp_path, "elsewhere", "x:y", credHelpers={registry.host: "none"})
    with pytest.raises(RunError, match=r"docker-credential-none has nothing for it: docker login"):
        push(GOLDEN, address)


def by_digest(registry):
    return {key: data for key, data in registry.blobs.items() if key == f"sha256:{hashlib.sha256(data).hexdigest()}"}


def test_a_store_of_another_host_is_not_told_who_we_are(registry, address, tmp_path):
    login(tmp_path, registry.host, "me:secret")
    registry.user = "me:secret"
    push(GOLDEN, address)
    with serving(Containers) as store_:
        store_.blobs, registry.redirect = registry.blobs, store_.url
        pull(tmp_path / "a", address)
        assert tree(tmp_path / "a") == tree(GOLDEN)
        assert len(store_.authorizations) > 3
        assert {told for _, told in store_.authorizations} == {None}


@pytest.mark.parametrize("chunk", [4000, 2**30])
def test_nor_is_one_that_files_are_sent_to(registry, address, tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(oci, "CHUNK", chunk)
    login(tmp_path, registry.host, "me:secret")
    registry.user = "me:secret"
    with serving(Containers) as store_:
        store_.blobs, store_.uploads, registry.store = registry.blobs, registry.uploads, store_.url
        push(GOLDEN, address)
        assert {told for _, told in store_.authorizations} == {None}
    registry.user = None
    assert by_the_specification(registry.url, "v1")[1] == tree(GOLDEN)


def test_nothing_goes_from_tls_to_plain_http():
    import httpx

    session = Session("registry.example", False, "oci://registry.example/a")
    session._refuse_downgrade(httpx.Request("GET", "https://cdn.example/x"))
    with pytest.raises(RunError, match=r"leads to cdn\.example without TLS: do not use it"):
        session._refuse_downgrade(httpx.Request("GET", "http://cdn.example/x"))
    session.close()


def test_a_host_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(RunError, match=r"^oci://127.0.0.1:1/a/b:c: the connection to 127.0.0.1:1 failed: .* \(5 times\)"):
        pull(tmp_path / "a", "oci://127.0.0.1:1/a/b:c")


# the command


def test_the_commands_print_the_lasting_address(registry, address, tmp_path):
    done = CliRunner().invoke(l2c, ["push", str(GOLDEN), address])
    assert done.exit_code == 0, done.stderr
    lasting = done.stdout.strip()
    assert lasting.startswith(f"oci://{registry.host}/team/digits@sha256:")
    done = CliRunner().invoke(l2c, ["pull", str(tmp_path / "a"), lasting, "--json"])
    assert json.loads(done.stdout)["files"] == len(FILES)
    assert tree(tmp_path / "a") == tree(GOLDEN)
    shutil.rmtree(tmp_path / "a")
    registry.faults = [Fault("GET", FILES[LARGE].sha256, OTHER)]
    done = CliRunner().invoke(l2c, ["pull", str(tmp_path / "a"), address])
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1].startswith(f"error: {address}: {LARGE} is not what its digest says")
    assert not (tmp_path / "a").exists()
    done = CliRunner().invoke(l2c, ["pull", str(tmp_path / "a"), "ftp://x"])
    assert done.exit_code == 2
