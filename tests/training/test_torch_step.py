"""One whole update of a rater against PyTorch: the same weights, batch, loss, AdamW and gradient clipping."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from tiny_training import compare_updates, mesh  # noqa: E402  (needs nothing of torch, but belongs here)

from qurating_jax.models import hf  # noqa: E402
from qurating_jax.models.config import ComputeConfig  # noqa: E402
from qurating_jax.training.losses import bradley_terry_loss  # noqa: E402
from qurating_jax.training.optim import optimizer  # noqa: E402
from qurating_jax.training.options import OptimConfig  # noqa: E402
from qurating_jax.training.state import TrainState  # noqa: E402
from qurating_jax.training.step import make_step  # noqa: E402

pytestmark = pytest.mark.torch

CRITERIA, PAIRS, PAD = 2, 6, 0
LEARNING_RATE, DECAY, CLIP, EPSILON, BETAS = 1e-2, 0.1, 0.5, 1e-6, (0.9, 0.999)
CONFIG = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "pad_token_id": PAD,
    "num_labels": CRITERIA,
}  # fmt: skip


def make_model():
    torch.manual_seed(0)
    model = transformers.LlamaForSequenceClassification(transformers.LlamaConfig(**CONFIG)).float()
    model.config._attn_implementation = "eager"
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.3 * noise if name.endswith("norm.weight") else noise / parameter.shape[-1] ** 0.5)
    return model.train()


def make_batch():
    """Texts, and soft labels p(second preferred) of pairs with some that are missing or below the margin."""
    generator = np.random.default_rng(3)
    texts = [generator.integers(1, 61, size).astype(np.int32) for size in generator.integers(1, 25, 2 * PAIRS)]
    labels = generator.choice([0.0, 0.1, 0.2, 0.6, 0.9, 1.0], (PAIRS, CRITERIA)).astype(np.float32)
    valid = generator.random((PAIRS, CRITERIA)) < 0.8
    return texts, labels, valid


def torch_update(model, texts, labels, valid):
    """A right-padded batch, binary cross-entropy with logits, the mean over both orders of all pairs that count."""
    width = max(map(len, texts))
    tokens = torch.full((len(texts), width), PAD, dtype=torch.long)
    mask = torch.zeros((len(texts), width), dtype=torch.long)
    for row, text in enumerate(texts):
        tokens[row, : len(text)], mask[row, : len(text)] = torch.from_numpy(text.astype(np.int64)), 1
    scores = model(tokens, attention_mask=mask).logits.reshape(PAIRS, 2, CRITERIA)
    target = torch.from_numpy(labels)
    counted = torch.from_numpy(valid) & ((2 * target - 1).abs() >= 0.5 - 1e-6)
    losses = [
        torch.nn.functional.binary_cross_entropy_with_logits(sign * (scores[:, 1] - scores[:, 0]), p, reduction="none")
        for sign, p in ((1, target), (-1, 1 - target))
    ]
    loss = sum(one[counted].sum() for one in losses) / (2 * counted.sum())
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    plain = [parameter for name, parameter in model.named_parameters() if "norm" in name]
    matrices = [parameter for name, parameter in model.named_parameters() if "norm" not in name]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": plain, "weight_decay": 0.0}]
    torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS, eps=EPSILON).step()
    return float(loss.detach()), float(norm.detach()), int(2 * counted.sum())


def pack(texts, labels, valid, num_rows):
    """[1, num_rows, ...]: consecutive pairs in a row, longest text first."""
    groups = PAIRS // num_rows
    width = max(sum(map(len, texts[2 * groups * row : 2 * groups * (row + 1)])) for row in range(num_rows)) + 5
    batch = {
        "tokens": np.full((1, num_rows, width), 60, np.int32),
        "lengths": np.zeros((1, num_rows, 2 * groups), np.int32),
        "members": np.zeros((1, num_rows, groups, 2), np.int32),
        "labels": np.full((1, num_rows, groups, 2, 2, CRITERIA), 0.5, np.float32),
        "valid": np.zeros((1, num_rows, groups, 2, 2, CRITERIA), bool),
    }
    for row in range(num_rows):
        own = texts[2 * groups * row : 2 * groups * (row + 1)]
        order = sorted(range(len(own)), key=lambda index: -len(own[index]))
        content = np.concatenate([own[index] for index in order])
        batch["tokens"][0, row, : len(content)] = content
        batch["lengths"][0, row] = [len(own[index]) for index in order]
        for place, index in enumerate(order):
            batch["members"][0, row, index // 2, index % 2] = place
        part = slice(groups * row, groups * (row + 1))
        for i, j, p in ((0, 1, labels[part]), (1, 0, 1 - labels[part])):
            batch["labels"][0, row, :, i, j], batch["valid"][0, row, :, i, j] = p, valid[part]
    return batch


@pytest.mark.parametrize("num_rows", [1, 2])
def test_one_update_equals_torch(tmp_path, num_rows):
    model = make_model()
    model.save_pretrained(tmp_path / "before")
    texts, labels, valid = make_batch()
    loss, norm, count = torch_update(model, texts, labels, valid)
    assert norm > 2 * CLIP  # clipping has its say
    model.save_pretrained(tmp_path / "after")

    config, _ = hf.read_config(str(tmp_path / "before"))
    params = hf.load(str(tmp_path / "before"), mesh())
    start = jax.tree.map(np.array, params)
    tx = optimizer(
        OptimConfig(
            learning_rate=LEARNING_RATE, schedule="constant", warmup_fraction=0.0, weight_decay=DECAY,
            beta1=BETAS[0], beta2=BETAS[1], epsilon=EPSILON, clip_norm=CLIP,
        ),
        10,
    )  # fmt: skip
    compute = ComputeConfig(scan_layers=False)

    def loss_fn(params, batch):
        return bradley_terry_loss(
            params, config, batch, ((2 * PAIRS // num_rows, 32),), margin=0.5, label_temperature=1.0, compute=compute
        )

    state = TrainState(params, tx.init(params), jnp.zeros((), jnp.int32))
    state, metrics = make_step(loss_fn, tx)(state, pack(texts, labels, valid, num_rows))
    assert float(metrics["count"]) == count
    assert float(metrics["loss"]) == pytest.approx(loss, rel=1e-5)
    assert float(metrics["grad_norm"]) == pytest.approx(norm, rel=1e-5)
    after = hf.load(str(tmp_path / "after"), mesh())
    compared = compare_updates(start, state.params, after, least=0.5 * LEARNING_RATE, atol=2e-3 * LEARNING_RATE)
    assert compared > 0.7 * sum(leaf.size for leaf in jax.tree.leaves(start) if leaf.shape != (61, 32))
