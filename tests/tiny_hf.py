"""A tiny rater and a tiny language model as Hugging Face directories, with a tokenizer made on the spot."""

import jax
import numpy as np
import tokenizers

from qurating_jax.data.tokenizer import load_tokenizer
from qurating_jax.models import llama
from qurating_jax.models.config import DecoderConfig
from qurating_jax.training.fit import export

TEXTS = [
    "The cell wall of a plant is made of cellulose.",
    "",
    "ok",
    "A theorem needs a proof. " * 30,
    "In 1815 Napoleon lost at Waterloo, and Europe changed. " * 9,
    "🙂 naïve café\u2028" * 4,
]
CRITERIA = ("educational_value", "writing_style", "required_expertise")


def flat(windows):
    """Token windows as a scorer takes them: values, starts, sizes."""
    sizes = np.array([len(window) for window in windows], np.int64)
    return np.concatenate([np.zeros(0, np.int32), *windows]).astype(np.int32), np.cumsum(sizes) - sizes, sizes


def by_document(ratings):
    """Sizes and scores of each document's windows."""
    windows = ratings.windows
    cuts = np.searchsorted(windows.documents, np.arange(1, windows.num_documents))
    return np.split(windows.sizes, cuts), np.split(ratings.scores, cuts)


def make_tokenizer(directory):
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    directory.mkdir(parents=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    return load_tokenizer(str(directory))


def make_model(directory, num_criteria):
    """Weights large enough that scores differ between texts."""
    tokenizer = make_tokenizer(directory / "tokenizer")
    config = DecoderConfig(vocab_size=384, num_kv_heads=2, max_positions=64, num_criteria=num_criteria)
    make = jax.jit(lambda key: jax.tree.map(lambda x: x * 8.0 if x.ndim > 2 else x, llama.init(config, key)))
    params = make(jax.random.key(1))
    export(str(directory / "hf"), params, config, tokenizer, labels=CRITERIA[:num_criteria])
    return directory / "hf"
