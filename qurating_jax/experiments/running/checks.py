"""What is refused before anything runs: inputs that are not there, and what the stages themselves would refuse."""

import logging
import signal
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from typing import Any

from qurating_jax import config as configs
from qurating_jax.experiments.graph import Graph, Node
from qurating_jax.experiments.records import read_run, run_path
from qurating_jax.experiments.running.external import MODELS, External, externals
from qurating_jax.experiments.running.graph_text import who
from qurating_jax.experiments.running.stage_processes import own_command, stage_words
from qurating_jax.experiments.running.states import State
from qurating_jax.runtime import storage
from qurating_jax.runtime.errors import EXIT_INTERRUPTED, EXIT_USAGE, UsageError, UserError
from qurating_jax.runtime.terminal import plain

_LONG_TO_ASK = ("select", "judge run")  # all keys of a corpus, DSIR's n-grams; all its documents

log = logging.getLogger(__name__)


def wanted(graph: Graph, until: Sequence[str], only: Sequence[str]) -> list[str]:
    """Keys of the nodes that are to stand in the end, what is read before its readers.

    Args:
        graph: all there is.
        until: steps or stages; what comes after them is left out. None: nothing is.
        only: steps or stages; nothing else runs.

    Raises:
        UsageError: a name that is no step's or stage's of the graph, or both are given.
    """
    if until and only:
        raise UsageError("--until and --only both say what is to run; give one of them")
    keys = {key for name in only or until for key in _named(graph, name, "--only" if only else "--until")}
    if until:
        for key in reversed(list(graph.nodes)):  # readers first
            if key in keys:
                keys.update(graph.nodes[key].reads)
    return [key for key in graph.nodes if key in keys or not (until or only)]


def check_scale(graph: Graph) -> None:
    """Raises `UserError` where a run stands under the same output at another scale: its record would be lost."""
    for run in graph.runs:
        path = run_path(graph.output, run.experiment, run.seed)
        try:
            scale = read_run(path).scale if storage.exists(path) else run.scale
        except UserError:  # broken: it is written anew
            continue
        if scale != run.scale:
            raise UserError(f"{path}: is of scale `{scale}`, not `{run.scale}`; choose another --output")


def check_inputs(graph: Graph, keys: Iterable[str]) -> None:
    """Raises `UserError` for the first step that reads nothing, or something that is not there."""
    for key in keys:
        node = graph.nodes[key]
        if (options := _needed(node)) and not configs.reads(node.config):
            raise UsageError(f"{who(node)}: reads nothing; give one of {', '.join(options)}")
        for external in externals(node, graph):
            if external.kind == "missing":
                raise UserError(f"{who(node)}: {external.option} {external.path}: {_missing(external)}")


def check_models(graph: Graph, keys: Iterable[str]) -> None:
    """Checks raters and tokenizers that are there already, for steps that can be asked themselves only later.

    Raises:
        UserError: as `annotate` would say it: they do not go together, or are none.
    """
    for key in keys:
        node = graph.nodes[key]
        if node.stage != "annotate":
            continue
        given = [external for external in externals(node, graph) if external.option in MODELS]
        named = [value for option in MODELS for value in configs.reads(node.config).get(option, ())]
        if len(given) < len(named) or any(external.kind != "path" for external in given):
            continue  # some are made by the graph, or lie where only the stage itself looks
        from qurating_jax.scoring.model_set import find_models

        config = node.config
        options = {name: getattr(config, name) for name in ("revision", "criteria", "tokenizer", "window_tokens")}
        try:
            find_models(config.rater, config.language_model, **options)
        except UserError as error:
            raise UserError(f"{who(node)}: {error}") from None


def check_read(graph: Graph, keys: Sequence[str], states: Mapping[str, State]) -> None:
    """Raises `UserError` where a step that is to run reads one that is unfinished and not to run."""
    for key in keys:
        node = graph.nodes[key]
        for read in node.reads:
            if read not in keys and states[read].kind not in ("done", "unrecorded"):
                raise UserError(f"{who(node)}: reads {graph.nodes[read].name}, which is not finished and not to run")


def check_changed(graph: Graph, keys: Iterable[str], states: Mapping[str, State]) -> None:
    """Logs every step whose directory holds something else than what is wanted now; raises `UserError` for them."""
    changed = [key for key in keys if states[key].kind == "changed"]
    for key in changed:
        log.warning("%s has changed: %s", who(graph.nodes[key]), states[key].why)
    if changed:
        first = graph.nodes[changed[0]]
        more = f", and {len(changed) - 1} more (above)" if changed[1:] else ""
        raise UserError(
            f"{first.directory}: is of something else ({states[changed[0]].why}){more}; --rebuild makes it anew, and "
            "what depends on it, or choose another --output"
        )


