"""A selection is a set of documents in an order: how the input is cut, packed, read and shared among workers leaves no
trace in a byte of it. And every document of the input is either selected or rejected for one reason.
"""

import gzip
import itertools
import json
import math
import pathlib
import tempfile
from fractions import Fraction

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings

from qurating_jax.method import gumbel
from qurating_jax.pipeline import select_subset
from qurating_jax.runtime.errors import UserError
from qurating_jax.selection.choosing import Inputs, choose, open_candidates

NUM = 150
STYLE, FACTS = "style", "facts"
WORDS = ["the", "of", "and", "a", "language", "code", "tree", "river", "model", "number", "paper", "song", "stone"]


def _corpus(num=NUM, seed=0):
    """Documents whose values are the same in every format: ratings with nulls and ties, missing domains, no tokens."""
    rng = np.random.default_rng(seed)
    styles, facts = rng.normal(2, 3, num).tolist(), rng.integers(0, 4, num).astype(float).tolist()
    for number in range(6, num, 13):  # a column of nulls alone would have no type in JSON
        styles[number] = None
    lengths = rng.integers(1, 60, num)
    lengths[5::17] = 0
    texts = [" ".join(rng.choice(WORDS, 1 + number % 30)) for number in range(num)]
    texts[num // 2 : num // 2 + num // 30] = texts[: num // 30]
    return pa.table(
        {
            "id": [f"doc-{seed}-{number}" for number in range(num)],
            "text": texts,
            "length": lengths,
            STYLE: pa.array(styles, pa.float64()),
            FACTS: facts,
            "meta": [
                {"source": f"s{number % 5}" if number % 9 != 4 else None, "kind": number % 2} for number in range(num)
            ],
        }
    )


def _jsonl(table):
    return "".join(json.dumps(row) + "\n" for row in table.to_pylist()).encode()


def _parquet(table):
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=11)
    return sink.getvalue().to_pybytes()


def _arrow(table, make=pa.ipc.new_stream):
    sink = pa.BufferOutputStream()
    with make(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)
    return sink.getvalue().to_pybytes()


FORMATS = {
    "parquet": _parquet,
    "jsonl": _jsonl,
    "jsonl.gz": lambda table: gzip.compress(_jsonl(table)),
    "jsonl.zst": lambda table: zstandard.ZstdCompressor().compress(_jsonl(table)),
    "arrow": _arrow,
    "file.arrow": lambda table: _arrow(table, pa.ipc.new_file),
}


def _write(directory, table, bounds=(), formats=("parquet",)):
    """The table as files in its order, cut at row numbers; formats in turn. Returns the paths."""
    directory.mkdir(parents=True)
    edges, paths = [0, *sorted(bounds), len(table)], []
    for number, (start, stop) in enumerate(itertools.pairwise(edges)):
        kind = formats[number % len(formats)]
        path = directory / f"in-{number:03d}.{kind}"
        path.write_bytes(FORMATS[kind](table.slice(start, stop - start)))
        paths.append(str(path))
    return tuple(paths)


def _select(output, paths, **options):
    """Runs; returns {file: bytes} of what the selection is: documents, id list, explanation."""
    select_subset.main(select_subset.Config(input=paths, output=str(output), **options))
    names = [path.name for path in output.iterdir() if path.name.startswith("part-")]
    return {name: (output / name).read_bytes() for name in (*sorted(names), "ids.parquet", "selection.json")}


def _ids(found):
    return pq.read_table(pa.BufferReader(found["ids.parquet"]))


def _same(found, expected, *, rows):
    """Equal bytes; of the copied rows only where `rows`, else their names."""
    assert sorted(found) == sorted(expected)
    for name in expected:
        if rows or not name.startswith("part-"):
            assert found[name] == expected[name], name


