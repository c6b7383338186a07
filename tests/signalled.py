"""A server whose libraries ignore signals while they load ends by one all the same, in a process that they may end, too.

python -X faulthandler tests/signalled.py ENGINES SECONDS
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path

from l2c_export.serving.http import server as of_process
from l2c_export.serving.http import shelf as shelves
from l2c_export.serving.http.settings import ServerSettings


def main(engines: str, seconds: float) -> int:
    """0, or 1 where no signal was heeded in that time."""
    original, late = shelves.load, []

    def load(*args, **choices):
        ctypes.CDLL(None).signal(signal.SIGTERM, 1)  # SIG_IGN, behind Python's back
        return original(*args, **choices)

    def ask_to_end():
        until = time.monotonic() + seconds
        while not server.started or not shelf.ready:
            time.sleep(0.01)
        while not server.should_exit and time.monotonic() < until:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.5)
        late.append(time.monotonic() >= until)
        server.should_exit = True

    shelves.load = load
    settings = ServerSettings(port=0)
    shelf = shelves.Shelf([shelves.ServedPlace("a", Path(engines), {"threads": 1})], settings)
    signal.signal(signal.SIGTERM, lambda *_: None)  # of one that arrives when the server has ended
    with of_process.listening(settings) as listener:
        server = of_process.server_of(shelf, settings)
        thread = threading.Thread(target=ask_to_end)
        thread.start()
        server.run([listener])
        thread.join()
    return int(late != [False])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], float(sys.argv[2])))
