"""An export as a user of `transformers` meets it: Auto classes, padded vocabulary, its tokenizer, generated text."""

import json

import numpy as np
import pytest
import tiny_hf as tiny

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

import jax  # noqa: E402

from qurating_jax.data.tokenizer import load_tokenizer  # noqa: E402
from qurating_jax.models import heads, hf  # noqa: E402
from qurating_jax.models.config import ComputeConfig  # noqa: E402
from qurating_jax.parallel.mesh import make_mesh  # noqa: E402
from qurating_jax.parallel.options import MeshShape  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A language model of 384 rows in its embedding, under a tokenizer of fewer tokens."""
    return tiny.make_model(tmp_path_factory.mktemp("export"), 0)


@pytest.fixture(scope="module")
def theirs(directory):
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, output_loading_info=True
    )
    assert not any(info.values()), info
    return model.eval()


def test_logits_of_the_auto_class(directory, theirs):
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    assert len(tokenizer) < theirs.config.vocab_size == 384
    ids = tokenizer(tiny.TEXTS[0], add_special_tokens=False)["input_ids"]
    assert ids == load_tokenizer(str(directory)).encode([tiny.TEXTS[0]])[0].tolist()
    with torch.no_grad():
        want = theirs(torch.tensor([ids])).logits.numpy()
    config, _ = hf.read_config(str(directory))
    params = hf.load(str(directory), make_mesh(MeshShape(data=1), jax.devices()[:1]))
    got = np.asarray(heads.logits(params, config, np.array([ids], np.int32), compute=ComputeConfig()))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * max(1.0, np.abs(want).max()))


def test_it_generates_and_stops_at_its_end_of_text(directory, theirs):
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    assert theirs.generation_config.eos_token_id == tokenizer.eos_token_id == load_tokenizer(str(directory)).eos_id
    assert theirs.generation_config.pad_token_id == tokenizer.eos_token_id
    ids = torch.tensor([tokenizer(tiny.TEXTS[0], add_special_tokens=False)["input_ids"][:8]])
    made = theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False)
    assert 9 <= made.shape[1] <= 13
    with torch.no_grad():
        assert made[0, 8] == theirs(ids).logits[0, -1].argmax()


def test_a_bfloat16_export_is_bfloat16_there(directory, tmp_path):
    config, _ = hf.read_config(str(directory))
    hf.save(str(tmp_path), hf.load(str(directory), make_mesh(MeshShape())), config, dtype="bfloat16")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.dtype == torch.bfloat16
    assert json.loads((tmp_path / hf.CONFIG).read_text())["torch_dtype"] == "bfloat16"
