"""Against `transformers`: the same weights give the same logits, on the way in and on the way out."""

import dataclasses
import json
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

import torch_models as truth  # noqa: E402  (needs torch)
from safetensors.numpy import load_file, save_file  # noqa: E402
from tiny_models import QUICK, assert_trees_equal, one_device  # noqa: E402

from qurating_jax.models import heads, hf  # noqa: E402
from qurating_jax.models.config import ComputeConfig, DecoderConfig  # noqa: E402
from qurating_jax.runtime.errors import UserError  # noqa: E402

pytestmark = pytest.mark.torch

TOLERANCE = 2e-5  # of the largest logit; float32 rounding gives about 2e-6
TOKENS = truth.tokens()

GQA = next(case for case in truth.CASES if case.name == "llama-gqa")


@dataclasses.dataclass(frozen=True)
class Imported:
    """One architecture under one head: transformers' own directory and logits, and what we read from it."""

    case: truth.Case
    is_rater: bool
    directory: Any
    model: Any
    logits: np.ndarray
    params: Any
    config: DecoderConfig
    labels: tuple[str, ...]


def make(case, is_rater, directory):
    model = truth.make(case, is_rater=is_rater)
    truth.save(model, directory)
    config, labels = hf.read_config(str(directory))
    params = hf.load(str(directory), one_device())
    return Imported(case, is_rater, directory, model, truth.logits(model, TOKENS), params, config, labels)


@pytest.fixture(
    scope="module",
    params=[(case, is_rater) for case in truth.CASES for is_rater in (False, True)],
    ids=lambda param: f"{param[0].name}-{'rater' if param[1] else 'lm'}",
)
def imported(request, tmp_path_factory):
    return make(*request.param, tmp_path_factory.mktemp("transformers"))


@pytest.fixture(scope="module")
def gqa(tmp_path_factory):
    return make(GQA, False, tmp_path_factory.mktemp("transformers"))


def our_logits(params, config):
    def forward(params, tokens):
        if config.num_criteria:
            return heads.scores(params, config, tokens, tokens != truth.PAD, compute=ComputeConfig())
        return heads.logits(params, config, tokens, compute=ComputeConfig())

    return np.asarray(jax.jit(forward, compiler_options=QUICK)(params, TOKENS))


def assert_close(got, want):
    assert got.shape == want.shape
    assert np.ptp(want) > 0.3  # logits that say something
    np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE * np.abs(want).max())


def test_logits_equal_transformers(imported):
    assert imported.labels == (truth.LABELS if imported.is_rater else ())
    assert imported.config.sliding_window == imported.case.changes.get("sliding_window")
    assert_close(our_logits(imported.params, imported.config), imported.logits)


def test_export_is_read_by_transformers(imported, tmp_path):
    tokens = {"pad_token_id": truth.PAD, "bos_token_id": 1, "eos_token_id": 2}
    hf.save(str(tmp_path), imported.params, imported.config, labels=imported.labels, special_tokens=tokens)
    model = truth.reload(tmp_path, imported.case, is_rater=imported.is_rater)
    np.testing.assert_array_equal(truth.logits(model, TOKENS), imported.logits)
    assert {key: getattr(model.config, key) for key in tokens} == tokens
    if imported.is_rater:
        assert tuple(model.config.id2label.values()) == truth.LABELS
    # and back: the same architecture, the same bits, the same tensors as transformers wrote
    assert hf.read_config(str(tmp_path)) == (imported.config, imported.labels)
    assert_trees_equal(hf.load(str(tmp_path), one_device()), imported.params)
    ours, theirs = load_file(tmp_path / hf.WEIGHTS), load_file(imported.directory / hf.WEIGHTS)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(ours[name], tensor, err_msg=name)


@pytest.mark.parametrize("change", ["sliding_window", "rope_theta", "norm_eps", "rope_scaling"])
def test_parity_would_see_a_setting_that_is_not_honoured(gqa, change):
    from qurating_jax.models.config import RopeScaling

    other = {
        "sliding_window": 150,
        "rope_theta": 900.0,
        "norm_eps": 2e-3,
        "rope_scaling": RopeScaling(kind="linear", factor=1.1),
    }[change]
    wrong = our_logits(gqa.params, dataclasses.replace(gqa.config, **{change: other}))
    assert np.abs(wrong - gqa.logits).max() > 20 * TOLERANCE * np.abs(gqa.logits).max()


