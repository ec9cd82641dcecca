import dataclasses
import json
import re
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
import yaml

from qurating_jax.judges import criteria
from qurating_jax.judges.criteria import LAYOUTS, MODES, NAMES, Criterion
from qurating_jax.runtime.errors import UsageError, UserError

REPOSITORY = Path(__file__).resolve().parents[2]
FILES = Path(criteria.__file__).parent / "criterion_files"
PAIRWISE = "{question} {notes} {document_a} {document_b} {label_a} {label_b}"
PAIRWISE_DOCUMENTS_FIRST = "{document_a} {document_b} {question} {notes} {label_a} {label_b}"
INDIVIDUAL = "{question} {notes} {document} {grade_min} {grade_max}"
INDIVIDUAL_DOCUMENTS_FIRST = "{document} {question} {notes} {grade_min} {grade_max}"
OWN = {
    "pairwise": PAIRWISE,
    "pairwise_documents_first": PAIRWISE_DOCUMENTS_FIRST,
    "individual": INDIVIDUAL,
    "individual_documents_first": INDIVIDUAL_DOCUMENTS_FIRST,
}


def criterion(**fields):
    return Criterion(**{"name": "clarity", "question": "Which is clearer?", "notes": "Only clarity."} | fields)


def write(path, **fields):
    values = {"name": "clarity", "question": "Which is clearer?"} | fields
    path.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    return str(path)


# --- the shipped ones -------------------------------------------------------------------------------------------------


def test_the_methods_criteria_ship_in_the_order_of_the_released_rater():
    assert NAMES == ("writing_style", "required_expertise", "facts_and_trivia", "educational_value")
    assert {path.name for path in FILES.iterdir()} == {f"{name}.yaml" for name in NAMES}
    for name, one in zip(NAMES, criteria.load(NAMES), strict=True):
        values = yaml.safe_load((FILES / f"{name}.yaml").read_text(encoding="utf-8"))
        assert (one.name, one.question, one.notes) == (values["name"], values["question"], values["notes"])
        assert one.name == name
        assert one.question.endswith("?")
        assert one.labels == ("A", "B")
        assert one.grades == (1, 10)
        assert 100 < len(one.notes) < 600
    assert len({one.hash for one in criteria.load(NAMES)}) == 4


def test_by_name_keeps_the_order_asked_for():
    found = criteria.by_name(["educational_value", "writing_style"])
    assert [one.name for one in found] == ["educational_value", "writing_style"]


@pytest.mark.parametrize("names", [["style"], [], ["writing_style", "writing_style"], ["my/writing_style.yaml"]])
def test_by_name_refuses_unknown_repeated_and_no_names(names):
    known = "known criteria: writing_style" if names and names[0] not in NAMES else "once each"
    with pytest.raises(ValueError, match=known):
        criteria.by_name(names)


