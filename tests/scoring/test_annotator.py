"""Ratings as columns, against plain Python: models whose scores are known, and real ones of every kind together."""

import dataclasses
import math

import numpy as np
import pyarrow as pa
import pytest
import tiny_hf as tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from test_ngrams import random_judgments, random_texts, small

from qurating_jax.models.config import ComputeConfig
from qurating_jax.parallel.mesh import make_mesh
from qurating_jax.parallel.options import MeshShape
from qurating_jax.runtime.errors import UserError
from qurating_jax.scoring import combined
from qurating_jax.scoring.annotator import Annotator, Layout
from qurating_jax.scoring.likelihood import LanguageModel
from qurating_jax.scoring.model_set import find_models
from qurating_jax.scoring.ngrams import NgramModel, fit
from qurating_jax.scoring.rater import Rater
from qurating_jax.scoring.scorer import Work

AGGREGATES = ("max", "min", "first")
WINDOW = 5


@dataclasses.dataclass(frozen=True)
class KnownRater:
    """Rates a window on its first and on its last token."""

    tokenizer: object = None
    broken: bool = False
    criteria: tuple[str, ...] = ("opens", "ends")
    reads_texts: bool = False
    work: Work = Work(3, 4, 5.0)

    def suited_to(self, sizes, max_shapes):
        return dataclasses.replace(self, work=Work(max_shapes, int(sizes.sum()), 0.0))

    def score_windows(self, windows, on_share=None):
        if on_share is not None:
            on_share(0.25)
            on_share(0.75)
        firsts, lasts = windows.values[windows.starts], windows.values[windows.starts + windows.sizes - 1]
        scores = np.stack([firsts / 7, -lasts.astype(float)], axis=1).astype(np.float32)
        return np.where(self.broken & (scores < -100), np.nan, scores)


@dataclasses.dataclass(frozen=True)
class KnownLanguageModel:
    """Every token but a document's first costs a thousandth of its id in nats."""

    broken: bool = False
    work: Work = Work(1, 1, 1.0)

    def suited_to(self, sizes, max_shapes):
        return dataclasses.replace(self, work=Work(max_shapes, int(sizes.sum()), 0.0))

    def log_likelihoods(self, windows, on_share=None):
        if on_share is not None:
            on_share(1.0)
        totals, predicted = [], []
        for document, start, size in zip(windows.documents, windows.starts, windows.sizes, strict=True):
            begin = max(start, windows.offsets[document] + 1)
            totals.append(-windows.values[begin : start + size].sum() / 1000)
            predicted.append(start + size - begin)
        totals = np.array(totals, np.float64)
        return np.where(self.broken, np.inf, totals), np.array(predicted, np.int64)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tiny.make_tokenizer(tmp_path_factory.mktemp("tokenizer") / "made")


def annotator(tokenizer, *, window_tokens=WINDOW, max_windows=None, rater=None, language_model=None, **layout):
    layout = Layout({"a_": ("opens", "ends")}, ("lm_",), **{"aggregates": AGGREGATES, **layout})
    raters, models = {"a_": rater or KnownRater()}, {"lm_": language_model or KnownLanguageModel()}
    return Annotator(raters, models, tokenizer, window_tokens, max_windows, layout)


def plain(scores, weights):
    """What the columns of one rating hold for one document; a window without weight has no score."""
    rated = [(score, weight) for score, weight in zip(scores, weights, strict=True) if weight]
    chunks = [score if weight else None for score, weight in zip(scores, weights, strict=True)]
    if not rated:
        return {"chunks": chunks, "average": None, **dict.fromkeys(AGGREGATES)}
    mean = math.fsum(score * weight for score, weight in rated) / sum(weight for _, weight in rated)
    values = [score for score, _ in rated]
    return {"chunks": chunks, "average": mean, "max": max(values), "min": min(values), "first": values[0]}


def plain_row(text, tokenizer, window_tokens, max_windows):
    ids = tokenizer.encode([text])[0].tolist()
    pieces = [(start, ids[start : start + window_tokens]) for start in range(0, len(ids), window_tokens)]
    if max_windows == 2 and len(pieces) > 2:
        pieces = [pieces[0], pieces[-1]]
    sizes = [len(piece) for _, piece in pieces]
    row = {"length": len(ids), "chunk_lengths": sizes}
    likelihoods, predicted = [], []
    for start, piece in pieces:
        told = piece if start else piece[1:]
        likelihoods.append(-sum(told) / 1000 / len(told) if told else None)
        predicted.append(len(told))
    ratings = {
        "a_opens": plain([np.float32(piece[0] / 7) for _, piece in pieces], sizes),
        "a_ends": plain([-float(piece[-1]) for _, piece in pieces], sizes),
        "lm_log_likelihood": plain(likelihoods, predicted),
    }
    row |= {f"{rating}_{kind}": value for rating, kinds in ratings.items() for kind, value in kinds.items()}
    if max_windows is None:
        num_bytes = sum(len(tokenizer.backend.id_to_token(token)) for token in ids[1:])  # a character stands for a byte
        row["lm_bits_per_byte"] = sum(ids[1:]) / 1000 / math.log(2) / num_bytes if len(ids) > 1 else None
    return row


