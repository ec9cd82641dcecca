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
        assert [row[key] for key in ("mean", "5 %", "median", "highest")] == list(truth[["mean", "q05", "q50", "max"]])
    heatmap = of_kind(found["ratings"], blocks.Heatmap)["Which domains are rated high?"]
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
    figures, heatmaps = of_kind(page, blocks.Intervals), of_kind(page, blocks.Heatmap)
    for domain, title in (("", "All domains together"), ("(within)", "Inside a domain")):
        shown = heatmaps[f"What do ratings go with? {title}"]
        truth = frames["covariates"]
        truth = truth[(truth["domain"] == domain) & truth["spearman"].notna()]
        truth = truth.set_index(["covariate", "criterion"])["spearman"]
        assert len(shown.rows) * len(shown.columns) == len(truth) > 0
        for covariate, values in zip(shown.rows, shown.values, strict=True):
            for criterion, value in zip(shown.columns, values, strict=True):
                assert value == truth[covariate.replace(" ", "_"), criterion.replace(" ", "_")]
    heatmap = heatmaps["Do the criteria say the same? All domains together"]
    one = frames["correlations"].query("domain == ''").iloc[0]
    assert heatmap.values[0][1] == heatmap.values[1][0] == one["spearman"]
    groups = frames["groups"]
    known = groups[groups["difference"].notna()]
    figure = figures["Who is rated higher and who lower? Groups by role"]
    assert [row[0] for row in figure.rows] == list(known["group"])
    assert [row[2:] for row in figure.rows] == [
        tuple(row) for row in known[["difference", "difference_low", "difference_high"]].to_numpy().tolist()
    ]
    assert any("social or literary value" in note for note in notes(page, "caution"))
    lines = of_kind(page, blocks.Lines)
    assert set(lines["Are longer documents rated higher?"].series) == {"educational value", "writing style"}
    windows = rows_of(tables(page)["How much the windows of one document differ"])
    assert [row["documents"] for row in windows] == list(frames["windows"].query("domain == ''")["num_documents"])


def test_topics_and_what_the_selection_takes_of_them(found, frames):
    page = found["topics"]
    shown = rows_of(tables(page)["Topics of the sample"])
    assert [row["documents"] for row in shown] == sorted(frames["topics"]["num_documents"], reverse=True)
    assert {word for row in shown for word in row["terms"].split(", ")} >= {"ship", "flour", "verdict"} & set(
        ", ".join(row["terms"] for row in shown).split(", ")
    )
    counts = frames["topic_domains"].pivot(index="topic", columns="domain", values="num_documents").fillna(0)
    shares = counts.max(axis=1) / counts.sum(axis=1)
    numbers = frames["topics"].set_index("name")["topic"]
    for row in shown:
        assert row["share from there"] == pytest.approx(shares[numbers[row["topic"]]])
        assert row["mostly from"] == counts.loc[numbers[row["topic"]]].idxmax()
    mix = frames["selection_mix"]
    mix = mix[(mix["kind"] == "topic") & (mix["name"] == "best")].sort_values("ratio", ascending=False)
    figure = of_kind(page, blocks.Intervals)["Over- and under-selected topics: best"]
    assert [row[0] for row in figure.rows] == list(mix["part"])
    assert [row[2] for row in figure.rows] == list(mix["ratio"])
    ratings = of_kind(page, blocks.Heatmap)["Mean rating by topic, normalised"]
    best = {
        name: values[ratings.columns.index("educational value")]
        for name, values in zip(ratings.rows, ratings.values, strict=True)
    }
    assert ratings.columns[0] == "educational value"  # that was selected by
    assert list(best.values()) == sorted(best.values(), reverse=True)
    assert max(best, key=best.get) == next(
        row["topic"] for row in shown if {"court", "jury"} & set(row["terms"].split(", "))
    )


def test_the_grid_of_selections(found, frames):
    effect = frames["selection_effect"]
    grid = effect[(effect["kind"] == "grid") & effect["temperature"].notna()]
    line = of_kind(found["selection"], blocks.Lines)["How much better rated is a selection, by temperature?"]
    for criterion, (x, y) in line.series.items():
        truth = grid[grid["criterion"].str.replace("_", " ") == criterion].sort_values("temperature")
        assert (x, y) == (tuple(truth["temperature"]), tuple(truth["mean_rating_normalized"]))
    (row,) = rows_of(tables(found["selection"])["What the selections did"])
    truth = effect[effect["kind"] == "real"].iloc[0]
    assert (row["selection"], row["documents"], row["mean rating (standard deviations)"]) == (
        "best",
        truth["num_selected"],
        truth["mean_rating_normalized"],
    )


