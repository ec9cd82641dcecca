"""Requests of the harness, and the two models that answer them."""

import json
import os
import shutil
import warnings
from pathlib import Path

import tiny_hf as tiny

from qurating_jax.data.tokenizer import load_tokenizer
from qurating_jax.models import llama
from qurating_jax.models.config import DecoderConfig
from qurating_jax.training.fit import export

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the harness' own dependencies, on their import
    from lm_eval.api.instance import Instance

    from qurating_jax.scoring.tasks.harness_model import QuratingLM

# As in conftest.py, which a module among other folders' conftests cannot import.
REAL_DATA = Path(os.environ.get("QURATING_TEST_DATA", Path(__file__).resolve().parents[4] / "shared" / "data"))
SHOTS = "Question: what is a plant made of?\nAnswer: cellulose\n\n" * 2
PAIRS = [
    *[("The cell wall of a plant is", end) for end in (" made", " made of cellulose.", " a", " a proof.", " made of")],
    *[(f"{SHOTS}Question: is it {word}?\nAnswer:", end) for word in ("Napoleon", "Europe") for end in (" yes", " no")],
    ("Trailing space goes to ", "the continuation"),
    ("Trailing \n\t ", " and leading ones too"),
    ("", "In 1815 Napoleon lost"),
    ("", "x"),
    ("🙂 naïve café 中文", " ничего 🙂"),
    ("A theorem needs a proof. " * 30, " In 1815 Napoleon"),  # longer than the models read
    ("A theorem needs a proof. " * 30, " ok"),
    ("A theorem needs a proof. " * 30, " no"),
    ("ok", " long" * 9),
]
TEXTS = [*tiny.TEXTS, "中文 текст — naïve 🙂 " * 7]
PROMPTS = [
    ("The cell wall", {"until": ["\n"], "max_gen_toks": 12}),
    ("The cell wall of a plant is", {"until": ["e", " q"], "max_gen_toks": 40}),
    ("A theorem needs a proof. " * 30, {"until": "z", "max_gen_toks": 9, "do_sample": False, "temperature": 0.0}),
    ("🙂 naïve", {"until": [], "max_gen_toks": 33}),
    ("In 1815 ", {"until": ["?", "."], "max_gen_toks": 17}),
    ("ok", {"until": ["\n\n"], "max_gen_toks": 1}),
]


def instances(kind, arguments):
    return [Instance(request_type=kind, doc={}, arguments=one, idx=n) for n, one in enumerate(arguments)]


def ours(directory, **options):
    return QuratingLM.create_from_arg_obj({"model": str(directory), **options})


def make_lm(directory, tokenizer=None, **changes):
    """A random language model, exported with a tokenizer (a path, or one made on the spot)."""
    import jax

    found = tiny.make_tokenizer(directory / "tokenizer") if tokenizer is None else load_tokenizer(str(tokenizer))
    vocab_size = -(-found.vocab_size // 128) * 128
    config = DecoderConfig(**({"vocab_size": vocab_size, "num_kv_heads": 2, "max_positions": 64} | changes))
    # Weights large enough that texts differ in their likelihood.
    make = jax.jit(lambda key: jax.tree.map(lambda x: x * 8.0 if x.ndim > 2 else x, llama.init(config, key)))
    export(str(directory / "hf"), make(jax.random.key(1)), config, found, labels=())
    return directory / "hf"


def llama_tokenizer(directory):
    """A tokenizer.json as Llama's come: it begins a text with BOS, beside a file that names its special tokens."""
    shutil.copy(REAL_DATA / "tokenizers" / "llama-test-tokenizer.json", directory / "tokenizer.json")
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(names))
    return directory
