import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from qurating_jax import config as configs
from qurating_jax.__main__ import main
from qurating_jax.data import verdicts
from qurating_jax.data.judgment_files import read_judgments
from qurating_jax.data.tokenizer import load_tokenizer, train_byte_level_bpe
from qurating_jax.pipeline import judge
from qurating_jax.runtime.errors import UsageError, UserError

REPOSITORY = Path(__file__).resolve().parents[2]
COLUMN = ["--judge.kind", "column", "--judge.score_field", "x", "--judge.criterion", "x"]

PROSE = (
    "The river rises in the hills because rain falls there in every month of the year. For example, in {year} the "
    "villages of Lower Ashby counted {number} days of rain. A farmer explained why the meadows stay green: the soil "
    "holds water, and it gives it back slowly. Children walk along the bank and look for stones; some keep them. "
)


def documents(path, n=40, **more):
    rows = [
        {
            "id": f"doc{i:02d}",
            "domain": ["web", "books"][i % 2],
            "text": PROSE.format(year=1900 + i, number=i) * (1 + i % 3),
        }
        | {"score": i / 10}
        for i in range(n)
    ]
    path.write_text("".join(json.dumps(row | more) + "\n" for row in rows))
    return rows


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    train_byte_level_bpe([PROSE] * 4, 400).save(str(directory))
    return str(directory)


@pytest.fixture
def settings(tmp_path, tokenizer):
    documents(tmp_path / "documents.jsonl")
    return {
        "input": (str(tmp_path / "documents.jsonl"),),
        "output": str(tmp_path / "judge"),
        "tokenizer": tokenizer,
        "tokens_min": 32,
        "tokens_max": 64,
    }


def files(directory):
    names = ("judgments.parquet", "verdicts.parquet")
    return [Path(directory, name).read_bytes() for name in names]


def test_judgments_and_verdicts_agree(settings):
    counts = judge.main(judge.Config(**settings, num_pairs=30))
    judgments = read_judgments([settings["output"]])
    assert len(judgments) == counts["num_groups"] == 30
    assert judgments.criteria == ("writing_style", "required_expertise", "facts_and_trivia", "educational_value")
    assert judgments.valid.sum() == counts["num_verdicts"] == 30 * 2 * 4

    verdicts = pq.read_table(Path(settings["output"], "verdicts.parquet")).to_pylist()
    assert {row["judge"] for row in verdicts} == {"offline text statistics"}
    second = {(row["group"], row["criterion"], row["first_id"]): row["p_second"] for row in verdicts}
    for group, (one, other) in enumerate(judgments.ids):
        for column, criterion in enumerate(judgments.criteria):
            forward, backward = second[group, criterion, one], second[group, criterion, other]
            expected = (forward + 1 - backward) / 2
            assert judgments.probabilities[group, 0, 1, column] == pytest.approx(expected, abs=1e-6)
    found = counts["criteria"]["writing_style"]
    style = [row["p_second"] for row in verdicts if row["criterion"] == "writing_style"]
    assert found["position_bias"] == pytest.approx(0.5 - np.mean(style), abs=1e-6)
    assert found["position_bias"] > 0
    assert 0 <= found["confident_0.8"] <= found["confident_0.5"] <= 1
    assert counts["judge"] == "offline text statistics"


def test_excerpts_are_pieces_of_equal_length_of_their_documents(settings, tmp_path):
    rows = {row["id"]: row for row in documents(tmp_path / "documents.jsonl")}
    judge.main(judge.Config(**settings))
    judgments = read_judgments([settings["output"]])
    assert len(judgments) == 20
    encode = load_tokenizer(settings["tokenizer"]).encode
    lengths = []
    for ids, texts, domains in zip(judgments.ids, judgments.texts, judgments.domains, strict=True):
        for name, text, domain in zip(ids, texts, domains, strict=True):
            assert text in rows[name]["text"]
            assert domain == rows[name]["domain"]
        one, other = (len(tokens) for tokens in encode(texts))
        assert abs(one - other) <= 3  # a cut at a token's edge may tokenize a little differently at the ends
        lengths.append(one)
    assert min(lengths) >= 30
    assert 62 <= max(lengths) <= 66
    assert len(set(lengths)) > 4


