"""The command `qurating STAGE --config FILE [--a.b value]`.

The table below is all that `qurating --help` needs; a stage's module, and with it JAX, is imported when it runs.
"""

import importlib
import itertools
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from qurating_jax import __version__
from qurating_jax.runtime.errors import EXIT_ERROR, EXIT_INTERRUPTED, EXIT_OK, Incomplete, UsageError, UserError
from qurating_jax.runtime.terminal import plain


@dataclass(frozen=True)
class Stage:
    """One row of the stage table: where it lives (`module`, with `Config` and `main`) and what it does."""

    module: str
    summary: str


STAGES = {
    "corpus": Stage("corpus", "documents of this machine's Python installation, to try everything on"),
    "train-tokenizer": Stage("train_tokenizer", "a byte-level BPE tokenizer from documents"),
    "criteria list": Stage("criteria.listing", "the quality criteria that ship, and files of your own"),
    "criteria show": Stage("criteria.show", "a criterion and the prompts that a judge gets"),
    "criteria check": Stage("criteria.check", "are these criterion files sound?"),
    "judge run": Stage("judge", "documents -> pairwise judgments on quality criteria"),
    "judge status": Stage("judging.status", "how far a run of judgments is, what it cost, what failed"),
    "judge failures": Stage("judging.failures", "the requests of a run that have no verdict, and why"),
    "judge reparse": Stage("judging.reparse", "read the stored answers again; costs no request"),
    "judge merge": Stage("judging.merge", "answers of several runs -> one store"),
    "judge export": Stage("judging.export", "a run's verdicts -> Parquet, also while it is unfinished"),
    "judge report": Stage("judging.report", "is the judge sound? bias, consistency, agreement, canaries"),
    "judge batch submit": Stage("judging.batch_submit", "open requests -> the endpoint's batch API"),
    "judge batch status": Stage("judging.batch_status", "how far the batches of a run are"),
    "judge batch collect": Stage("judging.batch_collect", "finished batches -> answers in the run"),
    "bench judge": Stage("judging.bench", "how many requests per second the client side of judging can do"),
    "bench annotate": Stage("bench_annotate", "tokens per second of annotation and what bounds it, beside PyTorch's"),
    "bench train-rater": Stage("bench_train_rater", "tokens per second of rater training, beside PyTorch's"),
    "bench train-lm": Stage("bench_train_lm", "tokens per second of language-model training, beside PyTorch's"),
    "bench select": Stage("bench_select", "documents per second of selection, beside the original's rule"),
    "judge mock-server": Stage("judging.mock_server", "a rehearsal endpoint on this machine with a known judge"),
    "train-rater": Stage("train_rater", "judgments -> rater (Bradley-Terry)"),
    "combine-raters": Stage("combine_raters", "several raters -> one, a weighted sum of their scores"),
    "eval-rater": Stage("eval_rater", "rater + judgments -> held-out accuracy beside simple formulas"),
    "annotate": Stage("annotate", "documents + rater -> ratings per 512-token window and document"),
    "select": Stage("select_subset", "rated documents -> a budget of them: sampled, best, like a target, mixed"),
    "tokenize": Stage("tokenize", "documents -> rows of tokens, packed or in windows"),
    "plan": Stage("plan", "what a train-lm recipe takes: FLOPs, memory per device, disk, hours; no device needed"),
    "train-lm": Stage("train_lm", "token shards -> language model"),
    "eval-lm": Stage("eval_lm", "language models + documents -> held-out perplexity by domain, compared"),
    "report": Stage("report", "finished stages -> one readable page"),
    "convert": Stage("convert", "weights: Hugging Face directory <-> Orbax checkpoint"),
    "doctor": Stage("doctor", "devices, versions, extras, write test"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one stage; returns the process's exit code (see `runtime.errors`)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        if not argv or argv[0] in ("-h", "--help", "help"):
            print(usage())
            return EXIT_OK
        if argv[0] == "--version":
            print(__version__)
            return EXIT_OK
        name, rest = _split(argv)
        return _run(name, rest)
    except UserError as error:
        print(f"error: {plain(str(error))}", file=sys.stderr)
        return error.exit_code
    except OSError as error:  # a full disk, a lost mount, missing rights: the system's own words are the best ones
        if isinstance(error, BrokenPipeError):  # `qurating ... | head`: the reader has seen enough
            sys.stderr.close()
            return EXIT_OK
        print(f"error: {plain(str(error))}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print("interrupted; the same command resumes", file=sys.stderr)
        return EXIT_INTERRUPTED


def usage() -> str:
    """The help text of the command itself."""
    width = max(map(len, STAGES)) + 2
    rows = "\n".join(f"  {name:<{width}}{stage.summary}" for name, stage in STAGES.items())
    return (
        "usage: qurating STAGE [--config FILE] [--option value ...]\n\n"
        "QuRating in JAX: choose the pre-training data that makes language models better.\n\n"
        f"stages:\n{rows}\n\n"
        "Options are dotted paths into the stage's config; `qurating STAGE --help` lists them.\n"
        "Exit codes: 0 ok, 1 error, 2 usage, 3 unresolved items, 4 stopped at a limit, 130 interrupted and resumable."
    )


def _split(argv: list[str]) -> tuple[str, list[str]]:
    for words in (3, 2, 1):
        name = " ".join(argv[:words])
        if len(argv) >= words and name in STAGES:
            return name, argv[words:]
    given = " ".join(itertools.takewhile(lambda word: not word.startswith("-"), argv[:3])) or argv[0]
    longer = [name for name in STAGES if name.startswith(argv[0] + " ")]
    close = get_close_matches(given, STAGES, n=1, cutoff=0.75)
    if longer and not close:
        raise UsageError(f"no stage `{given}`; there are {', '.join(f'`{name}`' for name in longer)}")
    close = close or get_close_matches(argv[0], STAGES, n=1)
    hint = f"did you mean `qurating {close[0]}`?" if close else "`qurating --help` lists the stages"
    raise UsageError(f"no stage `{given}`; {hint}")


def _run(name: str, argv: list[str]) -> int:
    from qurating_jax import config as configs
    from qurating_jax.runtime import logs

    module = importlib.import_module(f"qurating_jax.pipeline.{STAGES[name].module}")
    config = configs.parse(module.Config, argv, prog=f"qurating {name}", description=module.__doc__ or "")
    logs.setup()
    counts = None
    try:
        counts = module.main(config)
    except Incomplete as error:
        counts = error.counts
        raise
    finally:
        if config.json and counts is not None:
            print(json.dumps(counts, sort_keys=True), flush=True)
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
