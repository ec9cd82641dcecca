"""The end of `qurating run`: the analysis of what was rated, and the report of everything, each a process of its own.

They are made where something was rated or evaluated, and anew where the steps under the output have changed since;
`reported.json` says what they were made of. What fails here is no error of the run: a warning names log and command.
"""

import contextlib
import json
import logging
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from qurating_jax.experiments.graph import STEPS
from qurating_jax.experiments.records import RUNS
from qurating_jax.experiments.running.stage_processes import last_line, own_command
from qurating_jax.runtime import manifest, storage
from qurating_jax.runtime.errors import Interrupted, UserError

MADE = "reported.json"
ANALYSIS, REPORT = "analyze", "report"
FOLDERS = {ANALYSIS: "analysis", REPORT: "report"}  # under the output
PAGE = "report.html"

_RATING, _EVALUATION = "annotate", "eval-lm"
_READ = (_RATING, "select", "judge run", *manifest.RATER_STAGES)  # by an analysis

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Found:
    """The finished steps under an output: digests by folder of each stage, and what the runs are."""

    digests: Mapping[str, Mapping[str, str]]
    runs: str
    rated: bool

    def fingerprint(self, stage: str) -> str:
        """What a stage reads here, in short."""
        if stage == ANALYSIS:
            read = {of: self.digests[of] for of in _READ if of in self.digests}
            return _digest(read)
        return _digest(self.digests, self.runs)


def make_report(output: str, logs: str, environment: Mapping[str, str]) -> str | None:
    """Makes what is missing or no longer true.

    Args:
        output: of all experiments, local or remote.
        logs: local directory for what the processes print.
        environment: variables of the processes.

    Returns:
        The path of the page; None where there is none: nothing was rated or evaluated, or making it failed.

    Raises:
        Interrupted: by Ctrl-C or TERM, which the process is told.
    """
    found = _look(output)
    if not found.rated and _EVALUATION not in found.digests:
        return None
    if found.rated:
        _make(ANALYSIS, output, logs, environment, found.fingerprint(ANALYSIS))
    analysis = storage.join(output, FOLDERS[ANALYSIS], manifest.MANIFEST)
    analysed = storage.read_text(analysis) if storage.exists(analysis) else ""
    of = manifest.sha256(found.fingerprint(REPORT) + analysed)
    if not _make(REPORT, output, logs, environment, of):
        return None
    return storage.join(output, FOLDERS[REPORT], PAGE)


def _look(output: str) -> _Found:
    digests: dict[str, dict[str, str]] = {}
    rated = False
    for name in storage.list_dir(storage.join(output, STEPS)):
        directory = storage.join(output, STEPS, name)
        with contextlib.suppress(UserError):  # a broken one: the report says so
            if manifest.is_artifact(directory) and storage.exists(storage.join(directory, manifest.MANIFEST)):
                document = manifest.read(directory)
                digests.setdefault(str(document["stage"]), {})[name] = manifest.digest(document)
                rated = rated or (document["stage"] == _RATING and bool(document["config"].get("rater")))
    runs = [
        storage.read_text(storage.join(output, RUNS, experiment, file))
        for experiment in storage.list_dir(storage.join(output, RUNS))
        for file in storage.list_dir(storage.join(output, RUNS, experiment))
    ]
    return _Found(digests, manifest.sha256(json.dumps(runs)), rated)


def _digest(*of: object) -> str:
    """Of another version of ours too it is another one."""
    return manifest.sha256(json.dumps([manifest.versions().get("qurating-jax"), *of], sort_keys=True))


def _make(stage: str, output: str, logs: str, environment: Mapping[str, str], fingerprint: str) -> bool:
    """Runs a stage unless it stands and was made of the same; True where it stands then."""
    place, record = storage.join(output, FOLDERS[stage]), storage.join(output, MADE)
    made = storage.read_json(record) if storage.exists(record) else {}
    same = made.get(stage) == fingerprint
    finished = storage.exists(storage.join(place, manifest.MANIFEST))
    if same and finished:
        return True
    words = [*own_command(), stage, "--run", output, "--output", place]
    if not same:
        if manifest.standing(place)[0] is not None:  # it is ours, of what was there before
            words += ["--overwrite", "true"]
        storage.write_json(record, made | {stage: fingerprint})
    path = os.path.join(logs, f"{stage}.txt")
    log.info("run: %s of all runs under %s, see %s", stage, output, path)
    code = _run(words, path, environment)
    if code:
        log.warning(
            "no %s of these runs (%s); the runs themselves are complete. Log: %s; to make it: %s",
            FOLDERS[stage], last_line(path) or f"exit code {code}", path, _command(words),
        )  # fmt: skip
    return code == 0


def _command(words: list[str]) -> str:
    return shlex.join(["qurating", *words[len(own_command()) :]])


def _run(words: list[str], path: str, environment: Mapping[str, str]) -> int:
    """The exit code of a command whose words go to a log; a signal to us is told it, and it is waited for."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(path, "ab") as stream, ending_at_term():
        stream.write(f"== {time.strftime('%Y-%m-%d %H:%M:%S')} {shlex.join(words)}\n".encode())
        stream.flush()
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, env=dict(environment), start_new_session=True
        )
        try:
            return process.wait()
        except KeyboardInterrupt:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGINT)
            process.wait()
            raise Interrupted("interrupted while the report was made; the same command goes on") from None


@contextlib.contextmanager
def ending_at_term() -> Iterator[None]:
    """TERM ends the block as Ctrl-C does, and with it a process that is waited for there."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
