"""The server, asked whatever its own description allows and forbids: it answers, as it says, and with no 5xx but 503."""

from __future__ import annotations

import collections
import os
import re
import subprocess
import sys

import httpx
import pytest
from served import Process

pytest.importorskip("schemathesis")
pytest.importorskip("fastapi")
pytest.importorskip("PIL.Image")

KEY = "k" * 32
EXAMPLES = int(os.environ.get("L2C_FUZZ", "4"))  # of an operation, in every phase
NOT_CHECKED = "positive_data_acceptance,unsupported_method"  # only the model knows which steps it has; 405 is OpenAI's body


def test_it_answers_whatever_its_description_makes(rgb, tmp_path):
    (tmp_path / "keys").write_text(KEY)
    with Process(f"small={rgb}", "--api-key-file", tmp_path / "keys", "--max-queue", "1000") as server:
        key = f"Authorization: Bearer {KEY}"
        words = ["run", f"{server.url}/openapi.json", "-H", key, "--max-examples", str(EXAMPLES), "--continue-on-failure",
                 "--workers", "1", "--seed", "1", "--exclude-checks", NOT_CHECKED, "--no-color"]  # fmt: skip
        done = subprocess.run([sys.executable, "-m", "schemathesis.cli", *words], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stdout[-6000:]
        assert int(re.search(r"(\d+) generated", done.stdout)[1]) > 100
        statuses = collections.Counter(record["status"] for record in server.logged("request"))
        assert not [status for status in statuses if status >= 500 and status != 503], statuses
        assert {200, 400} <= set(statuses), "it was really asked"
        assert "Traceback" not in "".join(server.lines)
        counts = httpx.get(f"{server.url}/metrics", headers={"Authorization": f"Bearer {KEY}"}).text
        assert 'outcome="failed"} 0.0' in counts
