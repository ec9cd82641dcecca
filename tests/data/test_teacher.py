"""A teacher's ratings as examples: documents or windows, what is left out, and the comparisons made of them."""

import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from document_samples import jsonl, put
from hypothesis import given, settings
from hypothesis import strategies as st

from qurating_jax.data.documents import Rejects
from qurating_jax.data.splits import overlap_audit, split_disjoint
from qurating_jax.data.teacher import Teacher, read_teacher, split_teacher, teacher_groups, window_characters
from qurating_jax.data.tokenizer import load_tokenizer, train_byte_level_bpe
from qurating_jax.method.windows import weighted_means, window_spans
from qurating_jax.runtime import manifest
from qurating_jax.runtime.errors import UserError

WORDS = [
    *["the", "cell", "wall", "of", "a", "plant", "is", "made", "of", "cellulose", "and", "water", "flows", "through"],
    "it\n\nslowly",
    "",
    " ",
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_byte_level_bpe([" ".join(WORDS)] * 3, 300)


def documents(n=12, seed=0):
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(WORDS, rng.integers(1, 60))) + f" {i}" for i in range(n)]
    return [{"id": f"doc {i}", "text": text, "domain": "web" if i % 3 else "book"} for i, text in enumerate(texts)]


def annotate(directory, rows, tokenizer, *, inputs=None, stage="annotate"):
    """Rows with ratings as `annotate` writes them: of window w of document d, 10 d + w and the negative of it."""
    run = manifest.begin(str(directory), stage=stage, config={}, identity={}, inputs=inputs or {}, overwrite=False)
    tokens = tokenizer.encode([row["text"] for row in rows])
    owners, _, lengths = window_spans(np.array([len(ids) for ids in tokens]), 10)
    first = np.searchsorted(owners, np.arange(len(rows)))
    score = 10.0 * owners + np.arange(len(owners)) - first[owners]
    scores = np.stack([score, -score], axis=1)
    averages = weighted_means(scores, lengths, owners, len(rows))
    table = pa.Table.from_pylist([row | {"length": len(ids)} for row, ids in zip(rows, tokens, strict=True)])
    table = table.append_column("chunk_lengths", pa.array([lengths[owners == d].tolist() for d in range(len(rows))]))
    for number, name in enumerate(("style", "facts")):
        chunks = pa.array([scores[owners == d, number].tolist() for d in range(len(rows))], pa.list_(pa.float32()))
        average = averages[:, number].astype(np.float32)
        table = table.append_column(f"{name}_chunks", chunks)
        table = table.append_column(f"{name}_average", pa.array(average, mask=np.isnan(average)))
    half = len(rows) // 2
    pq.write_table(table.slice(0, half), directory / "part-00000.parquet")
    pq.write_table(table.slice(half), directory / "part-00001.parquet")
    manifest.finish(run, {})
    return table


def read(path, **options):
    return read_teacher([str(path)], rejects=Rejects(None, "error"), **options)


def same(one, other):
    assert (one.texts, one.ids, one.domains, one.criteria) == (other.texts, other.ids, other.domains, other.criteria)
    np.testing.assert_array_equal(one.scores, other.scores)


# ---- reading


def test_documents_of_an_annotate_output(tmp_path, tokenizer):
    rows = documents()
    rows[3]["text"] = ""
    table = annotate(tmp_path / "rated", rows, tokenizer)
    found = read(tmp_path / "rated")
    kept = [i for i in range(12) if i != 3]
    assert found.texts == [rows[i]["text"] for i in kept]
    assert found.ids == [f"doc {i}" for i in kept]
    assert found.domains == [rows[i]["domain"] for i in kept]
    assert found.criteria == ("style", "facts")
    assert found.scores.dtype == np.float32
    expected = np.stack([table[f"{name}_average"].to_numpy(zero_copy_only=False) for name in found.criteria], axis=1)
    np.testing.assert_array_equal(found.scores, expected[kept])
    assert (found.num_unrated, found.num_windows, len(found)) == (1, 0, 11)
    # A tokenizer says nothing where it is not known what the ratings were made with.
    same(found, read(tmp_path / "rated", tokenizer=tokenizer))


