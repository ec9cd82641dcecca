"""convert as a command: a checkpoint as a run's own export, there and back bit for bit, and what it refuses."""

import dataclasses
import json
import os

import numpy as np
import pytest
import tiny_hf as tiny
from safetensors.numpy import load_file

from qurating_jax import __main__ as command
from qurating_jax.models import hf
from qurating_jax.models.config import DecoderConfig
from qurating_jax.parallel.mesh import make_mesh
from qurating_jax.parallel.options import MeshShape
from qurating_jax.runtime import manifest
from qurating_jax.runtime.checkpoint import Checkpoints

STEP = 7


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """What a training run leaves: `run/checkpoints` and `run/hf`, of the same parameters."""
    root = tmp_path_factory.mktemp("convert")
    made = tiny.make_model(root / "run", 0)
    config, labels = hf.read_config(str(made))
    params = hf.load(str(made), make_mesh(MeshShape(fsdp=2)))
    document = {"model": dataclasses.asdict(config), "labels": list(labels), "adapters": False}
    with Checkpoints(str(root / "run" / "checkpoints"), keep=1) as checkpoints:
        checkpoints.save(STEP, {"params": params, "step": np.int32(STEP)}, document)
    return root


def run_here(*argv):
    return command.main([str(word) for word in argv])


def test_a_checkpoint_converts_to_the_run_s_own_export(places):
    argv = ["convert", "--to", "hf", "--input", places / "run", "--tokenizer", places / "run" / "tokenizer"]
    assert run_here(*argv, "--output", places / "converted") == 0
    names = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    for name in names:
        ours, theirs = ((places / of / "hf" / name).read_bytes() for of in ("converted", "run"))
        assert ours == theirs, name
    assert sorted(os.listdir(places / "converted" / "hf")) == sorted(names)
    assert manifest.read(str(places / "converted"))["counts"]["step"] == STEP


def test_hf_to_orbax_to_hf_is_the_same_bit_for_bit(places):
    assert run_here("convert", "--input", places / "run" / "hf", "--output", places / "orbax", "--mesh.fsdp", 2) == 0
    assert run_here("convert", "--to", "hf", "--input", places / "orbax", "--output", places / "back") == 0
    ours, theirs = (load_file(places / of / "hf" / "model.safetensors") for of in ("back", "run"))
    assert ours.keys() == theirs.keys()
    assert all(ours[name].tobytes() == theirs[name].tobytes() for name in theirs)
    counts = [manifest.read(str(places / name))["counts"] for name in ("orbax", "back")]
    assert counts == [{"parameters": sum(x.size for x in theirs.values()), "step": 0}] * 2


def test_convert_without_a_checkpoint(tmp_path, capsys):
    (tmp_path / "nothing").mkdir()
    (tmp_path / "nothing" / "file.json").write_text("{}")
    assert run_here("convert", "--to", "hf", "--input", tmp_path / "nothing", "--output", tmp_path / "never") == 1
    assert "no committed checkpoint" in capsys.readouterr().err


def test_a_checkpoint_that_is_not_there_is_named(places, tmp_path, capsys):
    argv = ["convert", "--to", "hf", "--input", places / "run", "--step", 8, "--output", tmp_path / "out"]
    assert run_here(*argv) == 1
    assert "no committed checkpoint of step 8" in capsys.readouterr().err


@pytest.mark.torch
@pytest.mark.parametrize("options", [["--to", "orbax"], ["--to", "hf"], ["--to", "hf", "--dtype", "bfloat16"]])
def test_a_check_compares_both_sides_with_transformers(places, tmp_path, capsys, options):
    pytest.importorskip("torch")
    where = places / "run" / "hf" if "orbax" in options else places / "run"
    argv = ["convert", *options, "--input", where, "--output", tmp_path / "out", "--check"]
    assert run_here(*argv) == 0
    assert "convert: transformers' logits reach" in capsys.readouterr().err
    assert run_here(*argv) == 0  # a finished one is checked again
    assert "convert: transformers' logits reach" in capsys.readouterr().err


@pytest.mark.torch
def test_a_check_fails_where_logits_or_tensors_differ(places, tmp_path, capsys):
    pytest.importorskip("torch")
    argv = ["convert", "--to", "hf", "--input", places / "run", "--output", tmp_path / "out", "--check"]
    assert run_here(*argv) == 0
    config = tmp_path / "out" / "hf" / "config.json"
    whole = json.loads(config.read_text())
    config.write_text(json.dumps(whole | {"rope_theta": 900.0}))
    assert run_here(*argv) == 1
    assert "logits differ by up to" in capsys.readouterr().err
    config.write_text(json.dumps(whole | {"num_hidden_layers": 1}))
    assert run_here(*argv) == 1
    assert "transformers finds {'unexpected_keys': ['model.layers.1." in capsys.readouterr().err


@pytest.mark.torch
def test_a_rater_is_checked_by_its_scores(tmp_path, capsys):
    pytest.importorskip("torch")
    made = tiny.make_model(tmp_path / "rater", 2)
    assert run_here("convert", "--input", made, "--output", tmp_path / "out", "--check") == 0
    assert "ours differ by" in capsys.readouterr().err


def test_a_checkpoint_of_adapters_is_no_model(tmp_path, capsys):
    document = {"model": dataclasses.asdict(DecoderConfig()), "labels": ["a"], "adapters": True}
    with Checkpoints(str(tmp_path / "run" / "checkpoints"), keep=1) as checkpoints:
        checkpoints.save(0, {"params": {"adapters": np.zeros(2, np.float32)}}, document)
    assert run_here("convert", "--to", "hf", "--input", tmp_path / "run", "--output", tmp_path / "out") == 1
    assert "hold low-rank adapters alone" in capsys.readouterr().err
