"""eval-lm as a command: figures against a loop over texts, learning curves, differences, what is held out."""

import dataclasses
import json
import math
import signal
import subprocess
import sys

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_hf as tiny

from qurating_jax import __main__ as command
from qurating_jax.data.tokenizer import load_tokenizer
from qurating_jax.models import hf
from qurating_jax.models.config import ComputeConfig
from qurating_jax.parallel.mesh import make_mesh
from qurating_jax.parallel.options import MeshShape
from qurating_jax.runtime import manifest
from qurating_jax.runtime.checkpoint import Checkpoints
from qurating_jax.runtime.errors import UserError
from qurating_jax.scoring.likelihood import LanguageModel
from qurating_jax.training.fit import export

STEPS = (10, 20)
COMPUTE = ComputeConfig()


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """`docs.jsonl`; `run`, whose checkpoints are a model with noise that its export lacks; `other`; `rater`."""
    root = tmp_path_factory.mktemp("eval_lm")
    made = tiny.make_model(root / "run", 0)
    config, labels = hf.read_config(str(made))
    params = hf.load(str(made), make_mesh(MeshShape(data=1), jax.devices()[:1]))
    document = {"model": dataclasses.asdict(config), "labels": list(labels), "adapters": False}
    with Checkpoints(str(root / "run" / "checkpoints"), keep=2) as checkpoints:
        for step, noise in zip(STEPS, (0.3, 0.0), strict=True):
            checkpoints.save(step, {"params": noisy(params, noise), "step": np.int32(step)}, document)
    export(str(root / "other"), noisy(params, 0.1), config, load_tokenizer(str(made)))
    tiny.make_model(root / "rater", 2)
    rng = np.random.default_rng(0)
    words = ["the", "cell", "wall", "of", "a", "plant", "is", "made", "of", "cellulose", "naïve", "🙂", "proof", "\n"]
    with open(root / "docs.jsonl", "w") as stream:
        for number in range(30):
            text = " ".join(rng.choice(words, rng.integers(1, 90)))
            row = {"id": f"d{number}", "text": text, "meta": {"kind": "even" if number % 2 == 0 else "odd"}}
            stream.write(json.dumps(row) + "\n")
        stream.write(json.dumps({"id": "one", "text": "a plant is it", "meta": {"kind": "alone"}}) + "\n")
        stream.write(json.dumps({"id": "none", "text": "", "meta": {"kind": "empty"}}) + "\n")
        stream.write(json.dumps({"id": "stray", "text": "In 1815 Napoleon lost"}) + "\n")
    return root


def noisy(params, size):
    def changed(x):
        return x + size * jax.random.normal(jax.random.key(5), x.shape) if x.ndim > 2 else x

    return jax.tree.map(changed, params)


def run_here(*argv):
    return command.main([str(word) for word in argv])


def evaluate(places, output, *argv, model=None):
    options = [] if "--input" in argv else ["--input", places / "docs.jsonl"]  # given twice it would be both
    options += ["--domain_field", "meta.kind", "--output", places / output]
    return run_here("eval-lm", "--model", *(model or [places / "run" / "hf"]), *options, *argv)


def result(places, output):
    return json.loads((places / output / "eval.json").read_text())


def rows_of(places, output):
    return pq.read_table(places / output / "documents.parquet").to_pylist()


@pytest.fixture(scope="module")
def curve(places):
    """Both checkpoints of the run, its export and another model, in one table."""
    models = [f"c={places}/run@all", f"export={places}/run/hf", places / "other"]
    argv = ["eval-lm", "--model", *models, "--input", places / "docs.jsonl", "--domain_field", "meta.kind"]
    more = ["--context_tokens", 32, "--stride_tokens", 8, "--output", places / "curve"]
    assert run_here(*argv, *more) == 0
    return result(places, "curve")


def test_likelihoods_are_those_of_each_document_by_itself(places, curve):
    mesh = make_mesh(MeshShape())
    model = LanguageModel.load(str(places / "run" / "hf"), mesh, compute=COMPUTE, context_tokens=32, batch_tokens=64)
    tokenizer = load_tokenizer(str(places / "run" / "hf"))
    with open(places / "docs.jsonl") as stream:
        texts = {row["id"]: row["text"] for row in map(json.loads, stream)}
    rows = [row for row in rows_of(places, "curve") if row["model"] == "export"]
    assert [row["id"] for row in rows] == list(texts)
    for row in rows:
        [ids] = tokenizer.encode([texts[row["id"]]])
        nats, _ = model.negative_log_likelihoods(ids, np.array([0, len(ids)]), stride_tokens=8)
        assert row["num_tokens"] == max(len(ids) - 1, 0)
        assert row["nats"] == pytest.approx(nats[0], rel=1e-5, abs=1e-6)
        assert row["num_bytes"] <= len(texts[row["id"]].encode())