SELECTIONS = {
    "sample": {
        "rating": (STYLE,), "domain_field": ("meta.source",), "budget_fraction": 0.3, "order": "key_descending",
        "rows_per_shard": 9,
    },
    "source": {"strategy": "uniform", "rating": (STYLE,), "domain_field": ("meta.source",), "budget_documents": 40},
    "top_k": {
        "strategy": "top_k", "rating": (FACTS,), "budget_tokens": 900, "order": "key_ascending", "order_by": STYLE,
        "order_temperature": 1.5, "rows_per_shard": 10, "format": "jsonl.zst",
    },
    "mix": {
        "strategy": "mix", "rating": (), "members": (STYLE, FACTS), "budget_fraction": 0.4, "order": "shuffled",
        "rows_per_shard": 13, "deduplicate_text": True,
    },
    "combined": {
        "rating": (f"{STYLE}=2", f"{FACTS}=1"), "normalize": "rank", "inverse": True, "budget_fraction": 0.25,
        "domain_field": ("meta.source", "meta.kind"), "domain_caps": ("*=0.2",), "write": "ids",
    },
    "percentile": {"strategy": "percentile", "rating": (FACTS,), "percentile": 60.0, "order": "key_descending"},
}  # fmt: skip
CUTS = {
    "many files": {"bounds": (1, 2, 50, 77, 100, 149)},
    "every format": {"bounds": (20, 40, 60, 80, 100), "formats": tuple(FORMATS)},
    "json lines": {"formats": ("jsonl",), "rows_per_part": 20},
    "tiny parts": {"bounds": (70,), "rows_per_part": 3},
    "tiny memory": {"memory_limit": 500, "rows_per_part": 40},
}


@pytest.fixture(scope="module", params=SELECTIONS)
def whole(request, tmp_path_factory):
    """A selection's options, and what it is from one file in one part."""
    directory = tmp_path_factory.mktemp("whole")
    found = _select(directory / "out", _write(directory / "in", _corpus()), **SELECTIONS[request.param])
    assert len(_ids(found)) > 10
    return SELECTIONS[request.param], found


@pytest.mark.parametrize("cut", CUTS)
def test_the_cut_of_the_input_leaves_no_trace(tmp_path, whole, cut):
    work = {name: value for name, value in CUTS[cut].items() if name not in ("bounds", "formats")}
    how = {name: value for name, value in CUTS[cut].items() if name in ("bounds", "formats")}
    found = _select(tmp_path / "out", _write(tmp_path / "in", _corpus(), **how), **whole[0], **work)
    _same(found, whole[1], rows=True)


def test_the_order_of_files_and_rows_leaves_no_trace(tmp_path, whole):
    options, expected = whole
    rows = np.random.default_rng(1).permutation(NUM)
    files = _write(tmp_path / "in", _corpus().take(rows), (30, 90, 91), ("parquet", "jsonl"))
    found = _select(tmp_path / "out", (files[2], files[0], files[3], files[1]), **options, rows_per_part=25)
    _same(found, expected, rows="order" in options)
    # The same documents and keys, where the rows follow the input.
    if "part-00000.parquet" in found:
        tables = [
            pa.concat_tables([pq.read_table(pa.BufferReader(left[name])) for name in left if name.startswith("part-")])
            for left in (found, expected)
        ]
        assert tables[0].sort_by("id").equals(tables[1].sort_by("id"))


@pytest.mark.parametrize(("name", "num_workers"), [("mix", 2), ("mix", 4), ("top_k", 3)])
def test_the_number_of_workers_leaves_no_trace(tmp_path, name, num_workers):
    paths = _write(tmp_path / "in", _corpus(), (30, 60))
    options = SELECTIONS[name] | {"rows_per_part": 20}
    found = _select(tmp_path / "many", paths, **options, num_workers=num_workers)
    _same(found, _select(tmp_path / "one", paths, **options), rows=True)


def test_resampling_towards_a_target_leaves_no_trace(tmp_path):
    target = tmp_path / "target.jsonl"
    target.write_bytes(_jsonl(_corpus(30, seed=9)))
    options = {
        "strategy": "dsir", "targets": (f"wanted={target}", f"other={target}"), "dsir_min_words": 3, "rating": (),
        "budget_fraction": 0.3, "order": "key_descending", "rows_per_shard": 20, "domain_field": ("meta.source",),
    }  # fmt: skip
    expected = _select(tmp_path / "out", _write(tmp_path / "in", _corpus()), **options)
    assert len(_ids(expected)) > 10
    turned = _write(tmp_path / "turned", _corpus().take(np.arange(NUM)[::-1]), (60, 99), ("jsonl", "arrow"))
    found = _select(tmp_path / "again", turned, **options, rows_per_part=25, memory_limit=500, num_workers=2)
    _same(found, expected, rows=True)


