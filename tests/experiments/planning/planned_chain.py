"""A tiny experiment of real stages, for tests of plans: what it says before it runs, and what is there afterwards."""

from pathlib import Path

from qurating_jax import stages
from qurating_jax.experiments.files import load_experiment
from qurating_jax.experiments.graph import build

BASE = """
goal: [annotate, windows, eval_lm]
values: {budget: 0.4}
steps:
  corpus: {max_documents_per_domain: 60, max_chars: 1500, heldout_fraction: 0.2}
  tokenizer: {stage: train-tokenizer, input: [$corpus/train], vocab_size: 1024}
  tokenize:
    {input: [$corpus/train], tokenizer: $tokenizer, sequence_tokens: 64, validation_fraction: 0.1, num_workers: 1}
  train_lm:
    tokens: [$tokenize]
    architecture: {embed_dim: 64, mlp_dim: 64, num_layers: 1, num_heads: 2, num_kv_heads: 2, head_dim: 16}
    batch_sequences: 64
    loop: {checkpoint_steps: 10, keep_checkpoints: 2}
    held_out: {max_rows: 0}
  annotate: {input: [$corpus/train], language_model: [lm=$train_lm], window_tokens: 64}
  select: {input: [$annotate], strategy: uniform, budget_fraction: $budget, write: ids}
  windows:
    {stage: tokenize, input: [$annotate], selection: $select, tokenizer: $tokenizer, layout: segments,
     sequence_tokens: 128, min_tail_tokens: 16, num_workers: 1}
  eval_lm: {model: [model=$train_lm], input: [$corpus/heldout]}
"""


def make_graph(root: Path, text: str = BASE, name: str = "tiny", *, given=(), seeds=(0,)):
    """The graph of an experiment with this text, its outputs under `ROOT/out`."""
    (root / f"{name}.yaml").write_text(text)
    experiment = load_experiment(
        str(root / f"{name}.yaml"), scale="", given=given, config_of=stages.step_config, placeholders=True
    )
    return build([experiment], seeds, str(root / "out"), stages.step_config)


def node_of(graph, step):
    """The node that experiments call so."""
    return next(node for node in graph.nodes.values() if step in node.steps)


def run(graph, *steps):
    """Runs stages here, in the graph's order; none named: all."""
    for node in graph.nodes.values():
        if not steps or set(steps) & set(node.steps):
            stages.load(node.stage).main(node.config)
