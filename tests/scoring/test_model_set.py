"""The models of one annotation: names, refusals before any weight is read, and what identifies them."""

import json
import shutil

import numpy as np
import pytest
import tiny_hf as tiny
from test_ngrams import random_judgments, random_texts, small

from qurating_jax.models.config import ComputeConfig
from qurating_jax.parallel.mesh import make_mesh
from qurating_jax.parallel.options import MeshShape
from qurating_jax.runtime import manifest
from qurating_jax.runtime.errors import UserError
from qurating_jax.scoring import combined
from qurating_jax.scoring.annotator import Layout
from qurating_jax.scoring.model_set import find_models
from qurating_jax.scoring.ngrams import fit
from qurating_jax.scoring.windows import WORD_TOKENIZER


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Raters `net` and `words` and a language model `lm`."""
    root = tmp_path_factory.mktemp("models")
    tiny.make_model(root / "made", 3).rename(root / "net")
    tiny.make_model(root / "spoken", 0).rename(root / "lm")
    rng = np.random.default_rng(0)
    fit(random_judgments(rng, criteria=tiny.CRITERIA, texts=random_texts(rng, 30)), small()).save(str(root / "words"))
    return root


@pytest.fixture
def copies(root, tmp_path):
    """Copies that a test may change."""
    for name in ("net", "lm", "words"):
        shutil.copytree(root / name, tmp_path / name)
    return tmp_path


def find(raters=(), language_models=(), **options):
    options = {"revision": None, "criteria": (), "tokenizer": None, "window_tokens": 24} | options
    return find_models([str(rater) for rater in raters], [str(model) for model in language_models], **options)


def change(path, edit):
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))


def other_tokenizer(directory):
    change(directory / "tokenizer.json", lambda d: d["model"].update(merges=d["model"]["merges"][:5]))


# --- names ------------------------------------------------------------------------------------------------------------


def test_a_name_is_the_prefix_of_its_columns(root):
    found = find([root / "net", f"w_1={root}/words"], [f"spoken={root}/lm"])
    assert {prefix: info.directory for prefix, info in found.raters.items()} == {
        "": str(root / "net"),
        "w_1_": str(root / "words"),
    }
    assert found.language_models == {"spoken_": str(root / "lm")}
    assert found.ratings() == [
        *tiny.CRITERIA, *(f"w_1_{criterion}" for criterion in tiny.CRITERIA), "spoken_log_likelihood",
    ]  # fmt: skip
    assert found.reads_texts
    assert not find([root / "net"], [root / "lm"]).reads_texts


def test_a_directory_whose_name_has_an_equals_sign_is_that_directory(copies):
    (copies / "net").rename(copies / "lr=1e-4")
    assert list(find([copies / "lr=1e-4"]).raters) == [""]
    assert list(find([f"a={copies}/lr=1e-4"]).raters) == ["a_"]


@pytest.mark.parametrize(
    ("raters", "models", "message"),
    [
        (["net", "words"], [], "--rater: two have no name; give each as NAME=PATH"),
        (["a=net", "a=words"], [], "--rater: two are called a; give each as NAME=PATH"),
        ([], ["lm", "lm"], "--language_model: two have no name"),
        ([], ["b=lm", "b=lm"], "--language_model: two are called b"),
        ([], [], "nothing to rate with; give --rater or --language_model"),
        (["lm"], [], "a language model, not a rater"),
        ([], ["net"], "a rater, not a language model"),
        (["nothing"], [], "nothing"),
    ],
)
def test_what_is_refused(root, monkeypatch, raters, models, message):
    monkeypatch.chdir(root)
    with pytest.raises(UserError, match=message) as error:
        find(raters, models)
    assert "\n" not in str(error.value)


def test_a_rater_and_a_language_model_may_share_a_name(root):
    assert find([f"a={root}/net"], [f"a={root}/lm"]).ratings()[-1] == "a_log_likelihood"


def test_two_models_that_would_write_one_column_are_refused(copies):
    """The unnamed rater's criterion is called as the other one's name and criterion together."""
    labels = {"0": "a_writing_style", "1": "log_likelihood", "2": "other"}
    change(copies / "net/config.json", lambda d: d.update(id2label=labels))
    with pytest.raises(UserError, match="two models would write the columns of a_writing_style; give them other names"):
        find([copies / "net", f"a={copies}/words"])
    with pytest.raises(UserError, match="the columns of log_likelihood; give them"):
        find([copies / "net"], [copies / "lm"])
    assert find([f"n={copies}/net", f"a={copies}/words"], [copies / "lm"]).ratings()[0] == "n_a_writing_style"


# --- criteria ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [["LABEL_0", "LABEL_1", "LABEL_2"], ["LABEL_0", "style", "facts"]])
def test_scores_that_nobody_named_need_criteria(copies, labels):
    change(copies / "net/config.json", lambda d: d.update(id2label={str(n): name for n, name in enumerate(labels)}))
    with pytest.raises(
        UserError, match=r"does not name the 3 scores \(LABEL_0, .*give their names in order with --crit"
    ):
        find([copies / "net"])
    assert find([copies / "net"], criteria=("x", "y", "z")).ratings() == ["x", "y", "z"]
    with pytest.raises(UserError, match="must give 3 different names"):
        find([copies / "net"], criteria=("x", "y"))


def test_criteria_are_those_of_one_rater(root):
    for raters in ([], [f"a={root}/net", f"b={root}/words"]):
        with pytest.raises(UserError, match=f"names the scores of one rater, and {len(raters)} are given"):
            find(raters, [root / "lm"], criteria=("x", "y", "z"))


# --- tokenizers -------------------------------------------------------------------------------------------------------


def test_one_tokenizer_cuts_the_windows(root):
    words, net = find([root / "words"]), find([root / "net"])
    assert (words.tokenizer, words.tokenizer_path) == (WORD_TOKENIZER, None)
    assert net.tokenizer_path == str(root / "net")
    # Raters that read words go with any.
    mixed = find([f"w={root}/words", f"n={root}/net"], [root / "lm"])
    assert (mixed.tokenizer, mixed.tokenizer_path) == (net.tokenizer, str(root / "net"))
    assert find([root / "words"], [root / "lm"]).tokenizer_path == str(root / "lm")


@pytest.mark.parametrize("changed", ["net", "lm"])
def test_tokenizers_that_differ_are_refused(copies, changed):
    other_tokenizer(copies / changed)
    with pytest.raises(UserError, match=f"{copies}/net and {copies}/lm have different tokenizers, so their windows di"):
        find([copies / "net"], [copies / "lm"])


def test_a_tokenizer_is_given_where_the_directories_have_none(copies):
    identity = find([copies / "net"]).tokenizer
    for name in ("net", "lm"):
        (copies / name / "tokenizer.json").rename(copies / f"{name}.json")
        with pytest.raises(UserError, match="no tokenizer"):
            find(*(([copies / name], []) if name == "net" else ([], [copies / name])))
    found = find([copies / "net"], [copies / "lm"], tokenizer=str(copies / "net.json"))
    assert (found.tokenizer, found.tokenizer_path) == (identity, str(copies / "net.json"))
    assert found.given_tokenizer == str(copies / "net.json")


@pytest.mark.parametrize("name", ["net", "lm"])
def test_windows_and_tokenizers_beyond_a_model_are_refused(copies, name):
    def find_it(**options):
        return find(*(([copies / name], []) if name == "net" else ([], [copies / name])), **options)

    with pytest.raises(UserError, match="up to 64 tokens, not 65; give --window_tokens 64 or less"):
        find_it(window_tokens=65)
    change(copies / name / "tokenizer.json", lambda d: d["model"]["vocab"].update(unheard=5000))
    with pytest.raises(UserError, match="its tokenizer has 5001 tokens, the model 384"):
        find_it()


# --- what identifies them ---------------------------------------------------------------------------------------------


def test_digests_are_those_of_the_content_and_not_of_the_place(root, copies):
    there = find([root / "net", f"w={root}/words"], [root / "lm"]).digests()
    assert find([copies / "net", f"w={copies}/words"], [copies / "lm"]).digests() == there
    json.dumps(there)


@pytest.mark.parametrize(
    ("path", "edit"),
    [
        ("net/model.safetensors", lambda b: b[:-1] + bytes([b[-1] ^ 1])),
        ("net/config.json", lambda b: b.replace(b'"rope_theta": 10000.0', b'"rope_theta": 500.0')),
        ("lm/model.safetensors", lambda b: b[:-1] + bytes([b[-1] ^ 1])),
        ("words/model.safetensors", lambda b: b[:-1] + bytes([b[-1] ^ 1])),
        ("words/rater.json", lambda b: b + b" "),
    ],
)
def test_digests_change_when_a_file_changes(copies, path, edit):
    def digests():
        return find([copies / "net", f"w={copies}/words"], [copies / "lm"]).digests()

    before, content = digests(), (copies / path).read_bytes()
    assert edit(content) != content
    (copies / path).write_bytes(edit(content))
    assert digests() != before
    (copies / path).write_bytes(content)
    assert digests() == before


def test_digests_change_with_the_tokenizer_names_and_order(copies):
    net, words = f"a={copies}/net", f"b={copies}/words"
    found = [
        find([net, words]).digests(),
        find([words, net]).digests(),  # the columns stand in another order
        find([f"c={copies}/net", words]).digests(),
        find([f"a_={copies}/net", words]).digests(),
        find([net]).digests(),
        find([net, words], [copies / "lm"]).digests(),
    ]
    other_tokenizer(copies / "net")
    found.append(find([net, words]).digests())
    assert all(left != right for n, left in enumerate(found) for right in found[:n])
    assert [len(digests["raters"]) for digests in found] == [2, 2, 2, 2, 1, 2, 2]
    assert found[0]["tokenizer"] != found[-1]["tokenizer"]


def test_names_that_end_in_a_line_do_not_stand_for_each_other(root):
    digests = find([f"a={root}/net", f"a_={root}/words"]).digests()
    assert list(digests["raters"]) == ["a", "a_"]


def test_a_member_of_a_combined_rater_counts(copies):
    (copies / "both").mkdir()
    for name in ("net", "words"):
        shutil.copytree(copies / name, copies / "both" / name)
    combined.save(str(copies / "both"), ["net", "words"], tiny.CRITERIA, np.ones((2, 3)))
    before = find([copies / "both"]).digests()
    content = (copies / "both/net/model.safetensors").read_bytes()
    (copies / "both/net/model.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert find([copies / "both"]).digests() != before


def test_another_model_in_a_half_done_output_is_refused_with_the_difference(copies):
    def begin(models):
        return manifest.begin(
            str(copies / "out"), stage="annotate", config={}, identity={}, inputs=models.digests(), overwrite=False
        )

    assert begin(find([copies / "net"])).state == "fresh"
    assert begin(find([copies / "net"])).state == "resumed"
    for other, message in (
        (find([copies / "words"]), r"inputs\.raters\.\(unnamed\)\.files was 4, now 2"),
        (find([f"a={copies}/net"]), r"inputs\.raters\.a"),
        (find([copies / "net"], [copies / "lm"]), r"inputs\.language_models\.\(unnamed\)"),
    ):
        with pytest.raises(UserError, match=message):
            begin(other)


# --- loading ----------------------------------------------------------------------------------------------------------


def test_everything_is_loaded_with_its_prefix(root):
    found = find([root / "net", f"w={root}/words"], [f"l={root}/lm"])
    annotator = found.load(
        Layout({prefix: info.criteria for prefix, info in found.raters.items()}, tuple(found.language_models)),
        mesh=make_mesh(MeshShape()),
        compute=ComputeConfig(),
        window_tokens=24,
        max_windows=7,
        batch_tokens=None,
    )
    assert list(annotator.raters) == ["", "w_"]
    assert list(annotator.language_models) == ["l_"]
    assert annotator.tokenizer.identity == found.tokenizer
    assert (annotator.window_tokens, annotator.max_windows) == (24, 7)
    assert [model.reads_texts for model in annotator.raters.values()] == [False, True]