def test_the_same_bytes_again_and_from_any_order_of_rows(settings, tmp_path):
    judge.main(judge.Config(**settings, num_pairs=25))
    once = files(settings["output"])
    lines = (tmp_path / "documents.jsonl").read_text().splitlines()
    (tmp_path / "documents.jsonl").write_text("\n".join(reversed(lines)) + "\n")
    judge.main(judge.Config(**(settings | {"output": str(tmp_path / "other")}), num_pairs=25))
    assert files(tmp_path / "other") == once
    judge.main(judge.Config(**(settings | {"output": str(tmp_path / "seed")}), num_pairs=25, seed=1))
    assert files(tmp_path / "seed") != once


@pytest.mark.parametrize("hash_seed", ["0", "3"])
def test_the_same_bytes_in_every_process(settings, tmp_path, hash_seed):
    judge.main(judge.Config(**settings, num_pairs=10))
    options = settings | {"input": settings["input"][0], "output": str(tmp_path / "other"), "num_pairs": 10}
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    subprocess.run(
        [sys.executable, "-m", "qurating_jax", "judge", "run", *words],
        env=os.environ | {"PYTHONHASHSEED": hash_seed},
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
    )
    assert files(tmp_path / "other") == files(settings["output"])


def test_a_column_becomes_pairs_of_whole_documents(settings, tmp_path):
    rows = {row["id"]: row for row in documents(tmp_path / "documents.jsonl")}
    options = judge.JudgeConfig(kind="column", score_field="score", criterion="easiness", scale=2.0)
    config = judge.Config(
        input=settings["input"], output=settings["output"], judge=options, whole_documents=True, group_size=3
    )
    counts = judge.main(config)
    judgments = read_judgments([settings["output"]], ["easiness"])
    assert judgments.group_size == 3
    assert (len(judgments), counts["judge"]) == (13, "column score")
    for g, ids in enumerate(judgments.ids):
        assert judgments.texts[g] == tuple(rows[name]["text"] for name in ids)
        for i, j in ((0, 1), (2, 0), (1, 2)):
            difference = (rows[ids[j]]["score"] - rows[ids[i]]["score"]) / 2.0
            assert judgments.probabilities[g, i, j, 0] == pytest.approx(1 / (1 + np.exp(-difference)), rel=1e-6)
    assert counts["criteria"]["easiness"]["position_bias"] == pytest.approx(0, abs=1e-12)
    assert counts["criteria"]["easiness"]["order_consistency"] == 1.0


def test_documents_left_out_are_counted(settings, tmp_path):
    with open(tmp_path / "documents.jsonl", "a") as stream:
        for row in (
            {"id": "short", "text": "too short"},
            {"id": "doc00", "text": PROSE * 2},
            {"id": "no text"},
            {"id": "empty", "text": ""},
        ):
            stream.write(json.dumps(row) + "\n")
        stream.write("not json\n")
    with pytest.raises(UserError, match="line 43"):
        judge.main(judge.Config(**settings))
    counts = judge.main(judge.Config(**settings, on_bad_row="skip", overwrite=True))
    assert counts["num_rejected"] == 2
    assert (counts["num_documents"], counts["num_eligible"]) == (43, 40)
    assert (counts["num_too_short"], counts["num_repeated_ids"]) == (2, 1)
    assert len(Path(settings["output"], "rejected.jsonl").read_text().splitlines()) == 2
    texts = dict(
        pair
        for group, names in zip(*(lambda j: (j.texts, j.ids))(read_judgments([settings["output"]])), strict=True)
        for pair in zip(names, group, strict=True)
    )
    assert texts["doc00"] in PROSE.format(year=1900, number=0)  # the first of an id, not the repeated one


def test_dry_run_says_the_same_and_writes_nothing(settings):
    planned = judge.main(judge.Config(**settings, num_pairs=12, dry_run=True))
    assert not Path(settings["output"]).exists()
    counts = judge.main(judge.Config(**settings, num_pairs=12))
    assert planned.items() <= counts.items()
    assert planned["num_verdicts"] == 96


