"""To a bucket and back, by Amazon's own client over HTTP."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import pytest
from distribution.servers import Buckets, Fault, serving
from folders import GOLDEN, tree
from recorded import ROOT

from l2c_export.artefact import store
from l2c_export.compiler.link import bind
from l2c_export.errors import L2CError, RunError

pytest.importorskip("boto3", reason="no boto3 here: pip install 'l2c-export[registry]'")

from l2c_export.distribution.transfer import pull, push

FILES = store.read(GOLDEN).files
LARGE = max(FILES, key=lambda name: FILES[name].bytes)
ADDRESS = "s3://team/models/digits"


@pytest.fixture
def bucket(monkeypatch):
    with serving(Buckets) as state:
        own = {"AWS_ENDPOINT_URL": state.url, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y", "AWS_DEFAULT_REGION": "x"}
        for name, value in own.items():
            monkeypatch.setenv(name, value)
        yield state


def test_every_file_is_a_blob_by_the_manifests_own_digest(bucket, tmp_path):
    result = push(GOLDEN, ADDRESS)
    assert bucket.asked[-1][1].startswith("/team/models/digits/manifest.json"), "last, when all that it names is there"
    manifest = (GOLDEN / "manifest.json").read_bytes()
    keys = {f"team/models/digits/blobs/sha256/{info.sha256}": (GOLDEN / name).read_bytes() for name, info in FILES.items()}
    digest = hashlib.sha256(manifest).hexdigest()
    keys |= {f"team/models/digits/{name}": manifest for name in ("manifest.json", f"blobs/sha256/{digest}")}
    assert bucket.blobs == keys
    assert result.address == f"{ADDRESS}@sha256:{digest}"
    bucket.received = 0
    assert (push(GOLDEN, ADDRESS).sent, bucket.received) == (0, 2 * len(manifest))
    pull(tmp_path / "a", ADDRESS)
    assert tree(tmp_path / "a") == tree(GOLDEN)


def test_a_digest_means_one_artefact_for_ever(bucket, copy, tmp_path, unchanged):
    first = push(GOLDEN, ADDRESS)
    bind(copy, "random:9")
    push(copy, ADDRESS)
    pull(tmp_path / "a", ADDRESS)
    assert tree(tmp_path / "a") == tree(copy)
    pull(tmp_path / "a", first.address)
    assert tree(tmp_path / "a") == tree(GOLDEN)
    key = f"team/models/digits/blobs/sha256/{first.address.partition('sha256:')[2]}"
    bucket.blobs[key] = bucket.blobs["team/models/digits/manifest.json"]
    look = unchanged(tmp_path / "a")
    with pytest.raises(L2CError, match=r"manifest.json is not what its digest says"):
        pull(tmp_path / "a", first.address)
    look()


def test_large_files_go_in_parts(bucket, monkeypatch, tmp_path):
    import boto3

    few = boto3.s3.transfer.TransferConfig(multipart_threshold=8000, multipart_chunksize=5 * 2**20)
    monkeypatch.setattr("boto3.s3.transfer.TransferConfig", lambda **_: few)
    push(GOLDEN, ADDRESS)
    assert any("partNumber" in path for path in bucket.of("PUT"))
    pull(tmp_path / "a", ADDRESS)
    assert tree(tmp_path / "a") == tree(GOLDEN)


@pytest.mark.parametrize("fault", [Fault("PUT", "", 500), Fault("PUT", "", "lost"), Fault("HEAD", "", 503)], ids=str)
def test_what_breaks_on_the_way_there_is_tried_again(bucket, fault):
    bucket.faults = [Fault(fault.method, fault.path, fault.what)]
    push(GOLDEN, ADDRESS)
    assert len(bucket.blobs) == len({info.sha256 for info in FILES.values()}) + 2


@pytest.mark.parametrize(("fault", "words"), [
    (Fault("GET", FILES[LARGE].sha256, lambda d: bytes(len(d)), 99), rf"{LARGE} is not what its digest says"),
    (Fault("GET", FILES[LARGE].sha256, 403, 99), r"Forbidden: check the address, the credentials and the network"),
    (Fault("HEAD", FILES[LARGE].sha256, 404, 99), rf"{LARGE} is not there, or of another size"),
    (Fault("GET", "manifest.json", 404, 99), r"Not Found: check the address"),
    (Fault("GET", "manifest.json", lambda d: d.replace(b"0", b"1"), 99), r"does not match its checksum|contradicts"),
])  # fmt: skip
def test_what_is_wrong_is_one_line_and_nothing_has_changed(bucket, copy, unchanged, fault, words):
    push(GOLDEN, ADDRESS)
    bind(copy, "random:9")
    look = unchanged(copy)
    bucket.faults = [Fault(fault.method, fault.path, fault.what, fault.times)]
    with pytest.raises(L2CError, match=words) as caught:
        pull(copy, ADDRESS)
    assert str(caught.value).startswith(ADDRESS)
    look()


def test_a_push_that_is_refused_leaves_the_one_before(bucket, copy, tmp_path):
    push(GOLDEN, ADDRESS)
    bind(copy, "random:9")
    bucket.faults = [Fault("PUT", "blobs/sha256", 403, 99)]
    with pytest.raises(RunError, match=rf"^{ADDRESS}: .*Forbidden"):
        push(copy, ADDRESS)
    bucket.faults = []
    pull(tmp_path / "a", ADDRESS)
    assert tree(tmp_path / "a") == tree(GOLDEN)


def test_without_credentials_it_is_one_line(bucket, monkeypatch, tmp_path):
    """In a process of its own: the library keeps some that it has seen."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "AWS_EC2_METADATA_DISABLED": "true"}
    command = [sys.executable, "-m", "l2c_export", "push", str(GOLDEN), ADDRESS]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: {ADDRESS}: Unable to locate credentials: check the address, the credentials")
    assert len(done.stderr.splitlines()) == 1