def assert_rows(table, expected):
    """Equal but for the rounding to float32."""
    assert table.num_rows == len(expected)
    for row, want in zip(table.to_pylist(), expected, strict=True):
        assert row.keys() == want.keys()
        for name, value in want.items():
            found, value = (x if isinstance(x, list) else [x] for x in (row[name], value))
            assert [number is None for number in found] == [number is None for number in value], name
            found, value = (np.array([number for number in x if number is not None], float) for x in (found, value))
            np.testing.assert_allclose(found, value, rtol=2e-7, atol=0, err_msg=name)


TEXTS = st.lists(st.text(st.sampled_from(list("the cell of a 🙂.")), max_size=60), max_size=6)


@given(texts=TEXTS, window_tokens=st.sampled_from([1, WINDOW]), max_windows=st.sampled_from([None, 2]))
@settings(max_examples=100)
def test_columns_are_those_of_plain_python(tokenizer, texts, window_tokens, max_windows):
    made = annotator(tokenizer, window_tokens=window_tokens, max_windows=max_windows, bytes=max_windows is None)
    table = pa.table(made.columns(made.cut(texts), texts))
    assert table.column_names == made.layout.names()
    assert_rows(table, [plain_row(text, tokenizer, window_tokens, max_windows) for text in texts])


def test_columns_have_the_published_types(tokenizer):
    made = annotator(tokenizer)
    for texts in ([], [""], tiny.TEXTS):
        for name, column in made.columns(made.cut(texts), texts).items():
            number = pa.int32() if "length" in name else pa.float32()
            assert column.type == (pa.list_(number) if "chunk" in name else number), name
            assert len(column) == len(texts)


def test_names_are_the_columns_in_their_order(tokenizer):
    for layout in (
        {},
        {"chunks": False, "aggregates": ("first",)},
        {"bytes": False, "prefix": "new_"},
        {"aggregates": (), "chunks": False},
    ):
        made = annotator(tokenizer, **layout)
        columns = made.columns(made.cut(tiny.TEXTS), tiny.TEXTS)
        assert list(columns) == made.layout.names()
    assert list(columns) == [
        "length", "a_opens_average", "a_ends_average", "lm_log_likelihood_average", "lm_bits_per_byte",
    ]  # fmt: skip
    # What is left out changes nothing of what stays.
    whole = annotator(tokenizer)
    everything = whole.columns(whole.cut(tiny.TEXTS), tiny.TEXTS)
    assert all(column.equals(everything[name]) for name, column in columns.items())


def test_a_document_of_one_token_has_ratings_and_no_likelihood(tokenizer):
    made = annotator(tokenizer)
    [row] = pa.table(made.columns(made.cut(["a"]), ["a"])).to_pylist()
    assert row["length"] == 1
    assert row["a_opens_average"] is not None
    assert row["lm_log_likelihood_chunks"] == [None]
    assert row["lm_log_likelihood_average"] is row["lm_log_likelihood_first"] is row["lm_bits_per_byte"] is None


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"rater": KnownRater(broken=True)}, r"the model a gives scores that are no numbers \(1 of 4\); its weights"),
        ({"language_model": KnownLanguageModel(broken=True)}, r"the model lm gives scores .* \(2 of 2\)"),
    ],
)
def test_scores_that_are_no_numbers_are_an_error(tokenizer, broken, message):
    made = annotator(tokenizer, **broken)
    windows = made.cut_tokens(np.array([5, 6, 90, 5, 290], np.int32), np.array([0, 3, 5]))
    with pytest.raises(UserError, match=message):
        made.columns(windows, ["abc", "de"])


def test_work_and_shares_are_those_of_all_models(tokenizer):
    made, shares = annotator(tokenizer), []
    assert made.work == Work(4, 5, 6.0)
    made.columns(made.cut(tiny.TEXTS), tiny.TEXTS, shares.append)
    assert shares == [0.125, 0.375, 0.5]
    assert made.suited_to(np.array([3, 4]), 6).work == Work(12, 14, 0.0)


def test_token_ids_are_windows_as_their_texts_are(tokenizer):
    made = annotator(tokenizer)
    values, offsets = tokenizer.encode_flat(tiny.TEXTS)
    from_ids = made.columns(made.cut_tokens(values, offsets), None)
    from_texts = made.columns(made.cut(tiny.TEXTS), tiny.TEXTS)
    assert from_ids.keys() == from_texts.keys() - {"lm_bits_per_byte"}
    assert all(column.equals(from_texts[name]) for name, column in from_ids.items())
    for wrong in (-1, tokenizer.vocab_size):
        with pytest.raises(UserError, match=f"the tokenizer has {tokenizer.vocab_size}"):
            made.cut_tokens(np.array([5, wrong], np.int32), np.array([0, 2]))


