"""A Triton server of the wheel nvidia-pytriton, which needs no GPU, over a model repository."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class Server(NamedTuple):
    http: str  # host:port
    grpc: str
    log: Path


def binaries() -> Path | None:
    """The folder of the server, None where there is none."""
    spec = importlib.util.find_spec("pytriton")
    place = Path(spec.submodule_search_locations[0]) / "tritonserver" if spec else None
    stub = f"python_backend_stubs/{sys.version_info[0]}.{sys.version_info[1]}/triton_python_backend_stub"
    return place if place and (place / stub).is_file() else None


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def serving(models: Path, folder: Path) -> Iterator[Server]:
    """A server over the repository `models`, when all that can be loaded is; `folder` is for its files."""
    place, backend = binaries(), folder / "backends" / "python"
    assert place
    backend.mkdir(parents=True)
    stub = place / f"python_backend_stubs/{sys.version_info[0]}.{sys.version_info[1]}/triton_python_backend_stub"
    for file in (*(place / "backends/python").iterdir(), stub):
        (backend / file.name).symlink_to(file)
    ports = [free_port() for _ in range(3)]
    words = [
        place / "bin/tritonserver", "--model-repository", models, "--backend-directory", folder / "backends",
        *(f"--{kind}-address=127.0.0.1" for kind in ("http", "grpc", "metrics")),
        *(f"--{kind}-port={port}" for kind, port in zip(("http", "grpc", "metrics"), ports, strict=True)),
        "--exit-on-error=false", "--disable-auto-complete-config", "--exit-timeout-secs=5",
    ]  # fmt: skip
    # its Python is that of the first python3 in the path
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    log = folder / "server.log"
    with open(log, "wb") as out:
        process = subprocess.Popen(list(map(str, words)), stdout=out, stderr=subprocess.STDOUT, env=env)
    try:
        http = f"127.0.0.1:{ports[0]}"
        until(process, f"http://{http}/v2/health/live", log)
        yield Server(http, f"127.0.0.1:{ports[1]}", log)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def until(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Wait for an address; models are loaded before the server listens."""
    for _ in range(600):
        with contextlib.suppress(OSError), urllib.request.urlopen(url):
            return
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    raise AssertionError(log.read_text())