def test_criteria_and_fields_by_name(tmp_path, tokenizer):
    rows = [{"body": row["text"], "key": row["id"], "meta": {"topic": row["domain"]}} for row in documents()]
    for row, document in zip(rows, documents(), strict=True):
        row["text"] = document["text"]
    annotate(tmp_path / "rated", rows, tokenizer)
    found = read(tmp_path / "rated", criteria=["facts"], text_field="body", id_field="key", domain_field="meta.topic")
    assert (found.criteria, found.scores.shape) == (("facts",), (12, 1))
    assert (found.ids[1], found.domains[:2]) == ("doc 1", ["book", "web"])
    assert read(tmp_path / "rated", domain_field="nowhere").domains == ["unknown"] * 12
    with pytest.raises(UserError, match=r"part-00000\.parquet: document .*: no rating on `depth`"):
        read(tmp_path / "rated", criteria=["depth"])


def test_windows_where_the_tokenizer_is_the_same(tmp_path, tokenizer):
    rows = documents()
    annotate(tmp_path / "rated", rows, tokenizer, inputs={"tokenizer": tokenizer.identity})
    found = read(tmp_path / "rated", tokenizer=tokenizer)
    expected = []
    for number, row in enumerate(rows):
        (ids,) = tokenizer.encode([row["text"]])
        windows = [ids[start : start + 10] for start in range(0, len(ids), 10)]
        for place, window in enumerate(windows):
            score = 10 * number + place
            expected.append((tokenizer.decode(window), row["id"], row["domain"], (score, -score), len(windows) > 1))
    assert [
        (text, name, domain, tuple(scores))
        for text, name, domain, scores in zip(found.texts, found.ids, found.domains, found.scores.tolist(), strict=True)
    ] == [entry[:4] for entry in expected]
    assert found.num_windows == sum(entry[4] for entry in expected)
    assert len(found) > 3 * len(rows)
    # Without a tokenizer, or with another, the documents with their averages.
    other = train_byte_level_bpe(["something else"], 260)
    assert read(tmp_path / "rated").texts == [row["text"] for row in rows]
    assert read(tmp_path / "rated", tokenizer=other).texts == [row["text"] for row in rows]


def test_only_an_annotate_output_says_which_tokenizer_it_was(tmp_path, tokenizer):
    annotate(tmp_path / "rated", documents(), tokenizer, inputs={"tokenizer": tokenizer.identity}, stage="select")
    assert len(read(tmp_path / "rated", tokenizer=tokenizer)) == 12


def test_windows_that_do_not_fit_the_text(tmp_path, tokenizer):
    rows = [row | {"title": "another text " * 20} for row in documents()]
    annotate(tmp_path / "rated", rows, tokenizer, inputs={"tokenizer": tokenizer.identity})
    with pytest.raises(UserError, match=r"document doc 0: its text has \d+ tokens, its windows \d+; name the --text_f"):
        read(tmp_path / "rated", tokenizer=tokenizer, text_field="title")


def test_an_unfinished_output_is_refused(tmp_path, tokenizer):
    annotate(tmp_path / "rated", documents(), tokenizer)
    (tmp_path / "rated" / "manifest.json").unlink()
    with pytest.raises(UserError, match="unfinished output of `qurating annotate`"):
        read(tmp_path / "rated")


def test_any_documents_with_numbers(tmp_path):
    rows = [
        {"text": "one", "style_average": 1, "length_average": "no number", "facts_average": None},
        {"text": "two", "style_average": None, "facts_average": -2.5, "domain": 7},
        {"text": "three", "style_average": None, "facts_average": None},
        {"text": "", "style_average": 1.0, "facts_average": 1.0},
    ]
    found = read(put(tmp_path, "d.jsonl", jsonl(rows)))
    assert (found.texts, found.criteria, found.domains) == (["one", "two"], ("style", "facts"), ["unknown", "7"])
    np.testing.assert_array_equal(found.scores, np.float32([[1, np.nan], [np.nan, -2.5]]))
    assert found.num_unrated == 2


@pytest.mark.parametrize("value", ["1.0", True, [1.0], 1e39, 10**400])
def test_ratings_that_are_no_numbers(tmp_path, value):
    rows = [{"id": "x", "text": "one", "q_average": 1.0}, {"id": "y", "text": "two", "q_average": value}]
    with pytest.raises(UserError, match=r"d\.jsonl: document y: `q_average` is .*, not a finite number") as caught:
        read(put(tmp_path, "d.jsonl", jsonl(rows)))
    assert len(str(caught.value)) < len(str(tmp_path)) + 150


