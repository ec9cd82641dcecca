"""What pages show of an analysis: the same numbers as pandas reads from its tables."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from report_runs import HOSTILE, artifact, notes, of_kind, pages, rows_of, tables

from qurating_jax import __main__ as command
from qurating_jax.reporting import blocks
from qurating_jax.reporting.evidence import Settings

WORDS = {
    "sea": ["ship", "sail", "captain", "harbour", "wave", "storm", "anchor", "deck", "crew", "island"],
    "kitchen": ["flour", "butter", "oven", "recipe", "sugar", "dough", "bake", "salt", "bowl", "spoon"],
    "court": ["judge", "court", "verdict", "lawyer", "trial", "witness", "appeal", "clause", "statute", "jury"],
}


def _documents(num=240):
    """Documents of three topics and two domains, one of them with a hostile name; the rating follows the topic."""
    rng = np.random.default_rng(0)
    for number in range(num):
        topic = list(WORDS)[number % 3]
        size = int(rng.integers(20, 60))
        rating = 2.0 * (topic == "court") + float(rng.normal())
        yield {
            "id": f"doc-{number}",
            "text": " ".join(rng.choice(WORDS[topic], size)) + f" number {number}.",
            "domain": "web" if rng.random() < 0.6 else HOSTILE,
            "role": ["poet", "nurse", None][int(rng.integers(3))],
            "human": rating + float(rng.normal()),
            "length": size + 2,
            "chunk_lengths": [size // 2, size // 2 + 2],
            "educational_value_chunks": [rating - 0.5, rating + 0.5],
            "educational_value_average": None if number % 40 == 7 else rating,
            "writing_style_average": float(rng.normal()) - rating / 2,
        }


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Rated documents, a selection of them by `select`, and the analysis of both."""
    root = tmp_path_factory.mktemp("analysed")
    rated = artifact(root, "annotate", "annotate", {"documents": 240})
    pq.write_table(pa.Table.from_pylist(list(_documents())), rated / "part-00000.parquet")
    rating = ["--rating", "educational_value_average", "--tokens_field", "length", "--domain_field", "domain"]
    chosen = ["--strategy", "top_k", "--budget_fraction", "0.25", "--output", str(root / "best")]
    assert command.main(["select", "--input", str(rated / "part-00000.parquet"), *rating, *chosen]) == 0
    options = ["--input", str(rated / "part-00000.parquet"), "--selections", f"best={root / 'best'}"]
    options += ["--groups", "role", "--labels", "human", "--num_topics", "3", "--num_shown_documents", "80"]
    assert command.main(["analyze", "--output", str(root / "analysis"), *options]) == 0
    return root


@pytest.fixture(scope="module")
def found(root):
    return pages(root)


@pytest.fixture(scope="module")
def frames(root):
    return {path.stem: pd.read_parquet(path) for path in (root / "analysis" / "tables").glob("*.parquet")}


def _words(name):
    return name.replace("_", " ")


def test_every_page_is_there_and_nothing_is_left_out(found):
    assert list(found) == [
        "summary", "ratings", "topics", "selection", "audit", "documents", "provenance",
    ]  # fmt: skip
    assert not any("left out" in note for note in notes(found["summary"], "missing"))


def test_ratings_are_those_of_the_tables(found, frames):
    summary = frames["ratings_summary"].set_index(["criterion", "domain"])
    shown = rows_of(tables(found["ratings"])["Ratings by criterion: quantiles"])
    assert len(shown) == 2
    for row in shown:
        truth = summary.loc[row["criterion"].replace(" ", "_"), ""]
        assert (row["documents"], row["unrated"]) == (truth["num_documents"], truth["num_null"])
        assert [row[key] for key in ("mean", "q05", "q50", "max")] == list(truth[["mean", "q05", "q50", "max"]])
    heatmap = of_kind(found["ratings"], blocks.Heatmap)["Mean rating by domain, normalised"]
    assert set(heatmap.rows) == {"web", HOSTILE}
    for domain, values in zip(heatmap.rows, heatmap.values, strict=True):
        for criterion, value in zip(heatmap.columns, values, strict=True):
            assert value == summary.loc[(criterion.replace(" ", "_"), domain), "mean_normalized"]
    (histogram,) = of_kind(found["ratings"], blocks.Histogram).values()
    bins = frames["ratings_histogram"]
    for criterion, shares in histogram.series.items():
        of = bins[(bins["criterion"] == criterion.replace(" ", "_")) & (bins["scale"] == "normalized")]
        of = of[of["domain"] == ""].sort_values("low")
        counts = of.set_index("low")["num_documents"].reindex(histogram.edges[:-1], fill_value=0)
        assert np.allclose(shares, counts / counts.sum())