def check_tasks(graph: Graph, keys: Iterable[str], states: Mapping[str, State]) -> None:
    """Reads the data of tasks that are to be asked here, the hub's into its cache: else a model would be trained first.

    Raises:
        UserError: the harness is not installed, a task is not known, or its data cannot be had.
    """
    asking = [node for key in keys if states[key].kind != "done" and _asks_tasks(node := graph.nodes[key])]
    if not asking:
        return
    from qurating_jax.scoring.tasks import loading, presets

    found: dict[tuple[Any, ...], Node] = {}
    for node in asking:
        of = node.config
        found.setdefault((of.tasks, of.task_data, of.task_include, of.task_num_fewshot), node)
    for (given, folder, include, num_fewshot), node in found.items():
        try:
            chosen = presets.choose(given)
            loading.require_harness()
            tasks = loading.load_tasks(chosen, folder=folder, include=include, num_fewshot=num_fewshot, seed=0)
        except UserError as error:
            kind = UsageError if isinstance(error, UsageError) else UserError
            raise kind(f"{who(node)}: {error}; --until leaves this step out") from None
        num_items = sum(task.num_items(node.config.task_limit) for task in tasks)
        names = ", ".join(task.name for task in tasks)
        log.info("run: the data of the tasks are here, %s questions: %s", f"{num_items:,}", names)


def _asks_tasks(node: Node) -> bool:
    return node.stage == "eval-lm" and bool(node.config.tasks)


def preflight(
    graph: Graph,
    keys: Iterable[str],
    states: Mapping[str, State],
    config_path: Callable[[Node], str],
    environment: Mapping[str, str],
) -> None:
    """Asks every step that is to begin, and whose inputs are there, with its own `--dry_run`; on the CPU, one by one.

    Not asked is what would do the greater part of its work to answer: it says the same when it starts.

    Raises:
        UserError: the first one that refuses, in its words and with its exit code.
    """
    asked = [
        graph.nodes[key]
        for key in keys
        if states[key].kind in ("to do", "changed")  # what was begun has been asked
        and graph.nodes[key].stage not in _LONG_TO_ASK
        and all(states[read].kind == "done" for read in graph.nodes[key].reads)
        and (getattr(graph.nodes[key].config, "distributed", None) is None or _is_single(graph.nodes[key].config))
    ]
    if asked:
        log.info("checking the %d step(s) that can begin", len(asked))
    for node in asked:
        done = subprocess.run(
            [*own_command(), *stage_words(node, config_path(node)), "--dry_run", "true"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env={**environment, "JAX_PLATFORMS": "cpu"},  # no device is needed, and none taken from others
            check=False,
        )
        if done.returncode:
            raise _refusal(node, done.returncode, done.stderr)


def _refusal(node: Node, code: int, said: str) -> UserError:
    lines = [line for line in said.splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    ended = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
    message = plain((errors or lines or [ended])[-1]) if code >= 0 else ended
    error = (UsageError if code == EXIT_USAGE else UserError)(f"{who(node)}: {message}")
    if code == EXIT_INTERRUPTED:
        error.exit_code = code
    return error


def _is_single(config: Any) -> bool:
    return bool(config.distributed.mode == "none")


def _named(graph: Graph, name: str, option: str) -> list[str]:
    found = [
        key for key, node in graph.nodes.items() if name in node.steps or name.replace("_", "-") == node.stage
    ]  # fmt: skip
    if not found:
        known = sorted({name for node in graph.nodes.values() for name in (*node.steps, node.stage)})
        close = get_close_matches(name, known, n=1)
        hint = f"did you mean `{close[0]}`?" if close else f"there are {', '.join(known)}"
        raise UsageError(f"{option} {name}: no step or stage of these experiments ({hint})")
    return found


def _needed(node: Node) -> list[str]:
    """Options of which a stage cannot do without all; those that default to null it can."""
    return [field.name for field in fields(node.config) if field.metadata.get("reads") and field.default in ("", ())]


def _missing(external: External) -> str:
    if any(sign in external.path for sign in "*?["):
        return "matches no file"
    hub = " (a hub id is owner/name)" if external.option in MODELS else ""
    return f"no such file or directory{hub}"
