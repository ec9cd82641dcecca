"""Two updates of a language model against PyTorch: padded rows, AdamW, clipping, schedule, accumulation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from tiny_training import compare_updates, mesh  # noqa: E402  (needs nothing of torch, but belongs here)

from qurating_jax.models import hf  # noqa: E402
from qurating_jax.models.config import ComputeConfig  # noqa: E402
from qurating_jax.training.losses import next_token_loss  # noqa: E402
from qurating_jax.training.optim import learning_rates, optimizer  # noqa: E402
from qurating_jax.training.options import OptimConfig  # noqa: E402
from qurating_jax.training.state import TrainState  # noqa: E402
from qurating_jax.training.step import make_step  # noqa: E402

pytestmark = pytest.mark.torch

ROWS, WIDTH, VOCAB, STEPS, TOTAL = 4, 24, 61, 2, 20
OPTIM = OptimConfig(learning_rate=1e-2, warmup_fraction=0.2, weight_decay=0.1, epsilon=1e-6, clip_norm=0.5)
CONFIG = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
}  # fmt: skip


def make_model(tied):
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**CONFIG, tie_word_embeddings=tied)).float()
    model.config._attn_implementation = "eager"
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.3 * noise if name.endswith("norm.weight") else noise / parameter.shape[-1] ** 0.5)
    return model.train()


def make_rows(step):
    """Texts of very unequal lengths: a mean of the micro-batches' means would differ."""
    generator = np.random.default_rng(step)
    lengths = np.array([WIDTH, 3, generator.integers(5, WIDTH), 1], np.int32)
    return generator.integers(0, VOCAB, (ROWS, WIDTH)).astype(np.int32), lengths


def torch_updates(model):
    """The mean over all predicted tokens of a step, by autograd; AdamW with matrices decayed."""
    plain = [parameter for name, parameter in model.named_parameters() if "norm" in name]
    matrices = [parameter for name, parameter in model.named_parameters() if "norm" not in name]
    groups = [{"params": matrices, "weight_decay": OPTIM.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(
        groups, lr=OPTIM.learning_rate, betas=(OPTIM.beta1, OPTIM.beta2), eps=OPTIM.epsilon, fused=True
    )
    warmup = OPTIM.warmup_fraction * TOTAL
    found = []
    for step in range(STEPS):
        tokens, lengths = make_rows(step)
        mask = torch.from_numpy(np.arange(WIDTH) < lengths[:, None])
        ids = torch.from_numpy(tokens).long()
        labels = torch.where(mask, ids, -100)
        adamw.zero_grad()
        loss = model(ids, attention_mask=mask.long(), labels=labels).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIM.clip_norm)
        for group in adamw.param_groups:
            group["lr"] = OPTIM.learning_rate * (step + 1) / (warmup + 1)
        adamw.step()
        found.append((float(loss.detach()), float(norm)))
    return found


def packed(tokens, lengths):
    """The same texts, two to a row of twice the width."""
    shape = (ROWS // 2, 2 * WIDTH)
    batch = {name: np.zeros(shape, np.int32) for name in ("tokens", "segment_ids", "positions")}
    for row in range(ROWS // 2):
        start = 0
        for number in (0, 1):
            size = lengths[2 * row + number]
            part = slice(start, start + size)
            batch["tokens"][row, part] = tokens[2 * row + number, :size]
            batch["segment_ids"][row, part], batch["positions"][row, part] = number + 1, np.arange(size)
            start += size
    return batch


def batch_of(step, form, accumulation):
    tokens, lengths = make_rows(step)
    batch = packed(tokens, lengths) if form == "packed" else {"tokens": tokens, "lengths": lengths}
    return {name: array.reshape(accumulation, -1, *array.shape[1:]) for name, array in batch.items()}


@pytest.fixture(scope="module", params=[False, True], ids=["own-head", "tied"])
def torch_run(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("torch")
    model = make_model(request.param)
    model.save_pretrained(directory / "before")
    found = torch_updates(model)
    model.save_pretrained(directory / "after")
    return directory, found


@pytest.mark.parametrize(("form", "accumulation"), [("padded", 1), ("padded", 2), ("packed", 2)])
def test_two_updates_equal_torch(torch_run, form, accumulation):
    directory, wanted = torch_run
    config, _ = hf.read_config(str(directory / "before"))
    params = hf.load(str(directory / "before"), mesh())
    start = jax.tree.map(np.array, params)
    tx = optimizer(OPTIM, TOTAL)
    compute = ComputeConfig(scan_layers=form == "padded", loss_chunk_tokens=10)
    step = make_step(lambda params, batch: next_token_loss(params, config, batch, compute=compute), tx)
    state = TrainState(params, tx.init(params), jnp.zeros((), jnp.int32))
    for number, (loss, norm) in enumerate(wanted):
        assert norm > 2 * OPTIM.clip_norm  # clipping has its say
        state, metrics = step(state, batch_of(number, form, accumulation))
        assert float(metrics["count"]) == (make_rows(number)[1] - 1).sum()
        assert float(metrics["loss"]) == pytest.approx(loss, rel=1e-5)
        assert float(metrics["grad_norm"]) == pytest.approx(norm, rel=2e-5)
    reached = sum(float(learning_rates(OPTIM, TOTAL)(number)) for number in range(STEPS))
    after = hf.load(str(directory / "after"), mesh())
    compared = compare_updates(start, state.params, after, least=0.25 * reached, atol=5e-3 * reached)
    assert compared > 0.6 * sum(leaf.size for leaf in jax.tree.leaves(start) if VOCAB not in leaf.shape)


def test_the_schedule_is_that_of_transformers():
    """Linear warm-up and cosine to a tenth; theirs starts at a rate of 0, ours one step on."""
    warmup = round(OPTIM.warmup_fraction * TOTAL)
    adamw = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=OPTIM.learning_rate)
    schedule = transformers.get_cosine_with_min_lr_schedule_with_warmup(
        adamw, warmup, TOTAL, min_lr_rate=OPTIM.final_fraction
    )
    theirs = []
    for _ in range(TOTAL + 1):
        theirs.append(schedule.get_last_lr()[0])
        adamw.step()
        schedule.step()
    ours = [float(rate) for rate in map(learning_rates(OPTIM, TOTAL), range(TOTAL + 1))]
    np.testing.assert_allclose(ours[warmup:], theirs[warmup:], rtol=1e-5)
    assert ours[TOTAL] == pytest.approx(OPTIM.final_fraction * OPTIM.learning_rate, rel=1e-5)
    assert 0 < ours[0] < ours[warmup - 1] < ours[warmup] == pytest.approx(OPTIM.learning_rate)
