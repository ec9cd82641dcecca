import dataclasses
from functools import partial
from pathlib import Path

import dsir_runs as runs
import numpy as np
import pytest
from input_samples import put_rows

from qurating_jax.method import dsir as method
from qurating_jax.method import gumbel
from qurating_jax.method.hashed_ngrams import NgramHasher
from qurating_jax.runtime import manifest
from qurating_jax.runtime.errors import UsageError, UserError
from qurating_jax.selection.dsir import ngram_files
from qurating_jax.selection.dsir import weights as dsir
from qurating_jax.selection.dsir.weights import DsirOptions, parse_targets, weigh_documents
from qurating_jax.selection.keys import cache as key_cache
from qurating_jax.selection.keys.scan import KeyFields
from qurating_jax.selection.keys.source import SelectionSource

ROWS = runs.rows_of(60, 1)
DEFAULTS = DsirOptions()
TARGETS = {"near": runs.rows_of(20, 2), "far": runs.rows_of(30, 3, shift=50)}


class Run:
    """An input with its targets in a directory."""

    def __init__(self, directory, files, **scan):
        self.cache = str(directory / "cache")
        self.files = files
        options = key_cache.ScanOptions(**{"max_rows": 7} | scan)
        self.keys = key_cache.prepare(
            self.cache, files, KeyFields(), options, inputs=manifest.input_digest(files, files)
        )
        self.targets = {name: [put_rows(directory, f"target-{name}.jsonl.zst", rows)] for name, rows in TARGETS.items()}
        self.open_source = partial(SelectionSource, files, self.keys.parts)

    def weigh(self, options=DEFAULTS, *, names=("near", "far"), num_workers=1):
        targets = {name: self.targets[name] for name in names}
        return weigh_documents(self.keys, self.open_source, targets, options, cache=self.cache, num_workers=num_workers)

    def scores(self, weighed):
        keys = self.keys.with_scores({column.score: column.directory for column in weighed.values()})
        blocks = [keys.block(number) for number in range(len(keys))]
        return {
            name: dict(zip(
                np.concatenate([block.hashes for block in blocks]).tolist(),
                np.concatenate([block.scores[column.score] for block in blocks]).tolist(),
                strict=True,
            ))
            for name, column in weighed.items()
        }  # fmt: skip


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path, [put_rows(tmp_path, "d.jsonl", ROWS)])


def hashed(rows):
    return NgramHasher().hash_texts([row["text"] or "" for row in rows])


def expected_scores(rows, target, **options):
    ratios = method.log_ratios(method.bucket_counts(hashed(target)), method.bucket_counts(hashed(rows)))
    hashes = gumbel.hash_ids([row["id"] for row in rows]).tolist()
    return dict(zip(hashes, method.log_weights(hashed(rows), ratios, **options).tolist(), strict=True))


def same(found, expected):
    assert found.keys() == expected.keys()
    for name in found:
        assert found[name].keys() == expected[name].keys()
        places = sorted(found[name])
        mine, other = (np.array([scores[name][place] for place in places]) for scores in (found, expected))
        np.testing.assert_array_equal(mine, other)  # the bits, and NaN at the same places


def test_score_columns_of_several_targets(run):
    weighed = run.weigh()
    same(run.scores(weighed), {name: expected_scores(ROWS, rows) for name, rows in TARGETS.items()})
    near, far = weighed["near"], weighed["far"]
    short = method.num_tokens(hashed(ROWS).lengths()) < 100
    assert near.num_short == far.num_short == short.sum()
    assert 10 < short.sum() < 50
    assert [near.num_ngrams, far.num_ngrams] == [int(hashed(rows).offsets[-1]) for rows in TARGETS.values()]
    assert [near.num_documents, far.num_documents] == [20, 30]
    assert near.num_raw_ngrams == hashed(ROWS).offsets[-1]
    scores = run.scores(weighed)
    assert np.nanmean(list(scores["near"].values())) > np.nanmean(list(scores["far"].values()))


def test_the_same_for_any_order_cut_and_number_of_workers(tmp_path):
    order = np.random.default_rng(0).permutation(len(ROWS)).tolist()
    one = tmp_path / "one"
    expected = Run(one, [put_rows(one, "d.jsonl", ROWS)])
    expected = expected.scores(expected.weigh())
    two = tmp_path / "two"
    shuffled = [ROWS[place] for place in order]
    files = [put_rows(two, "a.jsonl.zst", shuffled[:13]), put_rows(two, "b.parquet", shuffled[13:])]
    other = Run(two, files, max_rows=11)
    same(other.scores(other.weigh(num_workers=2)), expected)


def test_a_new_target_and_other_settings_read_no_text_again(run, monkeypatch):
    run.weigh(names=["near"])
    hashed_once = {path: path.stat().st_mtime_ns for path in Path(run.keys.directory).glob("ngrams-*/*")}
    assert len(hashed_once) == len(run.keys)

    def read_again(*_, **__):
        raise AssertionError("the input was opened")

    run.open_source = read_again
    both = run.weigh()
    means = run.weigh(DsirOptions(length_norm=True, min_tokens=20))
    same(run.scores(both), {name: expected_scores(ROWS, rows) for name, rows in TARGETS.items()})
    other = {name: expected_scores(ROWS, rows, length_norm=True, min_tokens=20) for name, rows in TARGETS.items()}
    same(run.scores(means), other)
    # Now all is there: neither targets nor weights are made again.
    monkeypatch.setattr(NgramHasher, "hash_texts", read_again)
    monkeypatch.setattr(dsir, "log_weights", read_again)
    assert run.weigh() == both
    assert {path: path.stat().st_mtime_ns for path in hashed_once} == hashed_once
    directories = [column.directory for weighed in (both, means) for column in weighed.values()]
    assert len(set(directories)) == 4