# --- real models ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Directories of an n-gram rater, a neural one, both combined, and a language model of the same tokenizer."""
    root = tmp_path_factory.mktemp("models")
    rng = np.random.default_rng(0)
    texts = [*random_texts(rng, 30), *filter(None, tiny.TEXTS)]
    words = fit(random_judgments(rng, criteria=tiny.CRITERIA, texts=texts), small())
    words.save(str(root / "words"))
    tiny.make_model(root / "made", 3).rename(root / "net")
    (root / "both").mkdir()
    words.save(str(root / "both" / "words"))
    tiny.make_model(root / "again", 3).rename(root / "both" / "net")
    combined.save(str(root / "both"), ["words", "net"], tiny.CRITERIA, [[0.5] * 3, [2.0] * 3])
    tiny.make_model(root / "spoken", 0).rename(root / "lm")
    return {name: str(root / name) for name in ("words", "net", "both", "lm")}


def load(raters, models=(), window_tokens=24):
    found = find_models(raters, models, revision=None, criteria=(), tokenizer=None, window_tokens=window_tokens)
    layout = Layout({name: info.criteria for name, info in found.raters.items()}, tuple(found.language_models))
    return found.load(
        layout,
        mesh=make_mesh(MeshShape()),
        compute=ComputeConfig(),
        window_tokens=window_tokens,
        max_windows=None,
        batch_tokens=200,
    )


def test_raters_of_every_kind_go_through_one_pass(places):
    made = load([places["net"], *(f"{name}={places[name]}" for name in ("words", "both"))], [places["lm"]])
    texts, shares = [*tiny.TEXTS, "A proof. " * 40], []
    windows = made.cut(texts)
    columns = made.columns(windows, texts, shares.append)
    assert list(columns) == made.layout.names()
    assert sum(shares) == pytest.approx(1, rel=1e-12)
    net, both = (Rater.load(places[name], window_tokens=24).rate(texts) for name in ("net", "both"))
    words = NgramModel.load(places["words"]).score(windows.texts)
    likelihoods, predicted = LanguageModel.load(
        places["lm"], make_mesh(MeshShape()), compute=ComputeConfig(), context_tokens=24
    ).log_likelihoods(windows)
    for number, criterion in enumerate(tiny.CRITERIA):
        for prefix, scores in (("", net.scores), ("words_", words), ("both_", both.scores)):
            chunks = columns[f"{prefix}{criterion}_chunks"]
            assert len(chunks.flatten()) == len(windows)
            np.testing.assert_allclose(
                chunks.flatten().to_numpy(), scores[:, number], rtol=0, atol=2e-5 * np.abs(scores).max()
            )
        averages = columns[f"{criterion}_average"].to_numpy(zero_copy_only=False)
        np.testing.assert_allclose(averages, net.averages[:, number], rtol=0, atol=2e-5)
        assert np.isnan(averages).tolist() == [text == "" for text in texts]
    found = columns["log_likelihood_chunks"].flatten().to_numpy(zero_copy_only=False)
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(found, likelihoods / predicted, rtol=1e-5)
    assert made.work.tokens == 2 * windows.sizes.sum() + predicted.sum()  # two neural raters and the language model


def test_shapes_suited_to_the_windows_change_no_rating(places):
    made = load([f"net={places['net']}", f"both={places['both']}"], [places["lm"]])
    texts = ["A proof. " * 40, *tiny.TEXTS, *(text[: 3 * n] for n, text in enumerate(tiny.TEXTS * 4))]
    windows = made.cut(texts)
    suited = made.suited_to(windows.sizes, 4)
    before, after = made.columns(windows, texts), suited.columns(windows, texts)
    for name, column in before.items():
        if pa.types.is_list(column.type):
            column, after[name] = column.flatten(), after[name].flatten()
        want, got = (array.to_numpy(zero_copy_only=False) for array in (column, after[name]))
        np.testing.assert_allclose(got, want, rtol=0, atol=2e-5 * np.nanmax(np.abs(want)))
    assert suited.work.tokens == made.work.tokens
    assert suited.work.places < made.work.places
    assert suited.work.flops == made.work.flops > 0


def test_words_alone_need_no_tokenizer(places):
    made = load([places["words"]])
    assert made.tokenizer is None
    texts = tiny.TEXTS
    averages = [made.columns(made.cut(texts), texts)[f"{name}_average"].to_pylist() for name in tiny.CRITERIA]
    expected = Rater.load(places["words"], window_tokens=24).score(texts)
    assert np.array_equal(np.array(averages, float).T.astype(np.float32), expected, equal_nan=True)
    assert made.work == Work()