def test_correlations_covariates_windows_and_groups(found, frames):
    page = found["ratings"]
    figures = of_kind(page, blocks.Intervals)
    covariates = figures["What ratings go with: rank correlation with properties of the text"]
    truth = frames["covariates"]
    truth = truth[(truth["domain"] == "") & truth["spearman"].notna()]
    assert [row[2] for row in covariates.rows] == list(truth["spearman"])
    assert [row[0] for row in covariates.rows] == [_words(name) for name in truth["covariate"]]
    heatmap = of_kind(page, blocks.Heatmap)["Rank correlation between criteria, pooled"]
    one = frames["correlations"].query("domain == ''").iloc[0]
    assert heatmap.values[0][1] == heatmap.values[1][0] == one["spearman"]
    groups = frames["groups"]
    known = groups[groups["difference"].notna()]
    figure = figures["Groups by role: mean rating less that of all others"]
    assert [row[0] for row in figure.rows] == list(known["group"])
    assert [row[2:] for row in figure.rows] == [
        tuple(row) for row in known[["difference", "difference_low", "difference_high"]].to_numpy().tolist()
    ]
    assert any("social or literary value" in note for note in notes(page, "caution"))
    lines = of_kind(page, blocks.Lines)
    assert set(lines["Mean rating by length"].series) == {"educational value", "writing style"}
    windows = rows_of(tables(page)["How much the windows of one document differ"])
    assert [row["documents"] for row in windows] == list(frames["windows"].query("domain == ''")["num_documents"])


def test_topics_and_what_the_selection_takes_of_them(found, frames):
    page = found["topics"]
    shown = rows_of(tables(page)["Topics of the sample"])
    assert [row["documents"] for row in shown] == sorted(frames["topics"]["num_documents"], reverse=True)
    assert {word for row in shown for word in row["terms"].split(", ")} >= {"ship", "flour", "verdict"} & set(
        ", ".join(row["terms"] for row in shown).split(", ")
    )
    heatmap = of_kind(page, blocks.Heatmap)["Domains of each topic"]
    assert all(sum(shares) == pytest.approx(1.0) for shares in heatmap.values)
    mix = frames["selection_mix"]
    mix = mix[(mix["kind"] == "topic") & (mix["name"] == "best")]
    title = "Over- and under-selected topics"
    ratios = of_kind(page, blocks.Intervals).get(title) or of_kind(page, blocks.Heatmap)[title]
    values = (
        [row[2] for row in ratios.rows] if isinstance(ratios, blocks.Intervals) else [row[0] for row in ratios.values]
    )
    assert sorted(values) == pytest.approx(sorted(mix["ratio"]))
    ratings = of_kind(page, blocks.Heatmap)["Mean rating by topic, normalised"]
    best = {
        name: values[ratings.columns.index("educational value")]
        for name, values in zip(ratings.rows, ratings.values, strict=True)
    }
    assert max(best, key=best.get) == next(
        row["topic"] for row in shown if {"court", "jury"} & set(row["terms"].split(", "))
    )


def test_the_grid_of_selections(found, frames):
    effect = frames["selection_effect"]
    grid = effect[(effect["kind"] == "grid") & effect["temperature"].notna()]
    line = of_kind(found["selection"], blocks.Lines)["Mean rating of a selection by its temperature"]
    for criterion, (x, y) in line.series.items():
        truth = grid[grid["criterion"].str.replace("_", " ") == criterion].sort_values("temperature")
        assert (x, y) == (tuple(truth["temperature"]), tuple(truth["mean_rating"]))
    (row,) = rows_of(tables(found["selection"])["What the selections did"])
    truth = effect[effect["kind"] == "real"].iloc[0]
    assert (row["selection"], row["selected"], row["mean rating"]) == (
        "best",
        truth["num_selected"],
        truth["mean_rating"],
    )


