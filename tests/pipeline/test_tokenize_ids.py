"""Tokens of a selection by its id list are those of its copied rows."""

import functools
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_hf as tiny

from qurating_jax.data.tokens import TokenRows
from qurating_jax.method import gumbel
from qurating_jax.pipeline import tokenize
from qurating_jax.runtime import manifest
from qurating_jax.runtime.errors import UserError
from qurating_jax.selection.copying.copier import CopyJob, copy_selection
from qurating_jax.selection.copying.ranks import Ranking
from qurating_jax.selection.copying.rows import CopyInputs
from qurating_jax.selection.drawing.decision import Decision, Step
from qurating_jax.selection.keys import cache as key_cache
from qurating_jax.selection.keys.cache import ScanOptions
from qurating_jax.selection.keys.scan import KeyFields
from qurating_jax.selection.keys.source import SelectionSource
from qurating_jax.selection.keys.table import Cuts, Order

NUM = 300
RANKINGS = [Ranking(), Ranking("key_descending"), Ranking("shuffled", stream=gumbel.noise_stream(0, "order"))]
IDS = ["source", "key_descending", "shuffled"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
    tiny.make_tokenizer(directory)
    return str(directory)


def _corpus(with_ids):
    """Texts of many lengths, some without tokens; ids with gaps, or none at all."""
    rng = np.random.default_rng(0)
    return pa.table(
        {
            "text": [f"{tiny.TEXTS[number % 6]}{number if number % 6 != 1 else ''}" for number in range(NUM)],
            "rating": rng.normal(size=NUM),
            "source": [f"s{number}" for number in range(NUM)],
            **({"id": [f"d{number}" if number % 5 else None for number in range(NUM)]} if with_ids else {}),
        }
    )


def _write(directory, corpus, kind="parquet"):
    directory.mkdir(parents=True)
    for number in range(3):
        part = corpus.slice(number * 100, 100)
        if kind == "parquet":
            pq.write_table(part, directory / f"in-{number}.parquet")
        else:
            (directory / f"in-{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part.to_pylist()))
    return sorted(str(path) for path in directory.iterdir())


def _inputs(keys, files):
    order = Order("rating")
    cuts = Cuts(np.zeros(1), np.full(1, 2**64 - 1, np.uint64))
    source = SelectionSource(files, keys.parts, schema=keys.schema)
    return CopyInputs(keys, Decision(("",), (), (Step(0, order, cuts),)), source)


def _select(directory, cache, files, ranking, write="rows"):
    """A finished selection of the documents with positive ratings."""
    run = manifest.begin(
        str(directory), stage="select", config={}, identity={"kind": ranking.kind}, inputs={}, overwrite=False
    )
    fields = KeyFields(ratings=("rating",))
    keys = key_cache.prepare(str(cache), files, fields, ScanOptions(max_rows=40), inputs={"files": files})
    copied = copy_selection(
        CopyJob(
            output=str(directory), open_inputs=functools.partial(_inputs, keys, files), ranking=ranking, write=write,
            rows_per_shard=50,
        )
    )  # fmt: skip
    manifest.finish(run, {"num_selected": copied.num_selected})
    return copied.num_selected


def _tokenize(output, tokenizer, inputs, **options):
    config = tokenize.Config(
        input=tuple(map(str, inputs)),
        tokenizer=tokenizer,
        output=str(output),
        sequence_tokens=64,
        num_workers=1,
        **options,
    )
    return tokenize.main(config)


def _tokens(directory):
    rows = TokenRows(str(directory / "tokens"))
    found = rows.fetch(np.arange(rows.num_rows))
    return {name: found[name].tobytes() for name in ("tokens", "segment_ids")} | {
        "rows": (directory / "rows.parquet").read_bytes()
    }


@pytest.mark.parametrize("ranking", RANKINGS, ids=IDS)
@pytest.mark.parametrize(("with_ids", "kind"), [(True, "parquet"), (False, "parquet"), (True, "jsonl")])
def test_tokens_are_those_of_the_copied_rows(tmp_path, tokenizer, ranking, with_ids, kind):
    files = _write(tmp_path / "in", _corpus(with_ids), kind)
    num = _select(tmp_path / "rows", tmp_path / "cache", files, ranking)
    assert 100 < num < 200
    _select(tmp_path / "ids", tmp_path / "cache", files, ranking, write="ids")
    copied = _tokenize(tmp_path / "by-rows", tokenizer, [tmp_path / "rows"])
    for name, place in (("rows", "rows"), ("ids", "ids"), ("file", "ids/ids.parquet")):
        output = tmp_path / f"tokens-{name}"
        counts = _tokenize(output, tokenizer, files, selection=str(tmp_path / place))
        assert counts == copied
        assert counts["documents"] == num
        assert counts["empty"] > 0
        assert _tokens(output) == _tokens(tmp_path / "by-rows")
    if ranking.kind == "shuffled":  # then the order of the input does not matter
        _tokenize(tmp_path / "turned", tokenizer, files[::-1], selection=str(tmp_path / "ids"))
        assert _tokens(tmp_path / "turned") == _tokens(tmp_path / "by-rows")


def test_documents_that_come_twice_count_once(tmp_path, tokenizer):
    files = _write(tmp_path / "in", _corpus(True))
    _select(tmp_path / "ids", tmp_path / "cache", files, RANKINGS[2], write="ids")
    once = _tokenize(tmp_path / "once", tokenizer, files, selection=str(tmp_path / "ids"))
    (tmp_path / "again").mkdir()
    pq.write_table(pa.concat_tables([pq.read_table(file) for file in files]), tmp_path / "again" / "x.parquet")
    twice = _tokenize(
        tmp_path / "twice", tokenizer, [*files, tmp_path / "again"], selection=str(tmp_path / "ids")
    )  # fmt: skip
    assert twice == once | {"repeated": once["documents"]}
    assert _tokens(tmp_path / "twice") == _tokens(tmp_path / "once")


@pytest.mark.parametrize("ranking", RANKINGS, ids=IDS)
def test_documents_that_are_missing_are_an_error_that_counts_them(tmp_path, tokenizer, ranking):
    files = _write(tmp_path / "in", _corpus(True))
    num = _select(tmp_path / "ids", tmp_path / "cache", files, ranking, write="ids")
    lost = sum(rating > 0 for rating in pq.read_table(files[0])["rating"].to_pylist())
    with pytest.raises(UserError, match=rf"^{lost} of {num} selected documents are not in the input \(`.*` \.\.\.\)"):
        _tokenize(tmp_path / "out", tokenizer, files[1:], selection=str(tmp_path / "ids"))
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_another_selection_is_another_run(tmp_path, tokenizer):
    files = _write(tmp_path / "in", _corpus(True))
    for ranking in RANKINGS[1:]:
        _select(tmp_path / ranking.kind, tmp_path / "cache", files, ranking, write="ids")
    first = _tokenize(tmp_path / "out", tokenizer, files, selection=str(tmp_path / "shuffled"))
    assert _tokenize(tmp_path / "out", tokenizer, files, selection=str(tmp_path / "shuffled")) == first
    with pytest.raises(UserError, match="holds another run"):
        _tokenize(tmp_path / "out", tokenizer, files, selection=str(tmp_path / "key_descending"))
    with pytest.raises(UserError, match="holds another run"):
        _tokenize(tmp_path / "out", tokenizer, files)


def test_an_unfinished_selection_is_refused(tmp_path, tokenizer):
    files = _write(tmp_path / "in", _corpus(True))
    _select(tmp_path / "ids", tmp_path / "cache", files, RANKINGS[1], write="ids")
    manifest.reopen(str(tmp_path / "ids"))
    for place in ("ids", "ids/ids.parquet"):
        with pytest.raises(UserError, match="unfinished output of `qurating select`"):
            _tokenize(tmp_path / "out", tokenizer, files, selection=str(tmp_path / place))
    assert not (tmp_path / "out").exists()