def test_a_finished_run_is_not_repeated_and_another_refused(settings):
    counts = judge.main(judge.Config(**settings, num_pairs=5))
    before = Path(settings["output"], "judgments.parquet").stat().st_mtime_ns
    assert judge.main(judge.Config(**settings, num_pairs=5)) == counts
    assert Path(settings["output"], "judgments.parquet").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="num_pairs was 5, now 6"):
        judge.main(judge.Config(**settings, num_pairs=6))


def test_an_interrupted_run_leaves_no_artifact_and_resumes(settings, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(verdicts, "write_verdicts", stop)
        with pytest.raises(KeyboardInterrupt):
            judge.main(judge.Config(**settings, num_pairs=5))
    assert not Path(settings["output"], "manifest.json").exists()
    counts = judge.main(judge.Config(**settings, num_pairs=5))
    assert counts["num_groups"] == 5
    assert Path(settings["output"], "manifest.json").exists()


def test_too_few_documents_and_too_many_pairs_say_what_to_do(settings):
    with pytest.raises(UserError, match=r"num_too_short 40.*lower tokens_min"):
        judge.main(judge.Config(**(settings | {"tokens_min": 5000, "tokens_max": 6000})))
    with pytest.raises(UserError, match=r"--design random: 800 groups .* at most 780 "):
        judge.main(judge.Config(**settings, num_pairs=800, overwrite=True))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--criteria", "quality"], "known criteria"),
        (["--tokens_min", "600"], "tokens_min <= tokens_max"),
        (["--group_size", "1"], "group_size >= 2"),
        (["--judge.kind", "column"], "needs judge.score_field"),
        (["--judge.score_field", "x"], "need judge.kind column"),
        ([*COLUMN, "--judge.criterion", "Bad Name"], "judge.criterion"),
        ([*COLUMN, "--criteria", "writing_style"], "leave `criteria` out"),
        (["--judge.temperature", "0"], "judge.temperature"),
        (["--judge.kind", "openai"], "judge.model"),
        (["--judge.kind", "openai", "--judge.model", "m", "--judge.base_url", "ftp://x"], "no endpoint like"),
        (["--judge.kind", "openai", "--judge.model", "m", "--judge.key_env", "sk-12345678"], "NAME of an environment"),
        (["--judge.kind", "openai", "--judge.model", "m", "--judge.constrain", "logit_bias"], "judge.tokenizer"),
        (["--num_canaries", "3"], "for language models"),
        (["--shard", "4/4"], "not i/n"),
        (["--degree", "0"], "degree >= 1"),
    ],
)
def test_bad_options_are_usage_errors(words, message):
    with pytest.raises(UsageError) as caught:
        configs.parse(judge.Config, words, prog="qurating judge run")
    assert message in str(caught.value)


def test_what_is_required():
    with pytest.raises(UsageError, match="--input"):
        judge.main(judge.Config())
    with pytest.raises(UsageError, match="--tokenizer"):
        judge.main(judge.Config(input=("x",)))


def test_help_says_that_the_offline_judge_is_no_language_model(capsys):
    with pytest.raises(SystemExit):
        main(["judge", "run", "--help"])
    assert "text statistics, not a language model" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("path", sorted((REPOSITORY / "configs" / "judge").glob("*.yaml")), ids=lambda path: path.name)
def test_configs_are_valid(path):
    config = configs.load(judge.Config, str(path))
    assert config.input
    assert config.tokenizer
    assert path.read_text().startswith(f"# qurating judge run --config configs/judge/{path.name}")


def test_human_easiness_becomes_pairs(real_data, tmp_path):
    options = judge.JudgeConfig(kind="column", score_field="BT_easiness", criterion="easiness")
    files = (str(real_data / "clear" / "clear_part.jsonl.zst"),)
    config = judge.Config(input=files, output=str(tmp_path), judge=options, whole_documents=True, num_pairs=500)
    counts = judge.main(config)
    assert counts["num_unscored"] == counts["num_too_short"] == 0
    judgments = read_judgments([str(tmp_path)])
    p = judgments.probabilities[:, 0, 1, 0]
    assert 0.45 < p.mean() < 0.55
    assert p.min() < 0.1
    assert p.max() > 0.9