def test_interrupted_weighing_goes_on(run, monkeypatch):
    write, calls = run.keys.write_scores, []

    def fail(*arguments):
        if len(calls) == 5:
            raise KeyboardInterrupt
        calls.append(arguments)
        write(*arguments)

    monkeypatch.setattr(run.keys, "write_scores", fail)
    with pytest.raises(KeyboardInterrupt):
        run.weigh()
    monkeypatch.setattr(run.keys, "write_scores", write)
    same(run.scores(run.weigh()), {name: expected_scores(ROWS, rows) for name, rows in TARGETS.items()})


@pytest.mark.parametrize("most", [1, 500, 3000, 10_000])
def test_a_raw_sample_takes_the_lowest_places(run, tmp_path, most):
    options = DsirOptions(max_raw_ngrams=most, seed=5)
    files = dsir.hash_input(run.keys.directory, run.keys.parts, run.open_source, options, num_workers=1)
    found = dsir.count_raw(files, lambda number: run.keys.block(number).hashes, options)
    bits = gumbel.uniform_bits(gumbel.hash_ids([row["id"] for row in ROWS]),
                               gumbel.noise_stream(5, "raw n-grams of DSIR"))  # fmt: skip
    ngrams, order = hashed(ROWS), np.argsort(bits)
    ends = np.cumsum(ngrams.lengths()[order])
    chosen = np.zeros(len(ROWS), bool)
    chosen[order[: int(np.argmax(ends >= most)) + 1]] = ends[-1] > most
    expected = method.bucket_counts(ngrams, documents=chosen) if most < ends[-1] else method.bucket_counts(ngrams)
    np.testing.assert_array_equal(found, expected)
    assert found.sum() >= min(most, ends[-1])
    if most == 3000:
        other = dsir.count_raw(
            files, lambda number: run.keys.block(number).hashes, dataclasses.replace(options, seed=6)
        )
        assert (other != found).any()
        columns = [run.weigh(DsirOptions(max_raw_ngrams=most, seed=seed))["near"].score for seed in (5, 6)]
        assert columns[0] != columns[1]
        assert run.weigh(DsirOptions(seed=6)) == run.weigh(DsirOptions(seed=7))


def test_targets_in_every_form(run, tmp_path):
    whole = dsir.read_target("near", run.targets["near"], DsirOptions(), cache=run.cache)
    rows = TARGETS["near"]
    put_rows(tmp_path, "split/a.parquet", rows[:9])
    put_rows(tmp_path, "split/b.jsonl", rows[9:])
    for paths in ([str(tmp_path / "split")], [str(tmp_path / "split" / "*.parquet"), str(tmp_path / "split/b.jsonl")]):
        found = dsir.read_target("split", paths, DsirOptions(), cache=run.cache)
        np.testing.assert_array_equal(found.counts, whole.counts)
        assert (found.num_ngrams, found.num_documents) == (whole.num_ngrams, 20)
        assert found.digest != whole.digest
    fewer = dsir.read_target("near", run.targets["near"], DsirOptions(num_buckets=7), cache=run.cache)
    assert fewer.counts.shape == (7,)
    assert fewer.counts.sum() == whole.counts.sum()


def test_parsing_targets():
    assert parse_targets(["a=x", "b=hf://o/n", "a=y=z"]) == {"a": ["x", "y=z"], "b": ["hf://o/n"]}
    for wrong in ("a", "=x", "a=", " =x"):
        with pytest.raises(UsageError, match="NAME=PATH"):
            parse_targets([wrong])


def test_what_cannot_be_weighed(run, tmp_path):
    empty = put_rows(tmp_path, "empty.jsonl", [{"id": "a", "text": " \u2003"}, {"id": "b", "text": None}])
    run.targets["empty"] = [empty]
    with pytest.raises(UserError, match=r"empty.jsonl: no words in `text`"):
        run.weigh(names=["empty"])
    with pytest.raises(UserError, match="no column `body`"):
        run.weigh(DsirOptions(text_field="body"))
    with pytest.raises(UsageError, match="target"):
        run.weigh(names=[])
    silent = Run(tmp_path / "silent", [empty])
    with pytest.raises(UserError, match="no words at all"):
        silent.weigh()


@pytest.mark.parametrize(
    "wrong",
    [{"num_buckets": 0}, {"num_buckets": 1 << 17}, {"min_tokens": 0}, {"max_raw_ngrams": 0}, {"pseudo_count": -1.0},
     {"pseudo_count": float("nan")}],
)  # fmt: skip
def test_options_that_make_no_sense(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        DsirOptions(**wrong)


def test_another_version_of_unicode_is_another_cache(monkeypatch):
    before = ngram_files.digest("text", 10_000)
    monkeypatch.setattr("unicodedata.unidata_version", "1.0")
    assert ngram_files.digest("text", 10_000) != before
