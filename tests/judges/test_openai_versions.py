"""The client works with older lines of the `openai` package, which stand on another HTTP library."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from judges.mock_process import mock_server

REPOSITORY = Path(__file__).resolve().parents[2]
OLDER = Path(os.environ.get("QURATING_OLDER_OPENAI", REPOSITORY / ".cache" / "openai2"))
SENTENCE = "the river rises in these hills because rain falls there in every month of the year"


@pytest.mark.parametrize("kind", ["installed", "older"])
def test_a_run_with_faults(kind, tmp_path):
    environment = dict(os.environ)
    if kind == "older":
        if not OLDER.is_dir():
            pytest.skip(f"no older openai at {OLDER} (.ci/run installs it; QURATING_OLDER_OPENAI names the folder)")
        environment["PYTHONPATH"] = str(OLDER)
    words = SENTENCE.split()
    with open(tmp_path / "documents.jsonl", "w") as stream:
        for number in range(20):
            text = " ".join([f"Text {number}:", *(words[(number * 3 + i * i) % len(words)] for i in range(60))])
            stream.write(json.dumps({"id": str(number), "text": text}) + "\n")
    faults = ["rate_limit_ms", "server_error", "truncated_json", "ok_html", "disconnect", "disconnect_mid_body", "ok"]
    with mock_server(script=("ok", *faults)) as server:
        command = [
            *(sys.executable, "-m", "qurating_jax", "judge", "run", "--json", "--whole_documents"),
            *("--input", str(tmp_path / "documents.jsonl"), "--output", str(tmp_path / "run")),
            *("--judge.kind", "openai", "--judge.model", "mock-judge", "--judge.base_url", server.base_url),
            *("--judge.max_wait_seconds", "0.1", "--judge.timeout_seconds", "10"),
        ]
        done = subprocess.run(
            command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, done.stderr[-2000:]
        counts = json.loads(done.stdout.splitlines()[-1])
        assert counts["outcomes"] == {"ok": 10 * 2 * 4}
        assert counts["attempts"]["ok"] == 80
        assert sum(counts["attempts"].values()) == 80 + 6
        assert counts["attempts"]["connection"] == 2
        assert server.stats()["distinct_answered"] == 80
    version = "import openai; print(openai.__version__)"
    found = subprocess.run([sys.executable, "-c", version], env=environment, capture_output=True, text=True, check=True)
    assert (int(found.stdout.split(".")[0]) < 3) == (kind == "older")