def test_nan_is_no_rating_and_infinity_an_error(tmp_path):
    for number, value in enumerate((float("nan"), float("inf"), -float("inf"))):
        path = tmp_path / f"{number}.parquet"
        pq.write_table(pa.table({"text": ["one", "two"], "q_average": [0.5, value]}), path)
        if number:
            with pytest.raises(UserError, match="not a finite number"):
                read(path)
        else:
            assert (len(read(path)), read(path).num_unrated) == (1, 1)


def test_files_without_ratings(tmp_path):
    with pytest.raises(
        UserError, match=r"a\.jsonl: no ratings in it, which are numbers in columns `CRITERION_average`"
    ):
        read(put(tmp_path, "a.jsonl", jsonl([{"text": "a", "q_average": [[0.5]]}])))
    with pytest.raises(UserError, match=r"b\.jsonl: no rated text in it \(2 without a rating\)"):
        read(put(tmp_path, "b.jsonl", jsonl([{"text": "a", "q_average": None}, {"text": "", "q_average": 1}])))
    with pytest.raises(UserError, match=r"c\.jsonl: no rated text in it"):
        read(put(tmp_path, "c.jsonl", b""))
    with pytest.raises(UserError, match="nowhere"):
        read(tmp_path / "nowhere")


def test_bad_rows_follow_their_policy(tmp_path):
    path = put(tmp_path, "d.jsonl", jsonl([{"text": 3, "q_average": 1.0}, {"text": "a", "q_average": 1.0}]))
    with pytest.raises(UserError, match="`text` is of type int"):
        read(path)
    rejects = Rejects(None, "skip")
    assert read_teacher([path], rejects=rejects).texts == ["a"]
    assert rejects.count == 1


# ---- windows in the text


@settings(deadline=None)
@given(st.text(min_size=1, max_size=80), st.integers(1, 7))
def test_windows_cover_any_text_without_overlap(tokenizer, text, window_tokens):
    encoding = tokenizer.backend.encode(text, add_special_tokens=False)
    lengths = window_spans(np.array([len(encoding.ids)]), window_tokens)[2].tolist()
    spans = window_characters(encoding.offsets, lengths, len(text))
    assert len(spans) == len(lengths)
    assert "".join(text[start:end] for start, end in spans) == text
    assert all(start <= end for start, end in spans)
    assert [spans[0][0], spans[-1][1]] == [0, len(text)]


@pytest.mark.parametrize(
    "name", ["gpt-neox-20b-pii-special.json", "redpajama-incite-neox.tokenizer.json", "llama-test-tokenizer.json"]
)
def test_windows_of_real_tokenizers(real_data, name):
    tokenizer = load_tokenizer(str(real_data / "tokenizers" / name))
    ascii_text = "A cell wall is made of   cellulose.\n\n\tIt's 3.14 times stronger; isn't that odd?  " * 9
    for text in (ascii_text, "Größe: 漢字 and 😀😀 emoji, naïve café " * 9, " leading and trailing "):
        encoding = tokenizer.backend.encode(text, add_special_tokens=False)
        for window_tokens in (1, 7, 64):
            lengths = window_spans(np.array([len(encoding.ids)]), window_tokens)[2].tolist()
            texts = [text[start:end] for start, end in window_characters(encoding.offsets, lengths, len(text))]
            assert "".join(texts) == text
            if text is ascii_text and not name.startswith("llama"):  # its decoder swallows leading spaces
                starts = np.cumsum([0, *lengths])
                assert texts == [
                    tokenizer.decode(encoding.ids[start : start + length])
                    for start, length in zip(starts, lengths, strict=False)
                ]


# ---- groups


def teacher(n=11, criteria=("style", "facts"), seed=0):
    rng = np.random.default_rng(seed)
    scores = rng.normal(0, 3, (n, len(criteria))).astype(np.float32)
    return Teacher(
        texts=[f"text {i}" for i in range(n)],
        ids=[f"doc {i // 2}" for i in range(n)],
        domains=[f"domain {i % 2}" for i in range(n)],
        criteria=criteria,
        scores=scores,
    )