def test_figures_follow_from_the_documents(places, curve):
    rows = [row for row in rows_of(places, "curve") if row["model"] == "other"]
    of = curve["models"]["other"]
    assert set(of["domains"]) == {"even", "odd", "alone", "empty", "unknown"}
    groups = {name: [row for row in rows if row["domain"] == name] for name in of["domains"]} | {None: rows}
    for name, group in groups.items():
        found = of["all"] if name is None else of["domains"][name]
        nats, tokens, sizes = (sum(row[key] for row in group) for key in ("nats", "num_tokens", "num_bytes"))
        assert (found["num_tokens"], found["num_bytes"]) == (tokens, sizes)
        assert found["num_documents"] == sum(row["num_tokens"] > 0 for row in group)
        if not tokens:
            assert found["perplexity"] == dict.fromkeys(("value", "standard_error", "low", "high"))
            continue
        assert found["nats_per_token"]["value"] == pytest.approx(nats / tokens, rel=1e-12)
        assert found["perplexity"]["value"] == pytest.approx(math.exp(nats / tokens), rel=1e-12)
        assert found["bits_per_byte"]["value"] == pytest.approx(nats / math.log(2) / sizes, rel=1e-12)
        assert (found["bits_per_byte"]["low"] is None) == (name in ("alone", "unknown"))  # of one document
    domains = [row["bits_per_byte"]["value"] for name, row in of["domains"].items() if name != "empty"]
    assert of["macro"]["bits_per_byte"]["value"] == pytest.approx(np.mean(domains), rel=1e-12)
    assert of["macro"]["num_domains"] == 4


def test_a_learning_curve_comes_out_of_one_command(curve):
    assert curve["names"] == ["c@10", "c@20", "export", "other"]
    assert set(curve["models"]) == set(curve["names"])
    assert [curve["models"][name]["step"] for name in ("c@10", "c@20", "export")] == [10, 20, None]
    noisy, kept, exported = (curve["models"][name]["all"]["bits_per_byte"] for name in ("c@10", "c@20", "export"))
    assert kept == exported  # the same weights, from a checkpoint and from the export
    assert abs(noisy["value"] - kept["value"]) > 0.01


def test_differences_are_paired(places, curve):
    assert curve["baseline"] == "c@10"
    assert set(curve["differences"]) == {"c@20", "export", "other"}
    assert curve["differences"]["c@20"] == curve["differences"]["export"]
    of = curve["differences"]["other"]["all"]
    values = {}
    for row in rows_of(places, "curve"):
        values.setdefault(row["model"], []).append((row["nats"], row["num_tokens"]))
    (ours, tokens), (theirs, _) = (np.array(values[name]).T for name in ("other", "c@10"))
    assert of["nats_per_token"]["value"] == pytest.approx((ours - theirs).sum() / tokens.sum(), rel=1e-9)
    some = tokens > 0
    assert of["share_better"] == np.mean(ours[some] < theirs[some])
    gap = ours[some] - theirs[some] - of["nats_per_token"]["value"] * tokens[some]
    error = math.sqrt(some.sum() / (some.sum() - 1) * (gap**2).sum()) / tokens.sum()
    assert of["nats_per_token"]["standard_error"] == pytest.approx(error, rel=1e-9)


def test_a_second_run_does_nothing_and_other_models_are_refused(places, curve, capsys):
    assert evaluate(places, "again", "--context_tokens", 32) == 0
    before = (places / "again" / "eval.json").stat().st_mtime_ns
    assert evaluate(places, "again", "--context_tokens", 32, "--batch_tokens", 99) == 0
    assert (places / "again" / "eval.json").stat().st_mtime_ns == before
    assert evaluate(places, "again", "--context_tokens", 32, model=[places / "other"]) == 1
    assert "holds another run" in capsys.readouterr().err
    counts = manifest.read(str(places / "again"))["counts"]
    assert (counts["documents"], counts["domains"], counts["trained_on"], counts["rejected"]) == (33, 5, 0, 0)
    assert counts["models"]["run"]["perplexity"] > 1


