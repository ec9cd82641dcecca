"""Rated documents without an analysis: numbers are those of pandas, the sample is one, texts belong to their rows."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from report_runs import CRITERIA, annotated, artifact, evidence, of_kind, pages, rated, tables

from qurating_jax.reporting import blocks
from qurating_jax.reporting.annotated import percentile, read_annotated
from qurating_jax.reporting.artifacts import find_artifacts
from qurating_jax.reporting.evidence import Settings


def _read(root, max_documents=50, seed=0):
    (one, *_), _ = find_artifacts(str(root))
    notes = []
    return read_annotated(one, notes, max_documents=max_documents, seed=seed), notes


def test_extremes_across_files_and_row_groups(tmp_path):
    annotated(tmp_path)
    found, notes = _read(tmp_path)
    assert (found.criteria, found.num_documents, found.num_rated, notes) == (CRITERIA, 6, 4, [])
    ends = found.extremes["educational_value"]
    (top, top_id, excerpt), (bottom, bottom_id, dull) = ends["top"], ends["bottom"]
    assert (top, top_id, bottom, bottom_id) == (9.25, "d01", -3.5, "d10")
    assert excerpt.startswith("</td></script>")
    assert len(dull) == 300
    assert dull.endswith("…")
    assert {end: (rating, name) for end, (rating, name, _) in found.extremes["writing_style"].items()} == {
        "top": (1.0, "d10"),
        "bottom": (0.0, "d00"),
    }


def test_numbers_are_those_of_pandas(tmp_path):
    table = rated(tmp_path, 437)
    found, _ = _read(tmp_path, max_documents=500)
    frame = table.to_pandas().set_index("id")
    assert found.num_documents == found.num_rated == len(found.documents) == 437
    ranks = {name: 100 * (frame[f"{name}_average"].rank(method="average") - 0.5) / 437 for name in CRITERIA}
    for document in found.documents:
        row = frame.loc[document.id]
        assert document.text == row["text"]
        assert document.domain == row["domain"]
        assert document.tokens == row["length"]
        assert document.window_tokens == (512, 7)
        for place, name in enumerate(CRITERIA):
            assert document.ratings[place] == row[f"{name}_average"]
            assert document.windows[place] == tuple(row[f"{name}_chunks"].astype(float))
            assert document.percentiles[place] == pytest.approx(ranks[name][document.id])
    values = frame[[f"{name}_average" for name in CRITERIA]].to_numpy(np.float64)
    assert (found.edges[0], found.edges[-1]) == (values.min(), values.max())
    for column, name in zip(values.T, CRITERIA, strict=True):
        bins = pd.cut(column, found.edges, right=False, labels=False)
        counts = np.array([(bins == number).sum() for number in range(40)])
        counts[-1] += (column == found.edges[-1]).sum()
        assert np.allclose(found.histograms[name], counts / 437)


def test_the_sample_is_one_whatever_the_cut(tmp_path):
    rated(tmp_path / "one", 300, row_group_size=7, num_parts=5)
    rated(tmp_path / "other", 300, row_group_size=300, num_parts=1)
    one, other = (_read(tmp_path / name)[0] for name in ("one", "other"))
    assert one.documents == other.documents
    assert one.extremes == other.extremes
    assert len(one.documents) == 50
    fewer, _ = _read(tmp_path / "one", max_documents=20)
    assert fewer.documents == one.documents[:20]
    ids, others = ({document.id for document in _read(tmp_path / "one", seed=seed)[0].documents} for seed in (0, 1))
    assert ids != others
    counted = pd.Series([document.domain for document in one.documents]).value_counts()
    assert set(counted.index) == {"domain 0", "domain 1", "domain 2"}


def test_percentiles_of_ties_and_gaps():
    ordered = np.array([1.0, 2.0, 2.0, 3.0])
    assert [percentile(value, ordered) for value in (1.0, 2.0, 3.0, 0.0, 9.0)] == [12.5, 50.0, 87.5, 0.0, 100.0]
    assert percentile(float("nan"), ordered) is None
    assert percentile(1.0, ordered[:0]) is None


def test_dotted_fields_of_the_annotated_documents(tmp_path):
    directory = artifact(tmp_path, "a", "annotate", {}, config={"text_field": "content.body", "id_field": "key"})
    table = pa.table({"content": [{"body": "inner text"}], "key": [17], "x_average": [1.0]})
    pq.write_table(table, directory / "part-00000.parquet")
    found, _ = _read(tmp_path)
    assert found.extremes["x"]["top"] == (1.0, "17", "inner text")
    (document,) = found.documents
    assert (document.id, document.text, document.windows, document.tokens) == ("17", "inner text", ((),), 0)
    assert (found.edges, found.histograms) == ((), {})  # no spread, no figure


def test_parts_that_cannot_be_read_and_parts_of_other_criteria(tmp_path):
    rated(tmp_path, 30)
    directory = tmp_path / "annotate"
    (directory / "part-00001.parquet").write_bytes(b"PAR1 cut")
    pq.write_table(pa.table({"text": ["no id"], "late_average": [2.0]}), directory / "part-00009.parquet")
    found, notes = _read(tmp_path)
    assert found.num_documents == 21
    assert [note.split(" is left out")[0] for note in notes] == ["annotate/part-00001.parquet"]
    assert found.extremes["late"]["top"][::2] == (2.0, "no id")
    late = next(document for document in found.documents if document.text == "no id")
    assert late.ratings == (2.0, None, None) or late.ratings == (None, None, 2.0)
    assert "cannot be read" not in pages(tmp_path)["summary"].lead
    assert any("part-00001" in note.text for note in pages(tmp_path)["summary"].blocks if isinstance(note, blocks.Note))


def test_a_stage_without_ratings_says_so(tmp_path):
    artifact(tmp_path, "annotate", "annotate", {})
    found = pages(tmp_path)
    assert tables(found["ratings"])["Highest and lowest rated documents: annotate"].note == "No rated documents."
    assert "documents" not in found


def test_the_explorer_knows_what_was_selected(tmp_path):
    table = rated(tmp_path, 200)
    taken = {"one": {f"doc-{number}" for number in range(0, 200, 2)}, "two": {"doc-1", "doc-2"}}
    for name, ids in taken.items():
        directory = artifact(tmp_path, name, "select", {}, files={"selection.json": {"num_selected": len(ids)}})
        pq.write_table(pa.table({"id": sorted(ids)}), directory / "ids.parquet")
    page = pages(tmp_path, settings=Settings(max_documents=40))["documents"]
    (explorer,) = page.blocks
    assert (explorer.selections, explorer.num_all, len(explorer.documents)) == (("one", "two"), 200, 40)
    assert explorer.criteria == ("educational value", "writing style")
    assert "40 of the 200 documents of annotate" in explorer.sample_note
    names = list(taken)
    for document in explorer.documents:
        assert [document.id in taken[name] for name in names] == [place in document.selected for place in range(2)]
    assert table.num_rows == 200


def test_without_texts_nothing_of_a_document_is_left(tmp_path):
    table = rated(tmp_path, 60)
    found = pages(tmp_path, settings=Settings(with_texts=False))
    everything = repr(found)
    assert not any(name in everything for name in table["id"].to_pylist())
    assert "second line" not in everything
    (explorer,) = found["documents"].blocks
    assert len(explorer.documents) == 60
    assert explorer.documents[0].domain.startswith("domain ")
    (histogram,) = of_kind(found["ratings"], blocks.Histogram).values()
    assert set(histogram.series) == {"educational value", "writing style"}
    assert any(
        "no id of a document" in block.text for block in found["summary"].blocks if isinstance(block, blocks.Note)
    )


def test_labels_and_groups_of_plain_folders(tmp_path):
    annotated(tmp_path)
    of = evidence(tmp_path)
    assert [group.label for group in of.groups("annotate")] == ["annotate"]
    assert of.label(of.artifacts[0]) == "annotate"
    assert of.left_over == []
