"""Twenty steps of a small language model: its losses as they were, one compilation, no buffer donated in vain.

The golden losses were written by `python tests/training/test_golden_loss.py` on an x86 CPU in float32. They are
compared to 2e-5, not exactly: another CPU or XLA version orders sums differently. Compiled with and without XLA's
optimisations, and on meshes of one and of eight devices, they differ by 2e-6 at most; what the test is for (the order
of rows, the schedule, the initialisation, the loss) moves them by far more.
"""

import json
import pathlib

import jax
import numpy as np
import pytest

from qurating_jax.data.batches import BatchBuilder, batches_of_order, micro_batches
from qurating_jax.data.order import RowOrder
from qurating_jax.models.base import BaseModel
from qurating_jax.models.config import ComputeConfig, DecoderConfig
from qurating_jax.parallel.mesh import make_mesh
from qurating_jax.parallel.options import MeshShape
from qurating_jax.training.fit import fit
from qurating_jax.training.losses import next_token_loss
from qurating_jax.training.options import LoopConfig, OptimConfig, ValidationConfig
from qurating_jax.training.state import full_fine_tuning
from qurating_jax.training.validation import Validation

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "lm_losses.json"
STEPS, BATCH, T = 20, 8, 64
RTOL = 2e-5
MODEL = DecoderConfig(
    vocab_size=256, embed_dim=64, mlp_dim=128, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16, max_positions=T
)
TEXT = """A chemist who wishes to know how much of a salt a solution holds does not boil it dry. She adds,
drop by drop, a second solution of known strength until a dye that she has put in changes its
colour, reads off the volume and computes. The method is old, cheap and exact to a part in a
thousand; it teaches patience as well. In the harbour, meanwhile, the fishing boats came in on the
evening tide. Nobody on the quay spoke much. Prices had fallen that week, from 4.20 to 3.85 a kilo,
and two of the crews had been told that the cannery would take nothing on Friday. "We shall see,"
said the oldest of them, and went on mending his net. def mean(values): return sum(values) /
len(values) if values else 0.0
"""


def rows():
    """Packed rows of the text's bytes: two segments each, cut at places that differ from row to row."""
    content = np.frombuffer(TEXT.encode() * 3, np.uint8).astype(np.int32)
    tokens = content[: len(content) // T * T].reshape(-1, T)
    cuts = 5 + 7 * np.arange(len(tokens)) % (T - 10)
    places = np.arange(T)
    segments = 1 + (places >= cuts[:, None]).astype(np.int32)
    positions = np.where(segments == 1, places, places - cuts[:, None]).astype(np.int32)
    return {"tokens": tokens, "segment_ids": segments, "positions": positions}


def train(directory, *, on=(1, 1, 1), num_steps=STEPS, accumulation=2, validate=True):
    content = rows()
    mesh = make_mesh(MeshShape(data=on[0], fsdp=on[1], tensor=on[2]), jax.devices()[: int(np.prod(on))])
    order = RowOrder([len(content["tokens"])], seed=1, kind="shuffled")
    fetch = batches_of_order(order, lambda _, wanted: {name: array[wanted] for name, array in content.items()}, BATCH)
    evaluate = jax.jit(lambda params: next_token_loss(params, MODEL, content, compute=ComputeConfig())[0])
    fit(
        MODEL,
        full_fine_tuning(BaseModel(MODEL, None), mesh, seed=1),
        lambda params, batch: next_token_loss(params, MODEL, batch, compute=ComputeConfig(), z_loss=1e-4),
        BatchBuilder(fetch, shape=micro_batches(BATCH, accumulation, mesh), mesh=mesh),
        mesh=mesh,
        num_steps=num_steps,
        optim_config=OptimConfig(learning_rate=3e-3),
        loop_config=LoopConfig(log_steps=1, checkpoint_steps=10),
        title="golden",
        directory=str(directory),
        validation=Validation(lambda params: {"loss": float(evaluate(params))}, ValidationConfig(every_steps=7))
        if validate
        else None,
    )
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines]


@pytest.fixture(scope="module")
def compiled():
    """The names of the functions that XLA compiles, as they come."""
    names = []

    def listen(event, duration, *, fun_name="", **more):
        if event.endswith("backend_compile_duration"):
            names.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture(scope="module")
def golden_run(tmp_path_factory, compiled):
    directory = tmp_path_factory.mktemp("golden")
    compiled.clear()
    losses = train(directory)
    return losses, list(compiled)


def test_the_losses_are_those_on_file(golden_run):
    np.testing.assert_allclose(golden_run[0], json.loads(GOLDEN.read_text()), rtol=RTOL)
    assert golden_run[0][-1] < golden_run[0][0] - 1.5


def steps_among(names):
    """`jit(step)`, as the name of a jitted function is spelt here or by another JAX version."""
    return sum(name.strip("jit_()") == "step" for name in names)


def test_a_step_is_compiled_once(golden_run):
    """Over accumulation, logging, validation, saving; warnings (buffers donated in vain) are errors in these tests."""
    assert steps_among(golden_run[1]) == 1
    assert len(golden_run[1]) < 40


def test_a_resumed_run_compiles_it_once_too(tmp_path, compiled, monkeypatch):
    class Stop(Exception):
        pass

    place, placed = BatchBuilder.place, []

    def stopping(self, local):
        placed.append(1)
        if len(placed) == 13:
            raise Stop
        return place(self, local)

    with monkeypatch.context() as patch:
        patch.setattr(BatchBuilder, "place", stopping)
        with pytest.raises(Stop):
            train(tmp_path)
    compiled.clear()
    losses = train(tmp_path)
    assert steps_among(compiled) == 1
    np.testing.assert_allclose(losses, json.loads(GOLDEN.read_text()), rtol=RTOL)


@pytest.mark.parametrize("on", [(8, 1, 1), (2, 2, 2)])
def test_meshes_agree(tmp_path, golden_run, on):
    losses = train(tmp_path, on=on, accumulation=1, validate=False)
    np.testing.assert_allclose(losses, golden_run[0], rtol=RTOL)


def test_a_schedule_of_one_step_more_is_noticed(tmp_path):
    losses = train(tmp_path, num_steps=STEPS + 1, validate=False)[:STEPS]
    assert max(abs(np.array(losses) / json.loads(GOLDEN.read_text()) - 1)) > 10 * RTOL


if __name__ == "__main__":
    import tempfile

    GOLDEN.write_text(json.dumps(train(pathlib.Path(tempfile.mkdtemp())), indent=0) + "\n")
