"""Small runs of `qurating judge run` with a language model, in this process or one of its own."""

import contextlib
import io
import json
import logging
import os
import sqlite3
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from judges.mock_process import MockServer, arguments

from qurating_jax.__main__ import main

KEY = "mock/key+0123456789abcdef"
TEXT = "Report {number} of the river board. In {year} it rained on {number} days, and the meadows of the valley held."


@dataclass(frozen=True)
class Ended:
    """A command that has ended: exit code and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def counts(self) -> dict[str, Any]:
        """The JSON line at the end of stdout."""
        return json.loads(self.out.splitlines()[-1])

    @property
    def error(self) -> str:
        """The one line that says what is wrong."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err
        return lines[0]


def write_documents(path: Path, num_documents: int, *, first: int = 0) -> str:
    """Documents with ids `doc0000`, ... in two domains; returns the path."""
    rows = (
        {"id": f"doc{n:04d}", "domain": ("web", "books")[n % 2], "text": TEXT.format(number=n, year=1900 + n)}
        for n in range(first, first + num_documents)
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def command(server: MockServer | str, documents: str, output: Path, **options: Any) -> list[str]:
    """Words of a run with one criterion on whole documents; `judge_x` stands for the option `judge.x`."""
    words = {
        "input": (documents,),
        "output": output,
        "criteria": ("writing_style",),
        "whole_documents": True,
        "json": True,
        "judge_kind": "openai",
        "judge_model": "mock-judge",
        "judge_base_url": server if isinstance(server, str) else server.base_url,
        "judge_max_wait_seconds": 0.02,
    } | options
    named = {name.replace("judge_", "judge.", 1) if name.startswith("judge_") else name: words[name] for name in words}
    return ["judge", "run", *arguments(named)]


def run(words: list[str]) -> Ended:
    """Runs a command in this process, its log lines in `err`."""
    package = logging.getLogger("qurating_jax")
    before = package.handlers, package.level, package.propagate
    package.handlers = []
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(words)
    finally:
        package.handlers, package.level, package.propagate = before
    return Ended(code, out.getvalue(), err.getvalue())


def start(words: list[str], **environment: str) -> subprocess.Popen:
    """Starts a command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "qurating_jax", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )


def ended(process: subprocess.Popen, timeout: float = 60.0) -> Ended:
    """Waits for a started command."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"still running after {timeout:g} s: {err}") from None
    return Ended(process.returncode, out, err)


def query(output: Path, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
    """Rows of a run's store, read beside the package."""
    with contextlib.closing(sqlite3.connect(output / "judgments.sqlite", timeout=30)) as connection:
        return connection.execute(sql, parameters).fetchall()