def test_sharded_export_is_read_by_transformers(gqa, tmp_path):
    hf.save(str(tmp_path), gqa.params, gqa.config, max_file_bytes=20_000)
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(files) > 3
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    index = json.loads((tmp_path / hf.INDEX).read_text())
    tensors = {name: tensor for file in files for name, tensor in load_file(tmp_path / file).items()}
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    assert index["weight_map"].keys() == tensors.keys()
    model = truth.reload(tmp_path, gqa.case, is_rater=False)
    np.testing.assert_array_equal(truth.logits(model, TOKENS), gqa.logits)
    assert_trees_equal(hf.load(str(tmp_path), one_device()), gqa.params)


def test_shards_of_transformers_are_read(gqa, tmp_path):
    truth.save(gqa.model, tmp_path, max_shard_size="30KB")
    assert (tmp_path / hf.INDEX).exists()
    assert_trees_equal(hf.load(str(tmp_path), one_device()), gqa.params)


def test_bfloat16_export(gqa, tmp_path):
    hf.save(str(tmp_path), gqa.params, gqa.config, dtype="bfloat16")
    rounded = jax.tree.map(lambda leaf: np.asarray(leaf).astype(ml_dtypes.bfloat16), gqa.params)
    assert_trees_equal(hf.load(str(tmp_path), one_device(), dtype="bfloat16"), rounded)
    assert_trees_equal(
        hf.load(str(tmp_path), one_device()), jax.tree.map(lambda leaf: leaf.astype(np.float32), rounded)
    )
    assert truth.reload(tmp_path, gqa.case, is_rater=False, dtype="auto").dtype == torch.bfloat16
    model = truth.reload(tmp_path, gqa.case, is_rater=False)  # bfloat16 weights, float32 arithmetic
    assert_close(our_logits(hf.load(str(tmp_path), one_device()), gqa.config), truth.logits(model, TOKENS))


def test_a_tied_head_that_is_written_out_is_read_as_transformers_reads_it(tmp_path):
    tied = next(case for case in truth.CASES if case.name == "llama-tied")
    model = make(tied, False, tmp_path)
    tensors = load_file(tmp_path / hf.WEIGHTS)
    save_file(
        tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].copy()},
        tmp_path / hf.WEIGHTS,
        metadata={"format": "pt"},
    )
    assert_trees_equal(hf.load(str(tmp_path), one_device()), model.params)
    save_file(
        tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] + 1},
        tmp_path / hf.WEIGHTS,
        metadata={"format": "pt"},
    )
    with pytest.raises(UserError, match=r"lm_head\.weight is not the embedding; set tie_word_embeddings"):
        hf.load(str(tmp_path), one_device())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_files_of_transformers_are_read(gqa, tmp_path, dtype):
    truth.save(truth.make(GQA, is_rater=False).to(getattr(torch, dtype)), tmp_path)
    numpy_dtype = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float16
    rounded = jax.tree.map(lambda leaf: np.asarray(leaf).astype(numpy_dtype).astype(np.float32), gqa.params)
    assert_trees_equal(hf.load(str(tmp_path), one_device()), rounded)


def test_transformers_4_configs_are_read(gqa):
    """Files written before transformers 5 keep the rotary settings in `rope_theta` and `rope_scaling`."""
    from qurating_jax.models.config import RopeScaling
    from qurating_jax.models.hf_config import from_hf

    document = json.loads((gqa.directory / hf.CONFIG).read_text())
    del document["rope_parameters"]
    document |= {"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 2.0}}
    config, _ = from_hf(document, where="here")
    assert config == dataclasses.replace(
        gqa.config, rope_theta=500.0, rope_scaling=RopeScaling(kind="linear", factor=2.0)
    )
    config, _ = from_hf(document | {"rope_scaling": None}, where="here")
    assert config == dataclasses.replace(gqa.config, rope_theta=500.0)
