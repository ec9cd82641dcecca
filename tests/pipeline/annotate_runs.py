"""Runs of `qurating annotate` for its tests: as commands of their own, as calls, and what a run has left."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import tiny_hf as tiny

from qurating_jax.pipeline import annotate

TIMEOUT = 240
TEMPORARY = re.compile(r"\.tmp-[0-9a-f]{16}$")
# A run whose process ends by SIGKILL just before or after it gives a file its final name.
_KILLED_AT = """
import os, signal, sys
from qurating_jax.__main__ import main
when, name = sys.argv[1:3]
rename = os.replace
def replace(source, target):
    here = str(target).endswith("out/" + name)
    if not (here and when == "before"):
        rename(source, target)
    if here:
        os.kill(os.getpid(), signal.SIGKILL)
os.replace = replace
sys.exit(main(sys.argv[3:]))
"""
# A run that can write no file beyond so many bytes, as on a disk that fills up.
_LIMITED = """
import resource, sys
from qurating_jax.__main__ import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
sys.exit(main(sys.argv[2:]))
"""


def write_rows(path, rows):
    """JSON lines; a text stands as it is, for a line that is no row."""
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("".join(line + "\n" for line in lines))
    return str(path)


def varied_texts(num):
    """Texts of many lengths, none like another."""
    return [f"{tiny.TEXTS[n % 6][: 20 + 37 * n % 600]} {n}" for n in range(num)]


def environment():
    """Of a run of its own: one device."""
    return os.environ | {"XLA_FLAGS": ""}


def command(options, script=None):
    """The words of a run; `script` is a driver above and its own arguments."""
    driver = ["-m", "qurating_jax"] if script is None else ["-c", *script]
    return [sys.executable, *driver, "annotate", *options]


def start(directory, options, script=None):
    """Starts a run in a directory, on one device."""
    return subprocess.Popen(
        command(options, script), cwd=directory, env=environment(), text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip


def killed_at(when, name):
    """The driver of a run that is killed `before` or `after` it renames a file to its final name."""
    return [_KILLED_AT, when, name]


def limited(num_bytes):
    """The driver of a run that can write no file larger than so many bytes."""
    return [_LIMITED, str(num_bytes)]


def end(process, *, code=0):
    """Waits for a run; returns its stderr."""
    _, error = process.communicate(timeout=TIMEOUT)
    assert process.returncode == code, error
    assert "Traceback" not in error, error
    return error


def kill(process):
    """SIGKILL; a run that has ended meanwhile has to have ended well."""
    process.send_signal(signal.SIGKILL)
    _, error = process.communicate(timeout=TIMEOUT)
    assert process.returncode in (0, -signal.SIGKILL), error


def left_in(output):
    """{file: content} of an output, without what tells of times; the manifest without the checkout's revision."""
    found = {}
    for path in sorted(pathlib.Path(output).rglob("*")):
        if path.is_file() and path.name not in ("log.txt", "metrics.jsonl") and path.parent.name != "logs":
            found[str(path.relative_to(output))] = path.read_bytes()
    if "manifest.json" in found:
        found["manifest.json"] = json.loads(found["manifest.json"]) | {"git_revision": None}
    return found


def assert_same(found, expected, *, but=()):
    """Equal outputs, as `left_in` gives them; names the file that differs."""
    assert set(found) - set(but) == set(expected) - set(but)
    for name in expected:
        if name not in but:
            assert found[name] == expected[name], name


def rated_parts(output):
    """Number of every part that `metrics.jsonl` has a line for, in its order."""
    lines = pathlib.Path(output, "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["part"] for line in lines]


def part_names(output):
    """Names of the parts that are there."""
    return sorted(path.name for path in pathlib.Path(output).glob("part-*.parquet"))


def annotate_here(output, source, rater=(), **options):
    """A run in this process, its windows of 48 tokens; returns its counts and all its rows as one table."""
    options = {"window_tokens": 48, "batch_tokens": 512} | options
    counts = annotate.main(
        annotate.Config(
            input=(source,) if isinstance(source, str) else tuple(source),
            rater=(rater,) if isinstance(rater, str) else tuple(rater),
            output=str(output),
            **options,
        )
    )
    return counts, read_parts(output)


def read_parts(output):
    """All rows of an output, in its order."""
    return pa.concat_tables(
        [pq.read_table(pathlib.Path(output, name)) for name in part_names(output)], promote_options="permissive"
    )


def work_begun(output):
    """What of an output looks like work: none of it may stand after a refusal."""
    names = [path.name for path in pathlib.Path(output).glob("*")]
    return [name for name in names if name in ("parts.json", "claims", "rejected") or name.startswith("part")]