@st.composite
def _runs(draw):
    """A corpus, a selection of it, and another way to read it."""
    num = draw(st.integers(1, 60))
    bounds = draw(st.lists(st.integers(0, num), max_size=5))
    formats = draw(st.lists(st.sampled_from(sorted(FORMATS)), min_size=1, max_size=3))
    work = {"rows_per_part": draw(st.integers(1, 40)), "memory_limit": draw(st.sampled_from([100, 1 << 30]))}
    options = {
        "rating": (draw(st.sampled_from([STYLE, FACTS])),),
        "strategy": draw(st.sampled_from(["sample", "top_k", "uniform"])),
        "domain_field": draw(st.sampled_from([(), ("meta.source",)])),
        "budget_fraction": draw(st.sampled_from([0.01, 0.5, 1.0])),
        "order": draw(st.sampled_from(["key_descending", "key_ascending", "shuffled"])),
        "rows_per_shard": draw(st.sampled_from([1, 7, 1000])),
        "seed": draw(st.integers(0, 9)),
        "normalize": "none",  # ratings may all be equal
    }
    return _corpus(num, seed=num), draw(st.permutations(range(num))), bounds, formats, options, work


@settings(max_examples=20)
@given(_runs())
def test_any_cut_in_any_order(run):
    corpus, rows, bounds, formats, options, work = run
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        once, again = _write(directory / "a", corpus), _write(directory / "b", corpus.take(rows), bounds, formats)
        runs = [
            lambda: _select(directory / "once", once, **options),
            lambda: _select(directory / "again", again[::-1], **options, **work),
        ]
        expected, found = map(_outcome, runs)
        if isinstance(expected, str):
            assert found == expected
        else:
            _same(found, expected, rows=True)


def _outcome(run):
    """What a run returns, or the error that it ends with."""
    try:
        return run()
    except UserError as error:
        return str(error)


# ---- rows in = selected + rejected


def _rows(draw, num):
    """Rows with everything that rows can have wrong; a later one may repeat an earlier one's id or text."""
    numbers = st.sampled_from([None, math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, 1.0, 2.5, -3.0, 1e-300])
    rows = []
    for number in range(num):
        row = {
            "id": f"doc-{number}",
            "text": draw(st.sampled_from(["", "one", "two", f"text {number}", f"other {number}"])),
            "length": draw(st.integers(0, 9)),
            STYLE: draw(numbers),
            FACTS: draw(numbers),
            "domain": draw(st.sampled_from([None, "", "web", "books", "(missing)"])),
        }
        if rows and draw(st.integers(0, 9)) == 0:
            row = dict(draw(st.sampled_from(rows)))
        rows.append(row)
    return rows


def _table(rows):
    types = {"length": pa.int32(), STYLE: pa.float32(), FACTS: pa.float64()}
    return pa.table({name: pa.array([row[name] for row in rows], types.get(name, pa.string())) for name in rows[0]})


def _expected_counts(rows, ratings, *, deduplicate_text):
    """By reason, recounted row by row; and the ids that can be selected."""
    counts = dict.fromkeys(("duplicate_id", "no_tokens", "duplicate_text", "no_rating"), 0)
    seen, left = set(), []
    for row in rows:
        if row["id"] in seen:
            counts["duplicate_id"] += 1
        elif row["length"] == 0:
            counts["no_tokens"] += 1
        else:
            left.append(row)
        seen.add(row["id"])
    if deduplicate_text:
        hashes = dict(
            zip((row["id"] for row in left), gumbel.hash_ids(row["id"] for row in left).tolist(), strict=True)
        )
        kept = {}
        for row in sorted(left, key=lambda row: hashes[row["id"]]):
            kept.setdefault(row["text"], row["id"])
        counts["duplicate_text"] = len(left) - len(kept)
        left = [row for row in left if row["id"] in kept.values()]
    able = [
        row
        for row in left
        if not ratings or any(row[name] is not None and math.isfinite(row[name]) for name in ratings)
    ]
    counts["no_rating"] = len(left) - len(able)
    return counts, {row["id"]: row for row in able}


def _choose(directory, rows, **options):
    """The choice, and the ids of the selected documents in input order."""
    path = directory / "in.parquet"
    pq.write_table(_table(rows), path)
    config = select_subset.Config(on_duplicate_id="drop", **options)
    candidates = open_candidates(config, Inputs.find((str(path),), config), str(directory / "cache"))
    choice = choose(config, candidates, config.seed)
    first, chosen = 0, []
    for number in range(len(choice.keys)):
        block = choice.keys.block(number)
        picked = choice.decision.pick(block)
        chosen += [rows[first + row]["id"] for row in picked.rows.tolist()]
        first += len(block)
    assert first == len(rows)
    return choice.explanation, chosen