def test_the_tables_say_what_was_done(places, capsys):
    assert evaluate(places, "shown", model=[places / "run" / "hf", places / "other"]) == 0
    out = capsys.readouterr().out
    for words in (
        "Less run, on the same documents",
        "Bits per byte by domain",
        "windows of up to 64 tokens, 63 further",
    ):
        assert words in out


def test_a_document_s_first_token_after_an_eos(places):
    assert evaluate(places, "eos", "--bos", "eos", "--context_tokens", 16) == 0
    [tokenizer] = [load_tokenizer(str(places / "run" / "hf"))]
    with open(places / "docs.jsonl") as stream:
        for row, text in zip(rows_of(places, "eos"), (json.loads(line)["text"] for line in stream), strict=True):
            [ids] = tokenizer.encode([text])
            assert (row["num_tokens"], row["num_bytes"]) == (len(ids), len(text.encode()))
    assert result(places, "eos")["bos"] == "eos"


def test_tokenizers_that_differ_are_compared_by_bytes_alone(places, tmp_path):
    from qurating_jax.data.tokenizer import train_byte_level_bpe

    config, _ = hf.read_config(str(places / "other"))
    params = hf.load(str(places / "other"), make_mesh(MeshShape(data=1), jax.devices()[:1]))
    export(str(tmp_path / "bytes"), params, config, train_byte_level_bpe(["x"], 257))
    assert evaluate(places, "tokenizers", model=[places / "run" / "hf", tmp_path / "bytes"]) == 0
    found = result(places, "tokenizers")
    tokens = [of["all"]["num_tokens"] for of in found["models"].values()]
    assert tokens[0] != tokens[1]
    of = found["differences"]["bytes"]
    assert of["all"]["nats_per_token"] is None
    assert of["macro"]["nats_per_token"] is None
    values = {name: of["all"]["bits_per_byte"]["value"] for name, of in found["models"].items()}
    assert of["all"]["bits_per_byte"]["value"] == pytest.approx(values["bytes"] - values["run"], rel=1e-6)


# Kills the command when everything is computed and one of its two files stands.
KILLED = """
import os, signal, sys
from qurating_jax.__main__ import main
from qurating_jax.runtime import storage
write_json = storage.write_json
def killed(path, value):
    if path.endswith("eval.json"):
        os.kill(os.getpid(), signal.SIGKILL)
    write_json(path, value)
storage.write_json = killed
sys.exit(main(sys.argv[1:]))
"""