@pytest.mark.parametrize("k", [2, 3, 4])
def test_probabilities_are_sigmoids_of_differences(k):
    rated = teacher()
    rated.scores[4, 1] = np.nan
    found = teacher_groups(rated, group_size=k, seed=3, temperature=1.7)
    assert (len(found), found.group_size, found.criteria) == (11 // k, k, ("style", "facts"))
    assert found.sources == ["teacher"] * len(found)
    assert not found.num_votes.any()
    where = {text: i for i, text in enumerate(rated.texts)}
    used = [where[text] for group in found.texts for text in group]
    assert len(set(used)) == len(used) == 11 // k * k
    for g, group in enumerate(found.texts):
        assert found.ids[g] == tuple(rated.ids[where[text]] for text in group)
        assert found.domains[g] == tuple(rated.domains[where[text]] for text in group)
        for i, one in enumerate(group):
            for j, other in enumerate(group):
                for c in range(2):
                    difference = float(rated.scores[where[other], c]) - float(rated.scores[where[one], c])
                    usable = i != j and not math.isnan(difference)
                    assert found.valid[g, i, j, c] == usable
                    expected = 1 / (1 + math.exp(-difference / 1.7)) if usable else 0.5
                    assert found.probabilities[g, i, j, c] == pytest.approx(expected, rel=1e-6)


def test_extreme_ratings_do_not_overflow():
    rated = Teacher(["a", "b"], ["1", "2"], ["u", "u"], ("q",), np.float32([[-1e38], [1e38]]))
    p = teacher_groups(rated, group_size=2, seed=0, temperature=1e-3).probabilities[0, :, :, 0]
    assert sorted((p[0, 1], p[1, 0])) == [0, 1]


@settings(deadline=None, max_examples=30)
@given(st.permutations(range(11)), st.integers(0, 2**31))
def test_groups_do_not_depend_on_the_order_of_rows(order, seed):
    rated = teacher()
    one = teacher_groups(rated, group_size=2, seed=seed)
    other = teacher_groups(rated.take(np.array(order)), group_size=2, seed=seed)
    assert (one.texts, one.ids, one.domains) == (other.texts, other.ids, other.domains)
    np.testing.assert_array_equal(one.probabilities, other.probabilities)


def test_the_seed_makes_the_order():
    rated = teacher(40)
    first = [teacher_groups(rated, group_size=2, seed=seed).texts[0] for seed in range(200)]
    assert len({text for group in first for text in group}) == 40
    assert teacher_groups(rated, group_size=2, seed=5).texts == teacher_groups(rated, group_size=2, seed=5).texts


def test_what_is_dropped_is_told(caplog):
    rated = teacher(11).take(np.array([*range(11), 3, 3, 7]))
    with caplog.at_level("INFO"):
        found = teacher_groups(rated, group_size=4, seed=0)
    assert len({text for group in found.texts for text in group}) == 8
    assert caplog.messages == ["teacher: 2 groups of 4; 3 repeated texts and a rest of 3 are dropped"]
    with pytest.raises(UserError, match="the teacher rated 11 different texts; a group needs 12"):
        teacher_groups(rated, group_size=12, seed=0)
    for wrong in ({"group_size": 1}, {"group_size": 2, "temperature": 0.0}):
        with pytest.raises(ValueError, match="group_size must be at least 2, temperature positive"):
            teacher_groups(rated, seed=0, **wrong)


def test_a_split_before_windows_are_grouped(tmp_path, tokenizer):
    annotate(tmp_path / "rated", documents(60), tokenizer, inputs={"tokenizer": tokenizer.identity})
    rated = read(tmp_path / "rated", tokenizer=tokenizer)
    with pytest.raises(UserError, match="no text-disjoint split"):
        split_disjoint(teacher_groups(rated, group_size=2, seed=0), 0.1, 0)
    train, validation = split_teacher(rated, 0.2, 0)
    assert len(train) + len(validation) == len(rated)
    one, other = (teacher_groups(part, group_size=2, seed=0) for part in (train, validation))
    assert overlap_audit(one, other).num_train_groups == 0
    assert abs(len(validation) / len(rated) - 0.2) < 0.01
    assert set(validation.domains) == {"web", "book"}
