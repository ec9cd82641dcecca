"""What several files of tests of stages start from."""

import lm_runs
import pytest

from qurating_jax.runtime import manifest, turns


@pytest.fixture
def hurried_turns(monkeypatch):
    """For benches whose figures nobody reads: no pause before a turn, and the process's garbage stays where it is."""
    monkeypatch.setattr(turns, "_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(turns.gc, "collect", lambda: 0)


@pytest.fixture(scope="session")
def lm_places(tmp_path_factory):
    """A folder with documents, a tokenizer and `tokens`, which have a validation split; runs are made beside them."""
    root = tmp_path_factory.mktemp("lm")
    lm_runs.make_tokens(root, more=["--validation_fraction", 0.2])
    return root


@pytest.fixture(scope="session")
def lm_whole(lm_places):
    """The undisturbed run on one device; it goes through its rows more than twice."""
    codes, errors = lm_runs.finish(lm_runs.start(lm_runs.train_command(lm_places, "whole")))
    assert codes == [0], errors
    assert manifest.read(str(lm_places / "tokens"))["counts"]["rows"] * 2 < lm_runs.STEPS * lm_runs.BATCH
    return lm_places / "whole"
