"""The registry of published artifacts: what ships, and what a file of one's own may hold."""

import dataclasses
import fnmatch
import itertools
import pathlib
import tomllib

import pytest

import qurating_jax
from qurating_jax.experiments import registry
from qurating_jax.runtime.errors import UsageError

PACKAGE = pathlib.Path(qurating_jax.__file__).parent
CRITERIA = ("writing_style", "required_expertise", "facts_and_trivia", "educational_value")


def error_of(tmp_path, text):
    path = tmp_path / "registry.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        registry.load(str(path))
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{path}: ")


# --- the one that ships -----------------------------------------------------------------------------------------------


def test_the_language_models_are_the_thirty_three_of_the_paper():
    found = {name: entry for name, entry in registry.load().items() if entry.kind == "language_model"}
    rules = {
        "top_k": "top_k",
        "temperature_1": "sample_with_temperature1.0",
        "temperature_2": "sample_with_temperature2.0",
    }
    wanted = {
        f"lm/{inverse}{criterion}_{ours}": f"30B_tokens_by-{inverse}{criterion}-{theirs}"
        for inverse, criterion, (ours, theirs) in itertools.product(("", "inverse_"), CRITERIA, rules.items())
    } | {
        "lm/uniform": "30B_tokens_by-uniform-sampling",
        "lm/uniform_long": "45B_tokens_by-uniform-sampling",
        "lm/dsir_wikipedia": "30B_tokens_by-dsir_wikipedia_en",
        "lm/dsir_book": "30B_tokens_by-dsir_book",
        "lm/perplexity_lowest": "30B_tokens_by-perplexity-bottom_k",
        "lm/perplexity_highest": "30B_tokens_by-perplexity-top_k",
        "lm/curriculum_high_to_low": "30B_tokens_by-uniform-sampling-curriculum-high_to_low-required_expertise",
        "lm/curriculum_low_to_high": "30B_tokens_by-uniform-sampling-curriculum-low_to_high-required_expertise",
        "lm/mix_temperature_2": "30B_tokens_by-mix_of_criteria-sample_with_temperature2.0",
    }
    assert len(wanted) == 33
    assert {name: entry.repo for name, entry in found.items()} == {
        name: f"princeton-nlp/lm-1.3B-select_{ending}" for name, ending in wanted.items()
    }


def test_the_other_artifacts():
    found = {name: entry for name, entry in registry.load().items() if entry.kind != "language_model"}
    assert {name: (entry.kind, entry.repo.removeprefix("princeton-nlp/")) for name, entry in found.items()} == {
        "qurater-1.3b": ("rater", "QuRater-1.3B"),
        "sheared-llama-1.3b": ("base_model", "Sheared-LLaMA-1.3B"),
        "sheared-llama-2.7b": ("base_model", "Sheared-LLaMA-2.7B"),
        "judgments": ("judgments", "QuRating-GPT3.5-Judgments"),
        "judgments-test": ("judgments", "QuRating-GPT3.5-Judgments-Test"),
        "quratedpajama-260b": ("rated_corpus", "QuRatedPajama-260B"),
        "quratedpajama-1b": ("rated_corpus", "QuRatedPajama-1B_tokens_for_analysis"),
    }
    assert found["qurater-1.3b"].labels == CRITERIA
    for name, entry in found.items():
        is_data = name.startswith(("judgments", "qurated"))
        assert entry.repo_type == ("dataset" if is_data else "model")
        assert (set(entry.columns) >= {f"{criterion}_average" for criterion in CRITERIA}) is is_data


def test_every_entry_says_what_it_is_and_what_is_known_of_its_terms():
    for name, entry in registry.load().items():
        assert entry.about, name
        assert entry.licence, name
        assert entry.url.startswith("https://"), name
        assert entry.revision == "main"


def test_every_language_model_belongs_to_an_experiment():
    """An experiment that names its published weights names those of its registry entry."""
    import yaml

    directory = PACKAGE.parent / "configs" / "experiments"
    models = {name.removeprefix("lm/"): entry.repo for name, entry in registry.load().items() if name.startswith("lm/")}
    files = [path for path in directory.glob("*.yaml") if path.stem in models]
    assert {path.stem for path in files} == set(models)
    for path in files:
        assert yaml.safe_load(path.read_text()).get("published") == models[path.stem], path.stem


def test_every_model_says_its_architecture():
    found = {name: entry.architecture for name, entry in registry.load().items() if entry.repo_type == "model"}
    assert {name for name, preset in found.items() if preset != "sheared-llama-1.3b"} == {"sheared-llama-2.7b"}
    assert found["sheared-llama-2.7b"] == "sheared-llama-2.7b"
    assert registry.find_repo(registry.load(), "Princeton-NLP/qurater-1.3b").labels == CRITERIA
    assert registry.find_repo(registry.load(), "princeton-nlp/qurater") is None