def test_verdicts_come_first_and_the_worst_of_them(found, frames):
    first, *_ = found["audit"].blocks
    assert first.title == "Verdicts"
    assert len(first.rows) == len(frames["audit_verdicts"])
    order = [row["verdict"] for row in rows_of(first)]
    places = [["fails", "caution", "unknown", "passes"].index(verdict) for verdict in order]
    assert places == sorted(places)
    facts = {item[0]: item[1] for item in of_facts(found["summary"])}
    assert facts["audit of the rater"] == f"{order.count('fails')} of {len(order)} fail"
    figures = of_kind(found["audit"], blocks.Intervals)
    explained = figures["How much of the rating is explained without reading the text"]
    truth = frames["audit_explained"].query("kind != 'beyond the others' and r2 == r2")
    assert [row[2] for row in explained.rows] == list(truth["r2"])
    agreement = figures["Agreement with human"]
    truth = frames["audit_agreement"].query("source == 'human' and part == ''")
    assert [row[2] for row in agreement.rows] == list(truth["value"].dropna())


def of_facts(page):
    return [item for block in page.blocks if isinstance(block, blocks.Facts) for item in block.items]


def test_the_explorer_holds_the_shown_documents(root, found, frames):
    (explorer,) = found["documents"].blocks
    texts, documents = frames["texts"].set_index("id"), frames["documents"].set_index("id")
    assert (explorer.num_all, len(explorer.documents)) == (240, len(texts))
    assert explorer.criteria == ("writing style", "educational value")  # as analysis.json has them
    assert explorer.selections == ("best",)
    selected = set(pq.read_table(root / "best" / "ids.parquet")["id"].to_pylist())
    for document in explorer.documents:
        row = documents.loc[document.id]
        assert document.text == texts.loc[document.id, "text"]
        assert (document.domain, document.tokens) == (row["domain"], row["tokens"])
        assert document.ratings[0] == row["writing_style"]
        assert document.percentiles[0] == row["percentile_writing_style"]
        assert (document.ratings[1] is None) == bool(pd.isna(row["educational_value"]))
        assert explorer.topics[document.topic] == frames["topics"].set_index("topic").loc[row["topic"], "name"]
        assert document.windows[1] == tuple(texts.loc[document.id, "educational_value_chunks"])
        assert document.selected == ((0,) if document.id in selected else ())
    fewer = pages(root, settings=Settings(max_documents=10))["documents"].blocks[0]
    assert fewer.documents == explorer.documents[:10]
    assert f"Of its {len(texts)} documents with texts 10 are here" in fewer.sample_note


def test_no_text_and_no_id(root, frames):
    everything = repr(pages(root, settings=Settings(with_texts=False)))
    assert not any(f"'{name}'" in everything for name in frames["documents"]["id"])
    assert not any(text in everything for text in frames["texts"]["text"])
    assert "jury" in everything  # terms of topics stay, and the summary says so
    assert "terms of topics are words of the corpus" in everything


def test_every_kind_of_block_appears(root, found):
    kinds = {type(block).__name__ for page in found.values() for block in page.blocks}
    assert kinds >= {
        "Note",
        "Facts",
        "Table",
        "Intervals",
        "Histogram",
        "Lines",
        "Heatmap",
        "DocumentsExplorer",
        "Bars",
    }


def test_pairs_with_what_the_rater_says(tmp_path):
    pairs = {
        "criterion": ["style_x", "style_x"],
        "judge": [HOSTILE, "two"],
        **{
            f"{side}_{name}": [f"{side} {name}", HOSTILE]
            for side in ("first", "second")
            for name in ("id", "domain", "text")
        },
        "p_forward": [0.25, None],
        "p_backward": [0.5, 0.75],
        "p_average": [0.375, None],
        "p_rater": [0.875, None],
        "held_out": [True, None],
    }
    place = artifact(tmp_path, "analysis", "analyze", {}, files={"analysis.json": {"criteria": ["style_x"]}})
    (place / "tables").mkdir()
    pq.write_table(pa.table(pairs), place / "tables" / "pairs.parquet")
    (explorer,) = pages(tmp_path)["pairs"].blocks
    assert [pair.held_out for pair in explorer.pairs] == [True, None]
    shown = {pair.judge: pair for pair in explorer.pairs}
    one = shown[HOSTILE]
    assert (one.criterion, one.p_forward, one.p_backward, one.p_rater, one.held_out) == (
        "style x",
        0.25,
        0.5,
        0.875,
        True,
    )
    assert (one.first_text, one.second_domain) == ("first text", "second domain")
    assert (shown["two"].p_forward, shown["two"].p_rater, shown["two"].held_out) == (None, None, None)
    assert "first the 1 on which the rater was not trained" in explorer.sample_note