def test_a_killed_run_does_not_look_finished_and_the_same_command_finishes_it(places, tmp_path):
    options = ["--input", places / "docs.jsonl", "--domain_field", "meta.kind", "--max_documents", 5]
    argv = [str(word) for word in ("eval-lm", "--model", places / "other", *options, "--output", tmp_path / "out")]
    ended = subprocess.run([sys.executable, "-c", KILLED, *argv], capture_output=True, timeout=240, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert (tmp_path / "out" / "documents.parquet").exists()
    with pytest.raises(UserError, match="unfinished output of `qurating eval-lm`"):
        manifest.read(str(tmp_path / "out"))
    assert command.main(argv) == 0
    assert len(result(tmp_path, "out")["models"]) == 1


# ---- held out means held out


@pytest.fixture
def tokenized(places, tmp_path):
    """What tokenize leaves of some of the documents, as far as it counts here."""
    where = str(tmp_path / "tokens")
    run = manifest.begin(where, stage="tokenize", config={}, identity={}, inputs={}, overwrite=False)
    ids = ["d3", "d3", "elsewhere", "d4", "d29"]
    pq.write_table(pa.table({"id": ids, "num_tokens": [1] * 5}), tmp_path / "tokens" / "rows.parquet")
    manifest.finish(run, {})
    return where


def test_documents_of_the_training_rows_are_left_out(places, tokenized):
    assert evaluate(places, "heldout", "--trained_on", tokenized, "--overwrite") == 0
    ids = [row["id"] for row in rows_of(places, "heldout")]
    assert len(ids) == 30
    assert not {"d3", "d4", "d29"} & set(ids)
    assert result(places, "heldout")["documents"]["trained_on"] == 3


def test_documents_of_the_training_rows_are_refused(places, tokenized, tmp_path, capsys):
    argv = ["--trained_on", tokenized, "--on_trained", "error", "--output", tmp_path / "out"]
    assert evaluate(places, "unused", *argv) == 1
    assert "document d3 is in the training rows" in capsys.readouterr().err
    assert not (tmp_path / "out" / "manifest.json").exists()
    # The first documents alone are none of them.
    assert evaluate(places, "unused", *argv, "--max_documents", 3, "--overwrite") == 0


# ---- errors in one line


@pytest.mark.parametrize(
    ("models", "argv", "code", "message"),
    [
        (["rater/hf"], [], 1, "a rater, not a language model"),
        (["run/hf", "x=other", "x=other"], [], 1, "two are called x; give each as NAME=PATH"),
        (["run/hf", "run"], [], 1, "run: no config.json"),
        (["run@15"], [], 1, "no checkpoint of step 15; kept are those of 10, 20"),
        (["other@all"], [], 1, "no committed checkpoint"),
        (["nowhere/at/all"], [], 1, "no such directory"),
        (["run/hf"], ["--context_tokens", 65], 1, "up to 64 tokens, not 65"),
        (["run/hf"], ["--context_tokens", 1], 2, "one token predicts nothing"),
        (["run/hf"], ["--context_tokens", 16, "--stride_tokens", 16], 2, "a stride above 15 would leave tokens out"),
        (["run/hf"], ["--stride_tokens", 0], 2, "stride_tokens is 0"),
        (["run/hf"], ["--level", 1], 2, "between 0 and 1"),
        (["run/hf"], ["--trained_on", "run/hf"], 1, "not an output of `qurating tokenize`"),
        (["run/hf"], ["--input", "nothing.jsonl"], 1, "no such file"),
        (["run/hf"], ["--input", "empty.jsonl"], 1, "nothing to predict"),
        (["bare"], [], 1, "no tokenizer of its own"),
        (["small"], ["--tokenizer", "run/tokenizer"], 1, "the model 100"),
        (["run/hf"], ["--tokenizer", "othertok"], 1, "not the tokenizer that run/hf was trained with"),
    ],
)
def test_a_wrong_option_is_one_line(places, tmp_path, monkeypatch, capsys, models, argv, code, message):
    monkeypatch.chdir(places)
    broken_models(places)
    assert evaluate(places, "wrong", *argv, "--output", tmp_path / "out", model=models) == code
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
    assert not (tmp_path / "out" / "manifest.json").exists()


def broken_models(places):
    """`bare` has no tokenizer, `small` fewer tokens than its; `empty.jsonl` nothing to predict."""
    if (places / "empty.jsonl").exists():
        return
    from qurating_jax.data.tokenizer import train_byte_level_bpe
    from qurating_jax.models import llama
    from qurating_jax.models.config import DecoderConfig

    config, _ = hf.read_config(str(places / "run" / "hf"))
    hf.save(str(places / "bare"), hf.load(str(places / "other"), make_mesh(MeshShape())), config)
    small = DecoderConfig(vocab_size=100, num_layers=1)
    hf.save(str(places / "small"), llama.init(small, jax.random.key(0)), small)
    train_byte_level_bpe(["x"], 257).save(str(places / "othertok"))
    (places / "empty.jsonl").write_text('{"id": "a", "text": ""}\n')


def test_weights_that_are_broken_are_named(places, tmp_path, capsys):
    config, _ = hf.read_config(str(places / "other"))
    params = hf.load(str(places / "other"), make_mesh(MeshShape(data=1), jax.devices()[:1]))
    params["norm"]["scale"] = params["norm"]["scale"] * np.float32(np.nan)
    export(str(tmp_path / "broken"), params, config, load_tokenizer(str(places / "other")))
    assert evaluate(places, "broken-out", model=[tmp_path / "broken"]) == 1
    assert "broken: its likelihood of document d0 is not finite" in capsys.readouterr().err
    assert not (places / "broken-out" / "eval.json").exists()


def test_a_dry_run_writes_nothing(places, capsys):
    assert evaluate(places, "dry", "--dry_run", model=[f"{places}/run@all"]) == 0
    assert "would evaluate run@10, run@20 on the documents of 1 file(s)" in capsys.readouterr().out
    assert not (places / "dry").exists()