def test_it_is_installed_with_the_package():
    settings = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())
    patterns = settings["tool"]["setuptools"]["package-data"]["qurating_jax"]
    assert any(fnmatch.fnmatch("experiments/registry.yaml", pattern) for pattern in patterns)


# --- files of one's own -----------------------------------------------------------------------------------------------


def test_a_file_of_ones_own(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(
        "artifacts:\n  mine: {kind: rated_corpus, repo: me/corpus, revision: v2, columns: [text], licence: MIT}\n"
        "families:\n  f:\n    repo: me/m-\n    each: {a: [x, y], b: [p, q]}\n"
        '    members: {plain: plain, "{a}_only": "{a}", "{a}_{b}": "{a}-{b}-{a}"}\n'
    )
    found = registry.load(str(path))
    assert found.pop("mine") == registry.Artifact(
        kind="rated_corpus", repo="me/corpus", revision="v2", columns=("text",), licence="MIT"
    )
    assert {name: entry.repo for name, entry in found.items()} == {
        "f/plain": "me/m-plain", "f/x_only": "me/m-x", "f/y_only": "me/m-y",
        "f/x_p": "me/m-x-p-x", "f/x_q": "me/m-x-q-x", "f/y_p": "me/m-y-p-y", "f/y_q": "me/m-y-q-y",
    }  # fmt: skip
    assert {entry.kind for entry in found.values()} == {"language_model"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("artefacts: {}", "unknown key `artefacts` (did you mean `artifacts`?)"),
        ("artifacts: {a: {repo: x/y, licens: MIT}}", "a: unknown key `licens` (did you mean `licence`?)"),
        ("artifacts: {a: {repo: word}}", "a: repo 'word' is not a hub id (owner/name)"),
        ("artifacts: {a: {repo: ../x}}", "a: repo '../x' is not a hub id (owner/name)"),
        ("artifacts: {a: {repo: x/..}}", "a: repo 'x/..' is not a hub id (owner/name)"),
        ("artifacts: {a: {}}", "a: repo '' is not a hub id (owner/name)"),
        ("artifacts: {a: {repo: x/y, revision: ''}}", "a: revision is empty; a branch, tag or commit is needed"),
        ("artifacts: {a: {repo: x/y, columns: [t]}}", "a: columns belong to data sets, and this is a language_model"),
        ("artifacts: {a: {repo: x/y, kind: judgments, labels: [t]}}", "a: labels belong to raters, and"),
        ("artifacts: {a: {repo: x/y, architecture: gpt-5}}", "a: architecture 'gpt-5' is no preset; there are debug,"),
        ("artifacts: {a: {repo: x/y, kind: judgments, architecture: debug}}", "a: an architecture belongs to models,"),
        ("artifacts: {a: {repo: x/y}, a: {repo: x/z}}", "key `a` stands twice"),
        ("families: {f: {repo: x/y-, members: {a: a}, other: 1}}", "f: unknown key `other`"),
        ("families: {f: {repo: x/y-, each: {c: [p]}, members: {'{c}': a, p: b}}}", "f: p stands twice"),
        ("artifacts: {f/a: {repo: x/y}}\nfamilies: {f: {repo: x/y-, members: {a: a}}}", "f/a stands twice"),
        ("families: {f: {repo: x/y-, members: {a: /../z}}}", "f/a: repo 'x/y-/../z' is not a hub id"),
        ("artifacts: {a: 3}", "`artifacts`: 'a' is to be a name, and stand for a group of settings, not 3"),
        ("artifacts: {7: {repo: x/y}}", "`artifacts`: 7 is to be a name"),
        ("artifacts: [a]", "`artifacts` is a table of names, not ['a']"),
        ("families: {f: {repo: x/y-, members: {a: 1.0}}}", "f: `members`: 'a' is to be a name, and stand for text"),
        ("families: {f: {repo: x/y-, members: [a]}}", "f: `members` is a table of names, not ['a']"),
        ("families: {f: {repo: x/y-, each: {a: b}}}", "f: `each`: 'a' is to be a name, and stand for a list of words"),
        ("families: {f: {repo: x/y-, each: {a: [1]}}}", "f: `each`: 'a' is to be a name, and stand for a list"),
        ("- a", "a config file is a mapping"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_file_is_one_line(tmp_path, text, message):
    assert message in error_of(tmp_path, text)


def test_a_name_that_is_not_there_gets_the_closest_ones():
    with pytest.raises(UsageError, match=r"no published artifact `judgement`; did you mean judgments"):
        registry.find(registry.load(), "judgement")
    with pytest.raises(UsageError, match="`qurating fetch` without a name lists them"):
        registry.find(registry.load(), "??")
    assert dataclasses.is_dataclass(registry.find(registry.load(), "lm/uniform"))
