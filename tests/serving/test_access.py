"""Who is let in, and what is let through: names, pages of other sites, keys, bodies, connections."""

from __future__ import annotations

import contextlib
import json
import socket
import time

import httpx
import pytest
from held import SOON
from served import IMAGES, in_thread

pytest.importorskip("fastapi")
pytest.importorskip("PIL.Image")

from l2c_export.errors import UsageError
from l2c_export.serving.http import guard
from l2c_export.serving.http.access import OPEN, Access
from l2c_export.serving.http.answers import Refusal
from l2c_export.serving.http.connection import HEAD_SECONDS
from l2c_export.serving.http.settings import read_keys

HEAD = b"POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
KEY, OTHER = "k" * 32, "a-second-key-of-some-length"


@pytest.fixture(scope="module")
def server(rgb):
    with pytest.MonkeyPatch.context() as patched, in_thread(rgb, patched, hosts=("pictures.example",)) as running:
        yield running


@pytest.fixture(scope="module")
def locked(rgb):
    with pytest.MonkeyPatch.context() as patched, in_thread(rgb, patched, keys=(KEY, OTHER)) as running:
        yield running


# names and pages


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1:8000", "[::1]:8000", "192.168.1.7", "LOCALHOST",
                                  "pictures.example", "pictures.example:443"])  # fmt: skip
def test_the_names_of_this_server(host):
    Access(["pictures.example"], []).check("/", {"host": host})


@pytest.mark.parametrize("host", ["", "evil.example", "localhost.evil.example", "evil.example:8000", "x@localhost",
                                  "localhost:x", "127.0.0.1.evil.example", "[::1", "localhost/", "0x7f.1", "a b"])  # fmt: skip
def test_a_name_that_was_made_to_mean_this_server_is_refused(host):
    with pytest.raises(Refusal, match="Host") as caught:
        Access(["pictures.example"], []).check("/", {"host": host})
    assert caught.value.status == 403


@pytest.mark.parametrize(("origin", "allowed"), [
    ("http://localhost:8000", True), ("https://localhost:8000", True), ("https://pictures.example", True), ("null", False),
    ("http://evil.example", False), ("http://localhost:9000", False), ("http://localhost:8000.evil.example", False),
    ("http://pictures.example", False), ("file://", False), ("chrome-extension://localhost:8000", False), ("", False),
    ("http://[::1", False),
])  # fmt: skip
def test_a_page_of_another_site_may_not_ask(origin, allowed):
    headers = {"host": "localhost:8000", "origin": origin}
    if allowed:
        Access(["pictures.example"], []).check("/", headers)
    else:
        with pytest.raises(Refusal, match="another site"):
            Access(["pictures.example"], []).check("/", headers)


def test_over_http_too(server):
    for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Origin": "null"}):
        answer = server.client.post(IMAGES, json={"prompt": "1"}, headers=headers)
        assert (answer.status_code, answer.json()["error"]["type"]) == (403, "invalid_request_error")
    assert server.client.post(IMAGES, json={"prompt": "1"}, headers={"Origin": server.url}).status_code == 200


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", "application/jsonp"]
)
def test_what_a_form_of_another_site_can_post_is_refused(server, kind):
    answer = server.client.post(IMAGES, content=b'{"prompt": "1"}', headers={"Content-Type": kind})
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_media_type")
    assert server.client.post(
        IMAGES, content=b'{"prompt": "1"}', headers={"Content-Type": "application/json; charset=utf-8"}
    ).is_success


def test_answers_allow_nothing_to_other_sites(server):
    for path in ("/", "/page.js", "/v1/models", "/nothing", "/metrics"):
        headers = server.client.get(path).headers
        assert "access-control-allow-origin" not in headers
        assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
        assert "unsafe" not in headers["content-security-policy"]
        assert (headers["x-content-type-options"], headers["x-frame-options"]) == ("nosniff", "DENY")
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "server" not in headers
    assert server.client.options(IMAGES, headers={"Origin": server.url}).status_code == 405


# keys


def test_a_key_opens_it_and_nothing_else_does(locked):
    for path in ("/v1/models", "/metrics", "/openapi.json", "/v1/models/model/schedule", "/nothing"):
        for headers in ({}, {"Authorization": "Bearer " + "x" * 32}, {"Authorization": f"Basic {KEY}"}, {"Authorization": KEY},
                        {"Authorization": "Bearer"}, {"Authorization": f"Bearer {KEY[:-1]}"}):  # fmt: skip
            answer = locked.client.get(path, headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
            assert answer.headers["www-authenticate"] == "Bearer"
        for key in (KEY, OTHER):
            assert locked.client.get(path, headers={"Authorization": f"Bearer {key}"}).status_code in (200, 404)
    assert locked.ask().status_code == 401
    for path in OPEN:
        assert locked.client.get(path).status_code == 200


def test_every_key_is_compared_and_in_constant_time(monkeypatch):
    import hmac

    compared, original = [], hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: (compared.append((len(a), len(b))), original(a, b))[1])
    access = Access([], [KEY, OTHER, "third" * 5])
    access.check("/v1/models", {"host": "localhost", "authorization": f"Bearer {KEY}"})
    assert compared == [(32, 32)] * 3, "of digests, of equal length, whether it was found or not"


def test_a_file_of_keys(tmp_path):
    file = tmp_path / "keys"
    file.write_text(f"# ours\n{KEY}\n\n  {OTHER}  \n")
    assert read_keys(file) == (KEY, OTHER)
    for text, message in (("", "has 0 keys"), ("short\n", "16 to 512 characters"), ("k" * 600, "16 to 512"),
                          ("two words in a key\n", "without spaces"), ("schl\u00fcssel" * 4, "no text of ASCII")):  # fmt: skip
        file.write_text(text)
        with pytest.raises(UsageError, match=message):
            read_keys(file)
    with pytest.raises(UsageError, match=r"cannot be read \(No such file"):
        read_keys(tmp_path / "absent")


