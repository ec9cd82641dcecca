"""Rows of trees against plain causal rows of every path from a root, the truth of what a continuation is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models as tiny

from qurating_jax.models import llama
from qurating_jax.models.tree_attention import TreeAttention

# Tokens and parent of each node, an ancestor before its descendants: two trees in a row, two levels under one root.
NODES = [(5, None), (4, 0), (3, 1), (1, 1), (6, 0), (2, 4), (7, None), (150, 6), (2, 7)]
CONFIGS = {"gqa": tiny.LM, "qwen2": tiny.QWEN2, "qwen3": tiny.QWEN3, "window": tiny.WINDOW}
PADDING = 6


def laid_out():
    """Tokens, nodes, ancestors and positions of the row, and the places of each node's path."""
    rng = np.random.default_rng(0)
    nodes, ancestors, positions, paths, line_of, start = [], [], [], [], {}, 0
    for number, (size, parent) in enumerate(NODES):
        above = [] if parent is None else paths[parent]
        line = [] if parent is None else [parent, *line_of[parent]]
        line_of[number] = line
        nodes += [number] * size
        ancestors += [[*line, -2, -2][:2]] * size
        positions += range(len(above), len(above) + size)
        paths.append(above + list(range(start, start + size)))
        start += size
    nodes += [-1] * PADDING
    ancestors += [(-2, -2)] * PADDING
    positions += [0] * PADDING
    tokens = rng.integers(0, tiny.LM.vocab_size, (2, start + PADDING)).astype(np.int32)
    return tokens, np.array(nodes, np.int32), np.array(ancestors, np.int32), np.array(positions, np.int32), paths


def both(array):
    return jnp.asarray(np.stack([array, array]))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_path_is_read_as_if_it_stood_alone(name):
    config = CONFIGS[name]
    params = tiny.random_params(config)
    tokens, nodes, ancestors, positions, paths = laid_out()
    ends = np.array([path[-1] for path in paths], np.int32)

    def run(only_ends):
        attend = TreeAttention(both(nodes), both(ancestors), both(positions), both(ends))
        return llama.hidden_states(
            params, config, jnp.asarray(tokens), positions_BT=both(positions), attend=attend, only_ends=only_ends,
            compute=tiny.FLOAT32,
        )  # fmt: skip

    got, at_ends = np.asarray(run(False)), np.asarray(run(True))
    for number, path in enumerate(paths):
        want = np.asarray(llama.hidden_states(params, config, jnp.asarray(tokens[:, path]), compute=tiny.FLOAT32))
        tolerance = 2e-5 * np.abs(want).max()
        np.testing.assert_allclose(got[:, path], want, rtol=0, atol=tolerance)
        np.testing.assert_allclose(at_ends[:, number], want[:, -1], rtol=0, atol=tolerance)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("name", ["gqa", "window"])
def test_rows_without_branches_are_rows_of_segments(name, whole):
    config = CONFIGS[name]
    params = tiny.random_params(config)
    tokens = jnp.asarray(np.random.default_rng(1).integers(0, 64, (2, 40)).astype(np.int32))
    sizes = [40] if whole else [17, 20]
    nodes = np.repeat([*range(len(sizes)), -1], [*sizes, 40 - sum(sizes)]).astype(np.int32)
    positions = np.concatenate([np.arange(size) for size in [*sizes, 40 - sum(sizes)]]).astype(np.int32)
    stops = np.cumsum(sizes)
    ends = (stops - 1).astype(np.int32)
    attend = TreeAttention(None if whole else both(nodes), None, both(positions), both(ends))
    for only_ends in (False, True):
        got = np.asarray(
            llama.hidden_states(
                params, config, tokens, positions_BT=both(positions), attend=attend, only_ends=only_ends,
                compute=tiny.FLOAT32,
            )
        )  # fmt: skip
        for number, (size, stop) in enumerate(zip(sizes, stops, strict=True)):
            want = np.asarray(llama.hidden_states(params, config, tokens[:, stop - size : stop], compute=tiny.FLOAT32))
            found = got[:, number] if only_ends else got[:, stop - 1]
            np.testing.assert_allclose(found, want[:, -1], rtol=0, atol=2e-5 * np.abs(want).max())


def test_a_mask_is_made_once_and_holds_in_bfloat16():
    """Scores and softmax are float32 whatever the dtype of keys and values."""
    tokens, nodes, ancestors, positions, paths = laid_out()
    ends = np.array([path[-1] for path in paths], np.int32)
    attend = TreeAttention(both(nodes), both(ancestors), both(positions), both(ends))
    keys = jax.random.split(jax.random.key(0), 3)
    T = tokens.shape[1]
    query = jax.random.normal(keys[0], (2, T, 4, 8), jnp.float32)
    key, value = (jax.random.normal(one, (2, T, 2, 8), jnp.float32) for one in keys[1:])
    want = attend(query, key, value, sliding_window=None)
    got = attend(*(x.astype(jnp.bfloat16) for x in (query, key, value)), sliding_window=None)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(got, np.float32), np.asarray(want), rtol=0, atol=0.05)
