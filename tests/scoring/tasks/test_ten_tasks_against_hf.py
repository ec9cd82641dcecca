"""The paper's ten tasks on real rows: every sample of ours beside that of the harness's own `hf` model."""

import dataclasses
import itertools
import json
import warnings

import harness_runs as runs
import numpy as np
import pytest
from lm_eval.api.model import LM

from qurating_jax.scoring.benching.tasks import requests_of
from qurating_jax.scoring.tasks import items, presets, running
from qurating_jax.scoring.tasks.loading import FEWSHOT_SEED, load_tasks

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("accelerate", reason="accelerate, which the harness' hf model needs, is not installed")

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore"),  # of the harness and what it imports
    pytest.mark.usefixtures("quick_compiling"),
]
QUESTIONS = 4
SUBJECTS = 3  # of MMLU's 57
CONTEXTS = (512, 128)  # where most prompts are shown whole, and where nearly all are cut


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    if not runs.REAL_DATA.is_dir():
        pytest.skip(f"no real data at {runs.REAL_DATA} (QURATING_TEST_DATA names the folder)")
    tokenizer = runs.llama_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    return runs.make_lm(tmp_path_factory.mktemp("lm"), tokenizer, max_positions=CONTEXTS[0], num_layers=1)


@pytest.fixture(scope="module")
def tasks(directory):
    found = load_tasks(
        presets.choose(["local"]), folder=str(runs.REAL_DATA / "evals"), include=(), num_fewshot=None, seed=0
    )
    return {task.chosen.base: _less(task) for task in found}


def _less(task):
    return dataclasses.replace(task, parts=dict(itertools.islice(task.parts.items(), SUBJECTS)))


def _requests(task):
    for part in task.parts.values():
        part.set_fewshot_seed(seed=FEWSHOT_SEED)
    return requests_of(task, QUESTIONS)


class Replayed(LM):
    """Answers that were given before, by the arguments of the requests."""

    def __init__(self, lm, requests):
        super().__init__()
        self.answers = {}
        for kind in ("loglikelihood", "generate_until"):
            asked = [request for request in requests if request.request_type == kind]
            for request, answer in zip(asked, getattr(lm, kind)(asked, disable_tqdm=True), strict=True):
                self.answers[repr(request.args)] = answer

    def _answer(self, requests):
        return [self.answers[repr(request.args)] for request in requests]

    loglikelihood = loglikelihood_rolling = generate_until = _answer


@pytest.fixture(scope="module", params=CONTEXTS)
def pair(request, directory, tasks):
    """Ours and `hf`, which have answered all requests of all tasks at once: programs are compiled for few shapes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lm_eval.models.huggingface import HFLM

        # One at a time: of a batch, `hf` stops generating when all have met the same stop string.
        theirs = HFLM(pretrained=str(directory), device="cpu", dtype="float32", batch_size=1, max_length=request.param)
        asked = [one for task in tasks.values() for one in _requests(task)]
        ours = runs.ours(directory, context_tokens=request.param)
        return Replayed(ours, asked), Replayed(theirs, asked)


@pytest.mark.parametrize("base", presets.PAPER)
def test_every_sample_is_hf_s(pair, tasks, base):
    task = tasks[base]
    ours, theirs = (running.ask(lm, task, limit=QUESTIONS, seed=0) for lm in pair)
    assert len(ours) == QUESTIONS * len(task.parts)
    for mine, other in zip(ours, theirs, strict=True):
        same = ("part", "doc_id", "doc_hash", "prompt_hash", "target_hash", "metrics")
        assert [mine[name] for name in same] == [other[name] for name in same]
        assert [mine[name] for name in mine["metrics"]] == [other[name] for name in mine["metrics"]]
        if base == "nq_open":
            assert mine["resps"] == other["resps"]
            continue
        got, want = mine["filtered_resps"], other["filtered_resps"]
        np.testing.assert_allclose([value for value, _ in got], [value for value, _ in want], rtol=2e-5)
        assert [greedy for _, greedy in got] == [greedy for _, greedy in want]
    made, wanted = (items.items_of(task, json.loads(json.dumps(one, default=str))) for one in (ours, theirs))
    assert made.predictions == wanted.predictions
    assert {name: values.tolist() for name, values in made.metrics.items()} == {
        name: values.tolist() for name, values in wanted.metrics.items()
    }
