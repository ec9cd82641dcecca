"""The table of logical axes and the parameter trees of every variant cover each other."""

import dataclasses

import jax
import pytest
from tiny_models import LM, QWEN2, QWEN3, WINDOW

from qurating_jax.models import axes, hf, llama
from qurating_jax.models.axes import logical_axes, path_name
from qurating_jax.models.config import PRESETS, ArchitectureOverrides, DecoderConfig
from qurating_jax.parallel.rules import RULES

TIED = dataclasses.replace(LM, tie_embeddings=True)
VARIANTS = [config.with_head(head) for config in (LM, TIED, QWEN2, QWEN3, WINDOW) for head in (0, 3)]


def paths(tree):
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


@pytest.mark.parametrize("config", [*VARIANTS, *PRESETS.values()], ids=str)
def test_every_parameter_has_one_name_per_dimension(config):
    shapes = llama.abstract(config)
    names = logical_axes(shapes, is_rater=config.num_criteria > 0)
    sizes = {
        "layers": {config.num_layers},
        "embed": {config.embed_dim},
        "mlp": {config.mlp_dim},
        "heads": {config.num_heads},
        "kv_heads": {config.num_kv_heads},
        "head_dim": {config.head_dim},
        "vocab": {config.vocab_size},
        "criteria": {config.num_criteria},
        "norm": {config.embed_dim, config.head_dim},
    }
    for path, leaf in paths(shapes).items():
        entry = names
        for key in path.split("/"):
            entry = entry[key]
        assert len(entry) == leaf.ndim, path
        assert all(size in sizes[name] for name, size in zip(entry, leaf.shape, strict=True)), path
        RULES.spec(entry)  # no mesh axis twice


def test_no_entry_of_the_table_is_unused():
    used = {path for config in VARIANTS for path in paths(llama.abstract(config))}
    assert used == set(axes._AXES) | {"head/kernel"}


@pytest.mark.parametrize("config", VARIANTS, ids=str)
def test_hugging_face_table_covers_the_same_parameters(config):
    assert hf.tensor_table(config).keys() == paths(llama.abstract(config)).keys()


def test_unknown_parameter_is_refused():
    with pytest.raises(KeyError, match="blocks/attention/quarry"):
        logical_axes({"blocks": {"attention": {"quarry": jax.ShapeDtypeStruct((1,), "float32")}}}, is_rater=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 6, "num_kv_heads": 4}, "num_heads .6. must be a multiple of num_kv_heads .4."),
        ({"head_dim": 7}, "head_dim is 7; the rotary embedding needs an even number"),
        ({"num_layers": 0}, "num_layers is 0; it must be at least 1"),
        ({"num_criteria": -1}, "num_criteria is -1"),
    ],
)
def test_impossible_architectures_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        DecoderConfig(**changes)


def test_architecture_overrides_change_only_what_is_given():
    assert not ArchitectureOverrides().any()
    assert ArchitectureOverrides().apply(LM) == LM
    overrides = ArchitectureOverrides(num_layers=5, tie_embeddings=False)
    assert overrides.any()
    assert overrides.apply(TIED) == dataclasses.replace(LM, num_layers=5)


@pytest.mark.parametrize(
    ("name", "millions"),
    [("llama-160m", 162.4), ("sheared-llama-1.3b", 1345.4), ("sheared-llama-2.7b", 2701.6)],
)
def test_presets_have_the_published_number_of_parameters(name, millions):
    """JackFram/llama-160m, princeton-nlp/Sheared-LLaMA-1.3B and -2.7B."""
    count = sum(leaf.size for leaf in jax.tree.leaves(llama.abstract(PRESETS[name])))
    assert count / 1e6 == pytest.approx(millions, abs=0.06)