def test_importing_the_module_reads_no_file_and_no_numpy():
    program = (
        "import sys, pathlib\n"
        "import qurating_jax.config\n"
        "before = set(sys.modules)\n"
        "open_before, opened = open, []\n"
        "import builtins\n"
        "builtins.open = lambda *a, **k: opened.append(a) or open_before(*a, **k)\n"
        "import qurating_jax.judges.criteria\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(new & {'numpy', 'jax', 'pyarrow', 'openai'}), opened)\n"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout == "[] []\n"


# --- files of one's own -----------------------------------------------------------------------------------------------


def test_a_file_with_every_key(tmp_path):
    values = {
        "name": "clarity_2",
        "question": "Welcher Text ist klarer: „A“ or {document_b}?",
        "notes": "Ω 漢字 {x} {{",
        "labels": ["Left", "Right"],
        "grades": [0, 100],
        **OWN,
    }
    (one,) = criteria.load([write(tmp_path / "own.yml", **values)])
    assert {**dataclasses.asdict(one), "labels": list(one.labels), "grades": list(one.grades)} == values
    for mode in MODES:
        assert one.template(mode, "criterion_first") == OWN[mode]
        assert one.template(mode, "documents_first") == OWN[f"{mode}_documents_first"]


def test_a_short_file_has_the_defaults_and_no_white_space_at_its_ends(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("name: clarity\nquestion: |\n  Which is clearer?\n\n\n")
    (one,) = criteria.load([str(path)])
    assert (one.question, one.notes, one.labels, one.grades) == ("Which is clearer?", "", ("A", "B"), (1, 10))
    assert one == criterion(notes=" \n")
    assert one.hash == criterion(notes="").hash


def test_the_examples_of_the_guide_are_sound(tmp_path):
    guide = (REPOSITORY / "docs" / "criteria.md").read_text(encoding="utf-8")
    examples = re.findall(r"^```yaml\n(.*?)^```", guide, re.DOTALL | re.MULTILINE)
    assert len(examples) == 2
    for number, example in enumerate(examples):
        path = tmp_path / f"{number}.yaml"
        path.write_text(example)
        (one,) = criteria.load([str(path)])
        assert one.name == "clarity"
    for field in dataclasses.fields(Criterion):
        assert f"| `{field.name}` |" in guide


def test_own_files_stand_beside_shipped_ones(tmp_path):
    path = write(tmp_path / "own.yaml")
    found = criteria.load(["educational_value", path, "writing_style"])
    assert [one.name for one in found] == ["educational_value", "clarity", "writing_style"]
    # A changed version of a shipped one is fine, but not beside it.
    changed = write(tmp_path / "changed.yaml", name="writing_style")
    (one,) = criteria.load([changed])
    assert one.hash != criteria.load(["writing_style"])[0].hash
    with pytest.raises(UsageError, match="two criteria of the name writing_style"):
        criteria.load(["writing_style", changed])
    with pytest.raises(UsageError, match="two criteria of the name clarity"):
        criteria.load([path, path])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "no criterion is named; known criteria: writing_style, required_expertise"),
        (["writing_stile"], "no criterion `writing_stile` .did you mean writing_style?"),
        (["zzz"], "no criterion `zzz` .known criteria: writing_style, .* path of a .yaml file"),
        (["writing_style", "writing_style"], "two criteria of the name writing_style"),
        ([""], "no criterion ``"),
        (["../criterion_files/writing_style"], "no criterion"),
    ],
)
def test_unknown_repeated_and_no_names_are_usage_errors(names, message):
    with pytest.raises(UsageError, match=message) as caught:
        criteria.load(names)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"question: x?", "name"),
        (b"name: clarity", "question"),
        (b"", "name"),
        (b"- a\n- b", "mapping"),
        (b"name: clarity\nquestoin: x?", "unknown key `questoin` .did you mean `question`"),
        (b"name: clarity\nquestion: a?\nquestion: b?", "stands twice"),
        (b"name: clarity\nquestion: [", "not valid YAML"),
        (b"name: clarity\nquestion: \xff\xfe?", "not valid YAML"),
        (b"name: no\nquestion: a?", "`name` is text"),
        (b"name: clarity\nquestion: a?\nnotes:", "`notes` has no value"),
        (b"name: clarity\nquestion: a?\nlabels: [yes, no]", "`labels` is a list where each value is text"),
        (b"name: clarity\nquestion: a?\nlabels: AB", "`labels` is a list"),
        (b"name: clarity\nquestion: a?\ngrades: [1.5, 3]", "whole number"),
        (b'name: clarity\nquestion: "a\\e[31m?"', r"control character U\+001B"),
        (b'name: clarity\nquestion: "a\\ud800?"', r"control character U\+D800"),
        (b'name: clarity\nquestion: "a\\u202e?"', r"control character U\+202E"),
        (b"name: clarity\nquestion: a?\npairwise: x {question}", "pairwise has no slot {document_a}"),
        (b"name: !!python/object/apply:os.getcwd []\nquestion: a?", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_criterion_is_named_in_one_line(tmp_path, content, message):
    path = tmp_path / "own.yaml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message) as caught:
        criteria.load([str(path)])
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_files_and_directories_are_usage_errors(tmp_path):
    with pytest.raises(UsageError, match=r"absent\.yaml: no such"):
        criteria.load([str(tmp_path / "absent.yaml")])
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(UsageError, match=r"folder\.yaml: cannot be read"):
        criteria.load([str(tmp_path / "folder.yaml")])


# --- the checks of a criterion ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("name", name) for name in ("", "Clarity", "2clear", "a b", "a-b", "a\n", "é", "a/b", "_a")),
        *(("question", question) for question in ("", " \n ")),
        *(("labels", labels) for labels in ((), ("A",), ("A", "B", "C"), ("A", "A"), ("A", "a"), ("A", "AB"))),
        *(("labels", ("A", label)) for label in ("", " ", "B ", "B C", "<B", "B>", "B\n", "[B]", "|", "x" * 17)),
        *(("labels", labels) for labels in (("Text1", "Text12"), ("", "B"), ("SS", "ß"), ("\ud800", "B"))),
        *(("grades", grades) for grades in ((), (1,), (1, 5, 10), (5, 5), (10, 1), (-1, 5), (1, 101))),
    ],
)
def test_bad_values_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field.removesuffix("s")):
        criterion(**{field: value})


@pytest.mark.parametrize("labels", [("A", "B"), ("1", "2"), ("Left", "Right"), ("甲", "乙"), ("x" * 16, "y")])
@pytest.mark.parametrize("grades", [(0, 1), (1, 10), (0, 100)])
def test_good_values_are_taken(labels, grades):
    one = criterion(labels=labels, grades=grades)
    assert (one.labels, one.grades) == (labels, grades)


