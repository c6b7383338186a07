"""What somebody types."""

from __future__ import annotations

import pytest

from l2c_export.distribution.address import Address, address_of
from l2c_export.distribution.transfer import pull, push
from l2c_export.errors import UsageError

SHA = f"sha256:{'0a' * 32}"


@pytest.mark.parametrize(("text", "parts"), [
    ("oci://ghcr.io/me/dit:v1.0", ("oci", "ghcr.io", "me/dit", "v1.0", None)),
    ("oci://localhost:5000/a", ("oci", "localhost:5000", "a", None, None)),
    ("oci://[::1]:5000/a/b__c/d-e.f", ("oci", "[::1]:5000", "a/b__c/d-e.f", None, None)),
    (f"oci://h/a@{SHA}", ("oci", "h", "a", None, SHA)),
    (f"oci://h/a:t@{SHA}", ("oci", "h", "a", "t", SHA)),
    ("hf://Me-1/DiT_XL.2", ("hf", "Me-1", "DiT_XL.2", None, None)),
    ("hf://me/dit@refs/pr/1", ("hf", "me", "dit", "refs/pr/1", None)),
    ("s3://my.bucket/a/b", ("s3", "my.bucket", "a/b", None, None)),
    (f"s3://bucket/a@{SHA}", ("s3", "bucket", "a", None, SHA)),
])  # fmt: skip
def test_an_address_is_taken_apart_and_said_as_it_was(text, parts):
    address = address_of(text)
    assert tuple(address) == parts
    assert str(address) == text


def test_a_folder_of_a_bucket_may_end_in_a_slash():
    assert address_of("s3://bucket/a/") == Address("s3", "bucket", "a", None, None)


@pytest.mark.parametrize("text", [
    "", "engines", "https://ghcr.io/me/dit", "oci://", "oci://ghcr.io", "oci://ghcr.io/", "oci://ghcr.io/Me/dit", "oci://h/a//b",
    "oci://h/../a", "oci://h/a:", "oci://h/a:b:c", f"oci://h/a@{SHA[:-1]}", f"oci://h/a@{SHA.upper()}", "oci://user:pass@h/a",
    "oci://h/a?x=1", "oci://h:port/a", "hf://dit", "hf://a/b/c", "hf://me/dit@", f"hf://me/dit@{SHA}", "s3://bucket",
    "s3://B/a", "s3://bucket/a?x", "s3://bucket/a@v1", "OCI://h/a", "oci://h/a\n",
])  # fmt: skip
def test_what_is_none_is_one_line(text, tmp_path):
    with pytest.raises(UsageError, match="is no address of an artefact: give one as oci://HOST/REPOSITORY:TAG, hf://"):
        pull(tmp_path / "a", text)


@pytest.mark.parametrize(("host", "near"), [
    ("localhost", True), ("127.0.0.1:5000", True), ("[::1]:1", True), ("127.0.0.1.evil.com", False), ("localhost.evil", False),
])  # fmt: skip
def test_plain_http_is_for_this_machine(host, near):
    assert address_of(f"oci://{host}/a").is_loopback is near


def test_what_does_not_go_together(copy):
    with pytest.raises(UsageError, match="a digest follows from what is pushed: leave it out"):
        push(copy, f"oci://h/a@{SHA}")
    with pytest.raises(UsageError, match=r"plain_http=True: is for a registry of containers"):
        push(copy, "s3://bucket/a", plain_http=True)
