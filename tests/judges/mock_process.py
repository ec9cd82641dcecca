"""The mock server in a process of its own, for tests."""

import contextlib
import json
import os
import select
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

START_SECONDS = 30.0


@dataclass(frozen=True)
class MockServer:
    """A running server; `base_url` ends in /v1."""

    base_url: str
    process: subprocess.Popen

    def stats(self) -> dict[str, Any]:
        """GET /mock/stats."""
        return self._call("GET", "stats")

    def reset(self) -> None:
        """POST /mock/reset."""
        self._call("POST", "reset")

    def stop(self) -> None:
        """Ends the server as Ctrl-C's sibling SIGTERM does (it writes its statistics file), or by force."""
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _call(self, method: str, name: str) -> dict[str, Any]:
        url = f"{self.base_url.removesuffix('/v1')}/mock/{name}"
        with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=10) as response:
            return json.load(response)


@contextlib.contextmanager
def mock_server(*, env: dict[str, str] | None = None, **options: Any) -> Iterator[MockServer]:
    """Starts `qurating judge mock-server --port 0` with options (sequences as tuples); ends it at the end.

    Args:
        env: added to the environment (MOCK_API_KEY).
        options: as on the command line; True and False for switches.

    Raises:
        RuntimeError: it did not start; with what it wrote.
    """
    command = [sys.executable, "-m", "qurating_jax", "judge", "mock-server", *arguments({"port": 0} | options)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | (env or {})
    )
    server = None
    try:
        server = MockServer(_wait_for_url(process), process)
        yield server
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def arguments(options: dict[str, Any]) -> list[str]:
    """Options as command-line words."""
    words = []
    for name, value in options.items():
        if isinstance(value, (tuple, list)):
            words += [f"--{name}", *map(str, value)]
        else:
            words.append(f"--{name}={str(value).lower() if isinstance(value, bool) else value}")
    return words


def _wait_for_url(process: subprocess.Popen) -> str:
    give_up = time.monotonic() + START_SECONDS
    while time.monotonic() < give_up:
        if select.select([process.stdout], [], [], 0.5)[0]:
            line = process.stdout.readline()
            if line.startswith("listening on "):
                return line.removeprefix("listening on ").strip()
            raise RuntimeError(f"the mock server did not start: {line}{process.stdout.read()}")
    raise RuntimeError(f"the mock server did not start in {START_SECONDS:.0f} s")