@pytest.mark.parametrize("field", OWN)
def test_a_template_that_lacks_a_slot_is_refused(field):
    slots = OWN[field].split()
    assert len(slots) == (6 if field.startswith("pairwise") else 5)
    for slot in slots:
        templates = OWN | {field: OWN[field].replace(slot, "")}
        with pytest.raises(ValueError, match=f"{field} has no slot {slot}"):
            criterion(**templates)
        misspelled = OWN | {field: OWN[field].replace(slot, slot.replace("{", "{ "))}
        with pytest.raises(ValueError, match=f"{field} has no slot {slot}"):
            criterion(**misspelled)
        # Without notes there is nothing to fill their slot with.
        if slot == "{notes}":
            assert criterion(**templates, notes="").template("pairwise", "criterion_first")
        else:
            with pytest.raises(ValueError, match=slot):
                criterion(**templates, notes="")


@pytest.mark.parametrize(
    ("field", "template", "message"),
    [
        ("pairwise", PAIRWISE + " {document_a}", "{document_a} more than once"),
        ("individual", INDIVIDUAL + " {document}", "{document} more than once"),
        ("pairwise_documents_first", PAIRWISE, "{question} before the last document"),
        (
            "pairwise_documents_first",
            "{document_a} {question} {document_b} {notes} {label_a} {label_b}",
            "{question} before",
        ),
        (
            "pairwise_documents_first",
            "{notes} {document_a} {document_b} {question} {label_a} {label_b}",
            "{notes} before",
        ),
        ("individual_documents_first", INDIVIDUAL, "{question} before the last document"),
        ("pairwise", PAIRWISE + "\x1b[0m", r"control character U\+001B"),
    ],
)
def test_documents_stand_once_and_in_their_place(field, template, message):
    with pytest.raises(ValueError, match=message):
        criterion(**OWN | {field: template})


def test_other_braces_are_literal():
    template = PAIRWISE + " {document_c} {} {{x}} {question} {label_a}"
    assert criterion(pairwise=template).template("pairwise", "criterion_first") == template


# --- layouts and the hash ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_the_other_layout_belongs_to_the_template(mode):
    default = criterion()
    assert default.template(mode, "criterion_first") == getattr(criteria, mode.upper())
    assert default.template(mode, "documents_first") == getattr(criteria, f"{mode.upper()}_DOCUMENTS_FIRST")
    own = criterion(**{mode: OWN[mode]})
    assert own.template(mode, "criterion_first") == OWN[mode]
    with pytest.raises(UserError, match=f"`{mode}` template but no `{mode}_documents_first`; add one"):
        own.template(mode, "documents_first")
    other = next(name for name in MODES if name != mode)
    assert own.template(other, "documents_first") == default.template(other, "documents_first")
    only = criterion(**{f"{mode}_documents_first": OWN[f"{mode}_documents_first"]})
    assert only.template(mode, "criterion_first") == default.template(mode, "criterion_first")
    assert only.template(mode, "documents_first") == OWN[f"{mode}_documents_first"]


def test_the_hash_is_sha256_of_the_fields_as_they_are_used():
    one = criterion(labels=("甲", "B"))
    fields = {
        "name": "clarity",
        "question": "Which is clearer?",
        "notes": "Only clarity.",
        "labels": ["甲", "B"],
        "grades": [1, 10],
    }
    for mode in MODES:
        fields |= {mode: one.template(mode, "criterion_first")}
        fields |= {f"{mode}_documents_first": one.template(mode, "documents_first")}
    assert one.hash == sha256(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def test_any_field_changes_the_hash():
    changes = {
        "name": "clearness",
        "question": "Which is plainer?",
        "notes": "",
        "labels": ("B", "A"),
        "grades": (1, 5),
        **OWN,
    }
    assert set(changes) == {field.name for field in dataclasses.fields(Criterion)}
    hashes = {criterion(**{field: value}).hash for field, value in changes.items()}
    assert len(hashes | {criterion().hash}) == len(changes) + 1


def test_a_changed_default_changes_the_hash(monkeypatch):
    before = criterion()
    hashes = {before.hash}
    for mode, (criterion_first, documents_first) in criteria._DEFAULTS.items():
        monkeypatch.setitem(criteria._DEFAULTS, mode, (criterion_first, documents_first + " More."))
        hashes.add(before.hash)
    assert len(hashes) == 3


def test_the_defaults_satisfy_the_checks_of_ones_own_templates():
    own = criterion(
        **{mode: criterion().template(mode, "criterion_first") for mode in MODES},
        **{f"{mode}_documents_first": criterion().template(mode, "documents_first") for mode in MODES},
    )
    assert [own.template(m, layout) for m in MODES for layout in LAYOUTS] == [
        criterion().template(m, layout) for m in MODES for layout in LAYOUTS
    ]
    assert own.hash == criterion().hash  # the same prompts
