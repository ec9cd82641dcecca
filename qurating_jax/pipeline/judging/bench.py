"""How many requests per second judging can do where the endpoint answers at once: client, store and all.

The mock server runs as a process of its own on the same machine, so at least two cores are needed for a fair figure.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qurating_jax.config import option
from qurating_jax.runtime.errors import UserError
from qurating_jax.stage import InspectConfig

if TYPE_CHECKING:
    from qurating_jax.judges.store import Store

_SENTENCE = "the river rises in these hills because rain falls there in every month of the year"


@dataclass(frozen=True, kw_only=True)
class Config(InspectConfig):
    """Options of `qurating bench judge`."""

    num_pairs: int = option(500, "pairs to judge, each on four criteria in both orders")
    words: int = option(350, "words of a text")
    concurrency: int = option(32, "most requests under way at once")
    repeats: int = option(3, "how often it is measured; the best and all are shown")


def main(config: Config) -> dict[str, Any]:
    """Prints and returns requests per second, by wall clock and per second of the client's CPU."""
    runs = []
    for number in range(config.repeats):
        with _server() as url, tempfile.TemporaryDirectory() as directory:
            runs.append(_measure(config, url, f"{directory}/judgments.sqlite"))
        print(f"run {number + 1}: {runs[-1]['per_second']:.0f} requests/s, {runs[-1]['cpu_ms']:.2f} ms CPU per request")
    best = max(run["per_second"] for run in runs)
    print(f"best of {len(runs)}: {best:.0f} requests/s")
    return {"best_per_second": best, "runs": runs}


def _measure(config: Config, url: str, path: str) -> dict[str, float]:
    from qurating_jax.judges import criteria, llm
    from qurating_jax.judges.options import JudgeConfig
    from qurating_jax.judges.questions import Asked
    from qurating_jax.judges.store import Store

    judge = JudgeConfig(kind="openai", model="mock-judge", base_url=url, concurrency=config.concurrency)
    asked = Asked(judges=[judge], criteria=criteria.load(criteria.NAMES), mode="pairwise", layout="criterion_first")
    with Store(path, create=True) as store:
        _fill(store, config)
        llm.prepare(store, asked)  # the questions and their keys are written before the clock starts
        wall, cpu = time.perf_counter(), time.process_time()
        llm.judge_store(store, asked)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        (num_answers,) = store.query("SELECT count(*) FROM answer").fetchone()
    return {"requests": num_answers, "per_second": num_answers / wall, "cpu_ms": 1000 * cpu / num_answers}


def _fill(store: "Store", config: Config) -> None:
    groups = range(config.num_pairs)
    with store.transaction():
        store.add_units((group, "main", "", None, 0) for group in groups)
        store.add_excerpts(
            (group, slot, f"{group}-{slot}", "bench", _text(2 * group + slot, config.words))
            for group in groups
            for slot in range(2)
        )


def _text(number: int, num_words: int) -> str:
    words = _SENTENCE.split()
    return " ".join([f"Text {number}:", *(words[(number + i * i) % len(words)] for i in range(num_words))])


@contextmanager
def _server() -> Iterator[str]:
    command = [sys.executable, "-m", "qurating_jax", "judge", "mock-server", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if "http://" not in line:
                raise UserError("the mock server did not start; is qurating-jax[judge] installed?")
            yield line.split()[-1]
        finally:
            process.terminate()
