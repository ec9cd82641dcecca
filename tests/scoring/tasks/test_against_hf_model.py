"""The numbers of the harness's own `hf` model on the same exported checkpoint, for tokenizers and architectures."""

import warnings

import harness_runs as runs
import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("accelerate", reason="accelerate, which the harness' hf model needs, is not installed")

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]  # of the harness and what it imports

CASES = {
    "own": (None, {}),
    "bos": ("llama-test-tokenizer.json", {"num_layers": 1}),
    "gpt2": ("gpt2", {"num_layers": 1}),
    "window": (None, {"family": "mistral", "sliding_window": 7}),
    "qwen3": (None, {"family": "qwen3", "qk_norm": True, "num_kv_heads": 1}),
    "qwen2": (None, {"family": "qwen2", "qkv_bias": True, "tie_embeddings": True}),
}


@pytest.fixture(scope="module", params=CASES)
def pair(request, tmp_path_factory):
    tokenizer, changes = CASES[request.param]
    if tokenizer is not None and not runs.REAL_DATA.is_dir():
        pytest.skip(f"no real data at {runs.REAL_DATA} (QURATING_TEST_DATA names the folder)")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lm_eval.models.huggingface import HFLM
        from transformers import PreTrainedTokenizerFast

        path = None if tokenizer is None else runs.REAL_DATA / "tokenizers" / tokenizer
        if request.param == "bos":
            path = runs.llama_tokenizer(tmp_path_factory.mktemp("tokenizer"))
        directory = runs.make_lm(tmp_path_factory.mktemp(request.param), path, **changes)
        # `AutoTokenizer` rebuilds the pipeline of whatever stands beside a Qwen2 model (see data/tokenizer.py).
        given = {"tokenizer": PreTrainedTokenizerFast.from_pretrained(directory)} if request.param == "qwen2" else {}
        # One at a time: of a batch, `hf` stops generating when all have met the same stop string.
        theirs = HFLM(pretrained=str(directory), device="cpu", dtype="float32", batch_size=1, **given)
    return runs.ours(directory, batch_tokens=512), theirs


def test_special_tokens_and_lengths(pair):
    ours, theirs = pair
    for name in ("eot_token_id", "prefix_token_id", "max_length", "max_gen_toks"):
        assert getattr(ours, name) == getattr(theirs, name)
    for text in (*runs.TEXTS, "", " x ", "<|endoftext|>a", "<s>a"):
        for special in (None, True, False):
            assert ours.tok_encode(text, add_special_tokens=special) == theirs.tok_encode(text, special)


def test_log_likelihoods_and_greedy_flags(pair):
    ours, theirs = pair
    # The likeliest continuation of each context beside the given ones, so that both flags are there.
    likeliest = theirs.generate_until(
        runs.instances("generate_until", [(context or "ok", {"max_gen_toks": 2}) for context, _ in runs.PAIRS])
    )
    pairs = runs.PAIRS + [
        (context or "ok", text) for (context, _), text in zip(runs.PAIRS, likeliest, strict=True) if text.strip()
    ]
    requests = runs.instances("loglikelihood", pairs)
    got, want = ours.loglikelihood(requests), theirs.loglikelihood(requests, disable_tqdm=True)
    np.testing.assert_allclose([value for value, _ in got], [value for value, _ in want], rtol=2e-5)
    assert [greedy for _, greedy in got] == [greedy for _, greedy in want]
    assert {greedy for _, greedy in got} == {True, False}


def test_rolling_log_likelihoods(pair):
    ours, theirs = pair
    requests = runs.instances("loglikelihood_rolling", [(text,) for text in runs.TEXTS])
    want = theirs.loglikelihood_rolling(requests, disable_tqdm=True)
    np.testing.assert_allclose(ours.loglikelihood_rolling(requests), want, rtol=2e-5)


def test_generations(pair):
    ours, theirs = pair
    requests = runs.instances("generate_until", runs.PROMPTS)
    assert ours.generate_until(requests) == theirs.generate_until(requests, disable_tqdm=True)
