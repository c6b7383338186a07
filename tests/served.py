"""Servers of the tests: as a process of its own, or in a thread over pipelines that can be held and made to fail."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import httpx
from held import SOON, Held
from recorded import ROOT

from l2c_export.serving.http import server as of_process
from l2c_export.serving.http import shelf as shelves
from l2c_export.serving.http.settings import ServerSettings
from l2c_export.serving.http.shelf import ServedPlace, Shelf

IMAGES = "/v1/images/generations"


class Process:
    """`l2c serve` with these words."""

    def __init__(self, *words, env=None):
        command = [sys.executable, "-m", "l2c_export", "serve", "--port", "0", "--cores", "1", *map(str, words)]
        env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **(env or {})}
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.process.stderr:
            with self._changed:
                self.lines.append(line)
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    def line(self, words, count=1):
        """The line of the log that has these words, when it is there: the `count`th."""

        def matches():
            return [line for line in self.lines if words in line]

        with self._changed:
            assert self._changed.wait_for(lambda: len(matches()) >= count or not self._reader.is_alive(), SOON), self.lines
            assert len(matches()) >= count, self.lines
            return matches()[count - 1]

    def logged(self, message):
        return [
            record
            for record in map(json.loads, (line for line in self.lines if line[0] == "{"))
            if record["message"] == message
        ]

    @property
    def url(self):
        return re.search(r'"url":"([^"]*)"', self.line('"listening"'))[1]

    def __enter__(self):
        self.line('"ready"')
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self._reader.join()
        self.process.stderr.close()
        self.process.stdout.close()

    def stop(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        return self.process.wait(SOON)


@contextlib.contextmanager
def in_thread(folder, monkeypatch, while_loading=None, **settings):
    """A server over a pipeline that can be held; `while_loading` is called with its address before it loads."""
    held: list[Held] = []

    def load(path, **choices):
        if while_loading:
            while_loading(of_process.url_of(listener))
        held.append(Held(original(path, **choices)))
        return held[-1]

    original = shelves.load
    monkeypatch.setattr(shelves, "load", load)
    chosen = ServerSettings(port=0, **settings)
    shelf = Shelf([ServedPlace("model", folder, {"threads": 1})], chosen)
    with of_process.listening(chosen) as listener:
        server = of_process.server_of(shelf, chosen)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
        thread.start()
        until = time.monotonic() + SOON
        while not shelf.ready and time.monotonic() < until:
            time.sleep(0.01)
        try:
            yield Running(of_process.url_of(listener), held, shelf, server)
        finally:
            for gate in held:
                gate.let()
            server.handle_exit(signal.SIGTERM, None)
            thread.join(SOON)
            assert not thread.is_alive()


class Running:
    def __init__(self, url, pipes, shelf, server):
        self.url, self.pipes, self.shelf, self.server = url, pipes, shelf, server
        self.client = httpx.Client(base_url=url, timeout=SOON)

    @property
    def held(self):
        return self.pipes[-1]

    @property
    def engine(self):
        return self.shelf.models["model"].engine

    def ask(self, prompt="1", **more):
        return self.client.post(IMAGES, json={"prompt": prompt, **more})

    def wait_waiting(self, count):
        until = time.monotonic() + SOON
        while self.engine.waiting != count and time.monotonic() < until:
            time.sleep(0.002)
        assert self.engine.waiting == count
