"""The table of stages: what there is, where it lives, how many processes work on it.

A stage's module is imported when it is asked for, and not before: `qurating --help` needs the table alone.
"""

import dataclasses
import importlib
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

from qurating_jax.runtime.errors import UsageError

Processes = Literal["single", "shards", "hosts"]


@dataclass(frozen=True)
class Stage:
    """One row of the table.

    Attributes:
        module: where it lives below `qurating_jax.pipeline`, with `Config` and `main`.
        summary: what it does.
        processes: how it runs on several machines: as one process; as any number of processes that run the same
            command and share the work by claims ("shards"); as one JAX program with a process on every host ("hosts").
    """

    module: str
    summary: str
    processes: Processes = "single"


STAGES: dict[str, Stage] = {
    "corpus": Stage("corpus", "documents of this machine's Python installation, to try everything on"),
    "split": Stage("split", "documents -> train/ and heldout/, equal texts on one side", "shards"),
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
    "judge mock-server": Stage("judging.mock_server", "a rehearsal endpoint on this machine with a known judge"),
    "train-rater": Stage("train_rater", "judgments -> rater (Bradley-Terry)", "hosts"),
    "combine-raters": Stage("combine_raters", "several raters -> one, a weighted sum of their scores"),
    "eval-rater": Stage("eval_rater", "rater + judgments -> held-out accuracy beside simple formulas"),
    "annotate": Stage("annotate", "documents + rater -> ratings per 512-token window and document", "hosts"),
    "select": Stage("select_subset", "rated documents -> a budget of them: sampled, best, mixed, ...", "shards"),
    "tokenize": Stage("tokenize", "documents -> rows of tokens, packed or in windows", "shards"),
    "plan": Stage(
        "plan", "what experiments or a train-lm recipe take: FLOPs, memory, disk, hours, cost; no device needed"
    ),
    "train-lm": Stage("train_lm", "token shards -> language model", "hosts"),
    "eval-lm": Stage("eval_lm", "language models -> held-out perplexity by domain, and tasks, with errors, compared"),
    "compare": Stage("compare", "runs of experiments -> one table: perplexity, tasks, selections, over seeds"),
    "run": Stage("run", "experiment files -> all their stages, shared ones once; the same command resumes"),
    "analyze": Stage("analyze", "rated documents -> what ratings do: spread, correlations, topics, bias, audit"),
    "report": Stage("report", "finished stages -> one readable page"),
    "inspect": Stage("inspect_path", "any output or file: rows, ratings, histograms, what its manifest says"),
    "fetch": Stage("fetch", "published raters, judgments, rated corpora and language models, by name"),
    "convert": Stage("convert", "weights: Hugging Face directory <-> Orbax checkpoint"),
    "bench judge": Stage("judging.bench", "how many requests per second the client side of judging can do"),
    "bench annotate": Stage("bench_annotate", "tokens per second of annotation and what bounds it, beside PyTorch's"),
    "bench train-rater": Stage("bench_train_rater", "tokens per second of rater training, beside PyTorch's"),
    "bench train-lm": Stage("bench_train_lm", "tokens per second of language-model training, beside PyTorch's"),
    "bench eval-lm": Stage("bench_eval_lm", "task requests per second, beside the harness' own model of transformers"),
    "bench select": Stage("bench_select", "documents per second of selection, beside the original's rule"),
    "bench experiments": Stage("bench_experiments", "what experiments take by stage, and how near their plan comes"),
    "doctor": Stage("doctor", "devices, versions, extras, write test"),
}


def load(name: str) -> Any:
    """The module of a stage, with its `Config` and its `main`."""
    return importlib.import_module(f"qurating_jax.pipeline.{STAGES[name].module}")


def step_config(name: str, where: str) -> Any:
    """The config class of a stage that an experiment names at `where`.

    Raises:
        UsageError: there is no such stage, or it makes no output that another one could read.
    """
    if name not in STAGES:
        close = get_close_matches(name.replace("-", " "), STAGES, n=1) or get_close_matches(name, STAGES, n=1)
        hint = f" (did you mean `{close[0]}`?)" if close else ""
        raise UsageError(f"{where}: no stage `{name}`{hint}; a step whose name is no stage's says `stage: ...`")
    config = load(name).Config
    if not {"output", "overwrite"} <= {field.name for field in dataclasses.fields(config)}:
        raise UsageError(f"{where}: `qurating {name}` makes no output, so that it cannot be a step")
    return config
