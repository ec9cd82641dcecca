import json

import pytest
import yaml

from qurating_jax.__main__ import main as command
from qurating_jax.judges import criteria, prompts
from qurating_jax.judges.criteria import NAMES, Criterion
from qurating_jax.pipeline.criteria import check, listing, show
from qurating_jax.runtime.errors import UsageError, UserError

OWN_PAIRWISE = "{question} {notes} {document_a} {document_b} {label_a} {label_b}"


def write(path, **fields):
    path.write_text(yaml.safe_dump({"name": "clarity", "question": "Which is clearer?"} | fields), encoding="utf-8")
    return str(path)


def warnings_of(**fields):
    return check.doubts(Criterion(**{"name": "clarity", "question": "Which is clearer?"} | fields))


# --- list -------------------------------------------------------------------------------------------------------------


def test_list_shows_the_shipped_ones_and_files(tmp_path, capsys):
    path = write(tmp_path / "own.yaml")
    changed = write(tmp_path / "changed.yaml", name="writing_style")
    assert command(["criteria", "list", path, changed, "--json"]) == 0
    *table, last = capsys.readouterr().out.splitlines()
    rows = json.loads(last)["criteria"]
    assert [row["name"] for row in rows] == [*NAMES, "clarity", "writing_style"]
    assert [row["source"] for row in rows] == [*["shipped"] * 4, path, changed]
    loaded = [*criteria.load(NAMES), *criteria.load([path]), *criteria.load([changed])]
    assert [row["hash"] for row in rows] == [one.hash for one in loaded]
    assert len(table) == 1 + len(rows)
    for line, one, row in zip(table[1:], loaded, rows, strict=True):
        assert line.split() == [one.name, *one.question.split(), one.hash[:12], row["source"]]
    assert len({line.index(row["hash"][:12]) for line, row in zip(table[1:], rows, strict=True)}) == 1


def test_list_needs_no_file_and_refuses_a_bad_one(tmp_path):
    assert len(listing.main(listing.Config())["criteria"]) == 4
    with pytest.raises(UsageError, match="no such"):
        listing.main(listing.Config(names=(str(tmp_path / "absent.yaml"),)))


# --- show -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", criteria.LAYOUTS)
def test_show_prints_the_very_prompts(layout, capsys):
    assert command(["criteria", "show", "facts_and_trivia", "--layout", layout, "--json"]) == 0
    printed, _, last = capsys.readouterr().out.rstrip("\n").rpartition("\n")
    shown = json.loads(last)
    (one,) = criteria.load(["facts_and_trivia"])
    assert (shown["name"], shown["hash"], shown["question"]) == (one.name, one.hash, one.question)
    for mode in criteria.MODES:
        (message,) = shown[mode]
        assert message["content"] in printed
    # What stands between the fences, put back in by the functions that a run asks with.
    texts = [
        shown["pairwise"][0]["content"].split(f"<<<BEGIN TEXT {label} {'0' * 16}>>>\n")[1].split("\n<<<END")[0]
        for label in one.labels
    ]
    assert shown["pairwise"] == prompts.pairwise_messages(one, *texts, layout=layout, nonce=prompts.PLACEHOLDER_NONCE)
    assert shown["individual"] == prompts.individual_messages(
        one, texts[0], layout=layout, nonce=prompts.PLACEHOLDER_NONCE
    )
    assert "| Answer: A" in texts[1]  # the sample shows what is neutralised
    assert "{now}" in texts[1]
    assert one.hash in printed


def test_show_of_a_file(tmp_path, capsys):
    path = write(tmp_path / "own.yaml", labels=["Left", "Right"], pairwise=OWN_PAIRWISE)
    shown = show.main(show.Config(name=path))
    assert shown["labels"] == ["Left", "Right"]
    assert "notes     (none)" in capsys.readouterr().out
    with pytest.raises(UserError, match="no `pairwise_documents_first`"):
        show.main(show.Config(name=path, layout="documents_first"))


@pytest.mark.parametrize("name", ["", "writing_stile", "absent.yaml"])
def test_show_of_nothing(name):
    with pytest.raises(UsageError, match=r"required|did you mean writing_style|no such"):
        show.main(show.Config(name=name))


# --- check ------------------------------------------------------------------------------------------------------------


def test_check_tells_of_every_file_before_it_fails(tmp_path, capsys):
    good = write(tmp_path / "good.yaml")
    twin = write(tmp_path / "twin.yaml")
    doubtful = write(tmp_path / "doubtful.yaml", name="plain", question="Clearness")
    wrong = write(tmp_path / "wrong.yaml", name="other", labels=["A", "A"])
    absent = str(tmp_path / "absent.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"name: \xff\xfe")
    files = [wrong, good, twin, absent, str(tmp_path / "bytes.yaml"), doubtful]
    assert command(["criteria", "check", *files]) == 2
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == ["error", "ok", "error", "error", "error", "ok", "warning"]
    for line, file in zip(lines, [*files, doubtful], strict=True):
        assert file in line
    assert criteria.load([good])[0].hash in lines[1]
    assert "question mark" in lines[-1]
    assert err.count("\n") == 1
    assert "4 of 6 criterion files cannot be used" in err
    assert all(file in err for file in (wrong, twin, absent))


def test_check_of_good_files(tmp_path, capsys):
    good = write(tmp_path / "good.yaml")
    found = check.main(check.Config(files=(good, "writing_style")))["criteria"]
    assert [row["name"] for row in found] == ["clarity", "writing_style"]
    assert [row["warnings"] for row in found] == [[], []]
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["ok", "ok"]
    with pytest.raises(UsageError, match="--files is required"):
        check.main(check.Config())


def test_the_shipped_criteria_raise_no_doubts():
    for one in criteria.load(NAMES):
        assert check.doubts(one) == []
        # Nor do their templates where they are written out as one's own.
        both = {mode: one.template(mode, "criterion_first") + "." for mode in criteria.MODES}
        both |= {f"{mode}_documents_first": one.template(mode, "documents_first") for mode in criteria.MODES}
        assert warnings_of(**both) == []


def test_doubtful_things_are_named():
    (warning,) = warnings_of(question="Clearness")
    assert "question mark" in warning
    assert warnings_of(notes="x" * 1000) == []
    (warning,) = warnings_of(notes="x" * 1001)
    assert "1001 characters" in warning
    assert ["Left" in warning or "Right" in warning for warning in warnings_of(labels=("Left", "Right"))] == [
        True,
        True,
    ]
    found = warnings_of(pairwise=OWN_PAIRWISE)
    assert len(found) == 6
    for said in ("cut off", "language", "length", "no instructions", "order", "pairwise_documents_first is missing"):
        assert sum(said in warning for warning in found) == 1
    found = warnings_of(individual="{question} {document} {grade_min} {grade_max}, an excerpt in any language")
    assert len(found) == 3
    assert not any("cut off" in warning or "language" in warning or "order" in warning for warning in found)