STRATEGIES = {
    "sample": ({"rating": (STYLE,), "normalize": "none"}, (STYLE,)),
    "inverse": ({"rating": (FACTS,), "normalize": "none", "inverse": True}, (FACTS,)),
    "top_k": ({"strategy": "top_k", "rating": (STYLE,)}, (STYLE,)),
    "uniform": ({"strategy": "uniform", "rating": (STYLE,)}, ()),
    "mix": ({"strategy": "mix", "rating": (), "members": (STYLE, FACTS), "normalize": "none"}, (STYLE, FACTS)),
    "threshold": ({"strategy": "threshold", "rating": (FACTS,), "threshold": 0.0}, (FACTS,)),
}


@settings(max_examples=60)
@given(st.data())
def test_every_row_is_selected_or_rejected_for_one_reason(data):
    rows = _rows(data.draw, data.draw(st.integers(1, 25)))
    name = data.draw(st.sampled_from(sorted(STRATEGIES)))
    options, ratings = STRATEGIES[name]
    options = options | {
        "deduplicate_text": data.draw(st.booleans()),
        "domain_field": data.draw(st.sampled_from([(), ("domain",)])),
        "rows_per_part": data.draw(st.sampled_from([1, 4, 1000])),
        "memory_limit": data.draw(st.sampled_from([100, 1 << 30])),
    }
    if name != "threshold":
        options["budget_fraction"] = data.draw(st.sampled_from([0.001, 0.4, 1.0]))
    counts, able = _expected_counts(rows, ratings, deduplicate_text=options["deduplicate_text"])
    with tempfile.TemporaryDirectory() as directory:
        if not able or (name == "threshold" and all(row[FACTS] < 0 for row in able.values())):
            with pytest.raises(UserError, match=r"can be selected|no rating in `facts` reaches 0"):
                _choose(pathlib.Path(directory), rows, **options)
            return
        explained, chosen = _choose(pathlib.Path(directory), rows, **options)
    assert explained["num_documents"] == len(rows) == explained["num_selected"] + sum(explained["rejected"].values())
    below = len(able) - len(chosen)
    assert explained["rejected"] == counts | {"bad_row": 0, "below_cut": below}
    assert explained["num_selected"] == len(chosen) == len(set(chosen))
    assert set(chosen) <= set(able)
    tokens = sum(able[document]["length"] for document in chosen)
    assert explained["selected_tokens"] == tokens
    if name == "threshold":
        assert set(chosen) == {document for document, row in able.items() if row[FACTS] >= 0}
    else:
        wanted = max(1, round(Fraction(str(options["budget_fraction"])) * sum(row["length"] for row in able.values())))
        assert wanted <= tokens < wanted + max(able[document]["length"] for document in chosen)
    if options["domain_field"]:
        by_domain = {entry["domain"]: entry for entry in explained["domains"]}
        names = {"(missing)" if row["domain"] is None else row["domain"] for row in rows}
        assert set(by_domain) == names
        assert sum(entry["num_documents"] for entry in by_domain.values()) == len(rows)
        assert sum(entry["num_selected"] for entry in by_domain.values()) == len(chosen)
    assert explained["num_missing_domains"] == (
        sum(row["domain"] is None for row in rows) if options["domain_field"] else 0
    )


def test_rows_that_are_none_are_counted_in_any_cut(tmp_path):
    """JSON lines, some of which are no documents, left out by --on_bad_row skip; whole parts of them too."""
    corpus = _corpus(60).set_column(0, "id", pa.array(range(60)))
    lines = _jsonl(corpus).splitlines(keepends=True)
    for place, line in ((0, b"no json\n"), (17, b"[1, 2]\n"), (18, b"5\n"), (63, b"{\n")):
        lines.insert(place, line)
    options = {
        "rating": (STYLE,), "budget_fraction": 0.4, "on_bad_row": "skip", "order": "key_descending",
        "deduplicate_text": True, "domain_field": ("meta.source",),
    }  # fmt: skip
    found = []
    for name, size, rows_per_part in (("a", 64, 1000), ("b", 17, 5), ("c", 19, 1)):
        directory = tmp_path / name
        directory.mkdir()
        for number, start in enumerate(range(0, 64, size)):
            (directory / f"{number}.jsonl").write_bytes(b"".join(lines[start : start + size]))
        found.append(_select(tmp_path / f"out {name}", (str(directory),), **options, rows_per_part=rows_per_part))
        _same(found[-1], found[0], rows=True)
    explained = json.loads(found[0]["selection.json"])
    assert explained["num_documents"] == 64 == explained["num_selected"] + sum(explained["rejected"].values())
    assert explained["rejected"]["bad_row"] == 4 == sum(explained["bad_rows"].values())


