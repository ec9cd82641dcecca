"""What an analysis finds in an output folder: of `qurating run` by its records, of the quickstart by directories."""

import pytest

from qurating_jax.experiments.records import RunRecord, write_run
from qurating_jax.experiments.run_outputs import find_outputs
from qurating_jax.runtime import manifest
from qurating_jax.runtime.errors import UserError


def stage(directory, name, *, finished=True, **config):
    """An output of a stage that did nothing."""
    run = manifest.begin(
        str(directory), stage=name, config=config, identity=config, inputs={"at": str(directory)}, overwrite=False
    )
    if finished:
        manifest.finish(run, {})
    return str(directory)


def record(root, experiment, seed, **steps):
    write_run(
        str(root),
        RunRecord(experiment=experiment, seed=seed, scale="", file="", title="", published="", steps=steps, goal=()),
    )


def test_a_folder_of_directories(tmp_path):
    annotate = stage(tmp_path / "annotate", "annotate", input=["runs/corpus"])
    best = stage(tmp_path / "best", "select")
    stage(tmp_path / "half", "select", finished=False)
    judge, rater = stage(tmp_path / "judge", "judge run"), stage(tmp_path / "rater", "train-rater")
    stage(tmp_path / "lm", "train-lm")
    (tmp_path / "notes").mkdir()
    (tmp_path / "readme.txt").write_text("")
    found = find_outputs(str(tmp_path))
    assert (found.annotate, found.selections) == ([annotate], {"best": best})
    assert (found.judgments, found.raters) == ([judge], [rater])


def test_of_ratings_added_one_after_another_the_last_is_taken(tmp_path):
    first = stage(tmp_path / "first", "annotate", input=["corpus"])
    second = stage(tmp_path / "second", "annotate", input=[first + "/"])
    assert find_outputs(str(tmp_path)).annotate == [second]
    third = stage(tmp_path / "third", "annotate", input=["other"])
    assert find_outputs(str(tmp_path)).annotate == [second, third]


def test_log_likelihoods_alone_are_no_second_rated_corpus(tmp_path):
    rated = stage(tmp_path / "annotate", "annotate", input=["corpus"], rater=["rater"], language_model=[])
    stage(tmp_path / "perplexity", "annotate", input=["corpus"], rater=[], language_model=["lm"])
    assert find_outputs(str(tmp_path)).annotate == [rated]
    both = stage(tmp_path / "both", "annotate", input=["corpus"], rater=["rater"], language_model=["lm"])
    assert find_outputs(str(tmp_path)).annotate == [rated, both]


def test_records_name_selections_by_their_experiment_with_the_least_seed(tmp_path):
    annotate = stage(tmp_path / "steps" / "annotate-1", "annotate", input=["steps/split-1/train"])
    places = {}
    for name, seed in (("uniform", 2), ("uniform", 1), ("best", 0), ("late", 0)):
        step = f"steps/select-{name}-{seed}"
        places[name, seed] = stage(tmp_path / step, "select", finished=name != "late")
        record(tmp_path, name, seed, annotate="steps/annotate-1", select=step, train_lm="steps/train-lm-1")
    found = find_outputs(str(tmp_path))
    assert found.annotate == [annotate]
    assert found.selections == {"uniform": places["uniform", 1], "best": places["best", 0]}


def test_nothing_to_find_is_said(tmp_path):
    with pytest.raises(UserError, match="no such directory"):
        find_outputs(str(tmp_path / "nothing"))
    stage(tmp_path / "best", "select")
    with pytest.raises(UserError, match="holds no finished output of `qurating annotate`"):
        find_outputs(str(tmp_path))