# bounds


def test_a_body_that_is_too_large_is_refused_by_what_it_says_and_by_what_it_sends(server):
    def pieces():
        for _ in range(100):
            yield b" " * 8192

    said = server.client.post(IMAGES, content=b" " * (guard.LARGEST_BODY + 1), headers={"Content-Type": "application/json"})
    sent = server.client.post(IMAGES, content=pieces(), headers={"Content-Type": "application/json"})
    for answer in (said, sent):
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")
    assert server.ask().status_code == 200


def test_a_body_without_an_end_is_cut_off(rgb, monkeypatch):
    from l2c_export.serving.http import server as of_process

    bounded = of_process.bounded_connections
    monkeypatch.setattr(of_process, "bounded_connections", lambda most: bounded(most, head_seconds=0.5))
    with in_thread(rgb, monkeypatch) as server:
        assert cut_off(server, HEAD + b"Content-Length: 9999999\r\n\r\n", b" " * 100)


def cut_off(server, data, more, seconds=5.0):
    """Whether the server ends a connection on which something goes on coming."""
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), seconds) as connection:
        connection.sendall(data)
        try:
            while time.monotonic() - began < seconds:
                connection.sendall(more)
                time.sleep(0.02)
        except ConnectionError:
            return True
    return False


def raw(server, data, wait=SOON):
    """What comes back for bytes."""
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), wait) as connection:
        connection.sendall(data)
        answer = b""
        while part := connection.recv(65536):
            answer += part
        return answer


@pytest.mark.parametrize("data", [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: " + b"y" * 20_000,
    b"POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
])  # fmt: skip
def test_what_is_no_http_is_answered_and_cut_off(server, data):
    head, _, body = raw(server, data).partition(b"\r\n\r\n")
    assert head.startswith((b"HTTP/1.1 400", b"HTTP/1.1 404"))
    assert json.loads(body)["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("body", [
    b"", b"{", b"null", b"[]", b'"x"', b"[" * 60_000, b'{"prompt": NaN}', b'{"prompt": "1", "guidance_scale": NaN}',
    b'{"prompt": "1", "seed": 1e400}', b'{"prompt": "\xff"}', b'{"prompt": "\\ud800"}', b'{"prompt": "1", "prompt": {"a": 1}}',
    b'{"prompt": "1", "n": true}', b'{"prompt": "1", "n": "2"}', b'{"prompt": ' + b"9" * 5000 + b"}",
    b'{"prompt": "1", "size": "\\u0000"}',
])  # fmt: skip
def test_bodies_that_are_no_request(server, body):
    answer = server.client.post(IMAGES, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert "\n" not in answer.json()["error"]["message"]


def test_a_body_that_does_not_come_is_not_waited_for(server, monkeypatch):
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.2)
    assert raw(server, HEAD + b"Content-Length: 50\r\n\r\n{").startswith(b"HTTP/1.1 408")


@contextlib.contextmanager
def bounded(folder, monkeypatch, most, head_seconds):
    """A server of so many connections, and its address."""
    from l2c_export.serving.http import server as of_process

    of_most = of_process.bounded_connections
    monkeypatch.setattr(of_process, "bounded_connections", lambda _: of_most(most, head_seconds=head_seconds))
    with in_thread(folder, monkeypatch) as server:
        yield server, ("127.0.0.1", int(server.url.rpartition(":")[2]))


def half_a_head(address):
    half = socket.create_connection(address, SOON)
    half.sendall(b"GET / HTTP/1.1\r\nHost: loc")
    return half


def test_connections_are_bounded(rgb, monkeypatch):
    """Nobody is closed for their silence here, so that those who hold a place hold it."""
    with bounded(rgb, monkeypatch, 12, 10 * SOON) as (server, address):
        held = [socket.create_connection(address, SOON) for _ in range(10)] + [half_a_head(address)]
        whole = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        assert raw(server, whole).startswith(b"HTTP/1.1 200"), "the twelfth"
        held.append(socket.create_connection(address, SOON))
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{server.url}/health/live", timeout=SOON)
        for connection in held:
            connection.close()
        until = time.monotonic() + SOON
        while time.monotonic() < until:  # the server notices it a little later
            with contextlib.suppress(httpx.TransportError):
                assert server.ask().status_code == 200
                break
            time.sleep(0.05)
        assert server.ask().status_code == 200


def test_silent_connections_are_closed(rgb, monkeypatch):
    """Then their places are free."""
    with bounded(rgb, monkeypatch, 3, 0.2) as (server, address):
        for connection in (*(socket.create_connection(address, SOON) for _ in range(2)), half_a_head(address)):
            assert connection.recv(100) == b"", "closed by the server"
            connection.close()
        assert server.ask().status_code == 200
        began = time.monotonic()
        with half_a_head(address) as connection:
            assert connection.recv(100) == b""
        assert time.monotonic() - began < HEAD_SECONDS


def test_a_connection_that_waits_for_its_image_is_not_cut_off(rgb, monkeypatch):
    from l2c_export.serving.http import server as of_process

    bounded = of_process.bounded_connections
    monkeypatch.setattr(of_process, "bounded_connections", lambda most: bounded(most, head_seconds=0.2))
    with in_thread(rgb, monkeypatch) as server:
        server.held.hold()
        import threading

        threading.Timer(0.6, server.held.let).start()
        assert server.ask().status_code == 200
        assert server.ask().status_code == 200