def test_two_thousand_domains_in_files(tmp_path):
    rng = np.random.default_rng(0)
    rows = [
        {"id": str(n), "text": "", "length": int(rng.integers(1, 90)), STYLE: float(rng.normal()), FACTS: 0.0,
         "domain": f"d{n % 2000}"}
        for n in range(12_000)
    ]  # fmt: skip
    explained, _ = _choose(tmp_path, rows, rating=(STYLE,), domain_field=("domain",), budget_fraction=0.02)
    assert len(explained["domains"]) == 2000
    assert 0 <= explained["overshoot_tokens"] < 90
    targets = [entry["target_tokens"] for entry in explained["domains"]]
    assert sum(targets) == explained["budget_tokens"]
    for entry, target in zip(explained["domains"], targets, strict=True):
        assert abs(entry["selected_tokens"] - target) < 90


# ---- selections beside each other


def test_nested_budgets_seeds_and_shared_noise(tmp_path):
    paths, cache = _write(tmp_path / "in", _corpus(1000), (300,)), str(tmp_path / "cache")

    def ids(name, **options):
        options = {"rating": (FACTS,), "write": "ids", "cache": cache, "budget_fraction": 1.0} | options
        return _ids(_select(tmp_path / name, paths, **options)).to_pydict()

    for domains in ((), ("meta.source",)):
        before = None
        for share in (0.02, 0.1, 0.3, 0.9, 1.0):
            found = ids(f"{share} {len(domains)}", budget_fraction=share, domain_field=domains)
            if before is not None:
                lost = set(before["id"]) - set(found["id"])
                assert not lost or domains
                last = dict(zip(before["domain"], before["id"], strict=True))
                assert lost <= set(last.values())  # ids stand by decreasing key: the last of each domain
            before = found
    first, again, other = (ids(f"seed {n}", seed=seed, budget_fraction=0.2) for n, seed in enumerate((0, 0, 1)))
    assert first == again
    assert 0 < len(set(first["id"]) & set(other["id"])) < 0.6 * len(first["id"])
    # Noise: the key less what the rating adds.
    noise = {}
    for group, (strategy, inverse) in itertools.product(("", "g"), (("sample", 0), ("sample", 1), ("uniform", 0))):
        found = ids(f"{group} {strategy} {inverse}", strategy=strategy, inverse=bool(inverse), noise_group=group)
        keys = np.array(found["selection_key"])[np.argsort(found["id"])]
        facts = {row["id"]: row[FACTS] for row in _corpus(1000).to_pylist() if row["id"] in set(found["id"])}
        ratings = np.array([facts[document] for document in sorted(facts)])
        logits = (ratings - ratings.mean()) / ratings.std() / 2
        noise[group, strategy, inverse] = keys - (0 if strategy == "uniform" else -logits if inverse else logits)
    for one, other in itertools.combinations(noise, 2):
        if one[0] == other[0] == "g":
            assert np.allclose(noise[one], noise[other], rtol=0, atol=1e-9)
        else:
            assert abs(np.corrcoef(noise[one], noise[other])[0, 1]) < 4 / math.sqrt(len(keys)), (one, other)


def test_a_mix_of_selections_is_the_mix_of_their_columns(tmp_path, monkeypatch):
    """Where these are large enough, and under the same names: the order of the members' turns is drawn by name."""
    paths, cache = _write(tmp_path / "in", _corpus(600)), str(tmp_path / "cache")
    common = {"cache": cache, "rating": (), "seed": 4}
    for name in (STYLE, FACTS):
        _select(tmp_path / "members" / name, paths, **common | {"rating": (name,)}, budget_fraction=0.7)
    mix = common | {"strategy": "mix", "members": (STYLE, FACTS), "budget_tokens": 4000}
    of_columns = _ids(_select(tmp_path / "columns", paths, **mix))
    monkeypatch.chdir(tmp_path / "members")
    of_selections = _ids(_select(tmp_path / "selections", paths, **mix))
    assert of_columns.equals(of_selections)
    tokens = dict.fromkeys((STYLE, FACTS), 0)
    for row in of_columns.to_pylist():
        tokens[row["selection_member"]] += row["tokens"]
    assert all(abs(found - 2000) < 60 for found in tokens.values())
    assert 4000 <= sum(tokens.values()) < 4060