def test_verdicts_come_first_and_the_worst_of_them(found, frames):
    first, *_ = found["audit"].blocks
    truth = frames["audit_verdicts"].set_index(["question", "criterion"])
    assert isinstance(first, blocks.Verdicts)
    assert set(first.questions) == set(frames["audit_verdicts"]["question"])
    for question, cells in zip(first.questions, first.cells, strict=True):
        for criterion, (verdict, value, because) in zip(first.columns, cells, strict=True):
            row = truth.loc[(question, criterion.replace(" ", "_"))]
            assert (verdict, because) == (row["verdict"], row["because"])
            assert value == ("" if pd.isna(row["value"]) else f"{row['value']:.2f}")
    failing = [sum(cell[0] == "fails" for cell in cells) for cells in first.cells]
    assert failing == sorted(failing, reverse=True)
    assert failing[0] > 0
    facts = {item[0]: item for item in of_facts(found["summary"])}
    _, what, told = facts["the audit fails most on"]
    assert what.endswith(f": {failing[0]} of 2 criteria")
    assert told.startswith(f"{sum(failing)} of {len(truth)} checks fail")
    assert any(isinstance(block, blocks.Verdicts) for block in found["summary"].blocks)
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
    summary = frames["ratings_summary"].query("domain == ''").set_index("criterion")
    assert explorer.means == tuple(summary["mean"][["writing_style", "educational_value"]])
    assert explorer.stds == tuple(summary["std"][["writing_style", "educational_value"]])
    fewer = pages(root, settings=Settings(max_documents=10))["documents"].blocks[0]
    assert fewer.documents == explorer.documents[:10]
    assert f"Of its {len(texts)} documents with texts 10 are here" in fewer.sample_note


def test_documents_to_read_at_percentiles(found, frames):
    truth = frames["percentiles"].query("domain == '' and criterion == 'educational_value'").set_index("percentile")
    domains = frames["documents"].set_index("id")["domain"]
    shown = rows_of(tables(found["ratings"])["What is rated low and what high? Educational value"])
    assert [row["percentile"] for row in shown] == [5, 30, 70, 95]
    for row in shown:
        of = truth.loc[row["percentile"]]
        assert (row["rating"], row["domain"]) == (of["rating"], domains[of["id"]])
        assert of["excerpt"].startswith(row["beginning of the document"][:50])


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
        "Verdicts",
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
    assert "1 of the 1 on which the rater was not trained" in explorer.sample_note


def test_held_out_pairs_come_first_then_contested_ones(tmp_path):
    rng = np.random.default_rng(0)
    ours = ["yes"] * 3 + ["flip"] * 40 + ["rater"] * 40 + ["settled"] * 200
    p = {"yes": (0.9, 0.9, 0.9), "flip": (0.9, 0.2, 0.9), "rater": (0.9, 0.8, 0.1), "settled": (0.9, 0.8, 0.7)}
    rows = [
        {"criterion": "x", "judge": "j", "first_id": f"a{place}", "second_id": f"b{place}", "first_text": kind,
         "second_text": "", "held_out": kind == "yes",
         **dict(zip(("p_forward", "p_backward", "p_rater"), p[kind], strict=True))}
        for place, kind in rng.permutation(list(enumerate(ours))).tolist()
    ]  # fmt: skip
    place = artifact(tmp_path, "analysis", "analyze", {}, files={"analysis.json": {"criteria": ["x"]}})
    (place / "tables").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), place / "tables" / "pairs.parquet")

    def shown(max_pairs):
        (explorer,) = pages(tmp_path, settings=Settings(max_pairs=max_pairs))["pairs"].blocks
        return [pair.first_text for pair in explorer.pairs], explorer.sample_note

    kinds, note = shown(63)
    assert kinds[:3] == ["yes"] * 3
    assert sorted(set(kinds[3:33])) == ["flip", "rater"]
    assert kinds[33:] == ["settled"] * 30
    assert "3 of the 3 on which the rater was not trained" in note
    assert "30 of the 80 others on which the judge changed its mind" in note
    kinds, _ = shown(283)
    assert sorted(kinds) == sorted(ours)
    assert shown(2)[0] == ["yes"] * 2
