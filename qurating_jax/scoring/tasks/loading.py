"""From chosen tasks to the harness' own task objects, with their data; nothing is asked yet.

A task of an evaluation may be several of the harness' (MMLU is one by subject), whose items are pooled.
"""

import contextlib
import functools
import logging
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qurating_jax.runtime import manifest, storage
from qurating_jax.runtime.errors import UserError
from qurating_jax.scoring.tasks import folder as folders
from qurating_jax.scoring.tasks.folder import FolderTask
from qurating_jax.scoring.tasks.presets import Chosen, task_file, unknown

FEWSHOT_SEED = 1234  # the harness' default; --seed is added to it

_MODEL = "qurating_jax.scoring.tasks.harness_model"  # whose errors are not a task's

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class LoadedTask:
    """A task that can be asked.

    Attributes:
        chosen: what was asked for.
        title, group: how it is shown.
        metric: the one that counts, a mean over items that is better when higher.
        filter: the harness' filter of answers under which it counts.
        parts: the harness' tasks by name; more than one where items of several are pooled.
        files: names of the folder's files that were read.
        data_note: what has to be said of its data, or empty.
        own_examples: examples are other questions of what is asked.
    """

    chosen: Chosen
    title: str
    group: str
    metric: str
    filter: str
    parts: Mapping[str, Any]
    files: tuple[str, ...] = ()
    data_note: str = ""
    own_examples: bool = False

    @property
    def note(self) -> str:
        """What has to be said below its figures, or empty."""
        examples = "examples are other questions of the same file" if self.own_examples and self.num_fewshot else ""
        return "; ".join(filter(None, [self.data_note, examples]))

    @property
    def name(self) -> str:
        """What it is called in results."""
        return self.chosen.name

    @property
    def num_fewshot(self) -> int:
        """Examples before a question."""
        return int(next(iter(self.parts.values())).config.num_fewshot or 0)

    @property
    def version(self) -> str:
        """Of the task's definition."""
        return str(next(iter(self.parts.values())).VERSION)

    def num_items(self, limit: int | None) -> int:
        """Questions, at most `limit` of each part."""
        return sum(min(len(task.eval_docs), limit or sys.maxsize) for task in self.parts.values())

    def num_requests(self, limit: int | None) -> int:
        """What the model is asked: one likelihood per choice, or one answer per question."""
        return sum(
            len(task.doc_to_choice(doc)) if task.OUTPUT_TYPE == "multiple_choice" else 1
            for task in self.parts.values()
            for _, doc in task.doc_iterator(limit=limit)
        )


def require_harness() -> str:
    """The harness' version; raises `UserError` where it is not installed."""
    try:
        with quiet():
            import lm_eval
    except ImportError:
        raise UserError("--tasks needs the lm-evaluation-harness: pip install 'qurating-jax[eval]'") from None
    return str(lm_eval.__version__)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The harness prints and logs as it goes along; of that, warnings and worse are let through."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        logger.setLevel(level)


def folder_digest(folder: str | None) -> dict[str, Any]:
    """What identifies the files of a folder of tasks: each one's name and digest."""
    if folder is None:
        return {}
    paths = [path for files in folders.find_task_files(folder).values() for path in files.values()]
    return {path.rsplit("/", 1)[-1]: storage.digest(path) for path in sorted(paths)}


def include_digest(include: Sequence[str]) -> list[Any]:
    """What identifies folders of the user's own task files."""
    for place in include:
        if not storage.is_dir(place):
            raise UserError(f"{place}: no such folder of task files (--task_include)")
    return [manifest.input_digest([place], storage.expand([place], ("",))) for place in include]


def load_tasks(
    chosen: Sequence[Chosen], *, folder: str | None, include: Sequence[str], num_fewshot: int | None, seed: int
) -> list[LoadedTask]:
    """Reads the tasks' data.

    Args:
        chosen: of `presets.choose`.
        folder: of the tasks that read one.
        include: folders of the user's own task files; what they name with `!function` is run.
        num_fewshot: examples, instead of each task's own number; a task made for none keeps none.
        seed: of the draws of examples.

    Raises:
        UserError: an unknown task, data that cannot be had, a file that is missing for a task that was asked for by
            name, or no task left.
    """
    files = folders.find_task_files(folder) if folder is not None else {}
    loaded: list[LoadedTask] = []
    catalogue = None
    for one in chosen:
        if one.data == "folder":
            if one.base not in files:
                message = f"{folder}: no file of {one.base} (expected {folders.expected_name(one.base)} or the like)"
                if one.by_name:
                    raise UserError(f"--tasks {one.name}: {message}")
                log.warning("eval-lm: %s; the task is left out", message)
                continue
            found = [_from_folder(one, folders.read_task(one.base, files[one.base]))]
        elif one.preset == "paper":
            found = [_from_hub(one)]
        else:
            if catalogue is None:
                catalogue = _catalogue(include, [other.base for other in chosen if other.preset != "paper"])
            found = _from_harness(one, catalogue)
        loaded += [task for task in found if task.name not in {other.name for other in loaded}]
    for task in loaded:
        if task.chosen.data == "hub":  # a folder's rows have been looked at
            with errors_of_rows(task):
                _check_answers(task)
    if not loaded:
        raise UserError(f"{folder}: none of the tasks has a file here; see docs/evaluation.md for their names")
    for task in loaded:
        for part in task.parts.values():
            _set_examples(task, part, num_fewshot, seed)
    return loaded


def _from_folder(chosen: Chosen, rows: FolderTask) -> LoadedTask:
    config = task_file(chosen.base)
    drawn_from = "dev" if chosen.base == "mmlu" else "train" if rows.examples is not None else "test"
    config |= {"validation_split": None, "test_split": "test", "fewshot_split": drawn_from}
    config = {key: value for key, value in config.items() if key not in ("dataset_path", "dataset_name")}
    about = {"files": rows.files, "data_note": rows.note, "own_examples": rows.examples is None}
    if chosen.base != "mmlu":
        splits = {"test": rows.asked, **({} if rows.examples is None else {"train": rows.examples})}
        parts = {chosen.name: _part(config | {"task": chosen.name}, splits)}
        return _loaded(chosen, config["metadata"], parts, **about)
    parts = {}
    for subject in dict.fromkeys(row["subject"] for row in rows.asked):
        splits = {
            split: [row for row in of if row["subject"] == subject]
            for split, of in {"test": rows.asked, "dev": rows.examples or []}.items()
        }
        name = f"{chosen.name}_{subject}"
        if not splits["dev"]:
            raise UserError(f"--tasks {chosen.name}: mmlu_dev holds no examples of {subject}, which mmlu asks about")
        parts[name] = _part(config | {"task": name}, splits)
    return _loaded(chosen, config["metadata"], parts, **about)


def _part(config: dict[str, Any], splits: Mapping[str, list[dict[str, Any]]]) -> Any:
    """A task of the harness over rows in memory: no file, no cache of data sets, no network."""
    from datasets import Dataset, DatasetDict

    def rows_in_memory(**_: Any) -> Any:
        return DatasetDict({split: Dataset.from_list(rows) for split, rows in splits.items()})

    return _configured(config | {"custom_dataset": rows_in_memory})


def _from_hub(chosen: Chosen) -> LoadedTask:
    config = task_file(chosen.base) | {"task": chosen.name}
    subjects = config["metadata"].get("subjects", [None])  # which the hub keeps as data sets of their own
    parts = {}
    for subject in subjects:
        name = chosen.name if subject is None else f"{chosen.name}_{subject}"
        own = {} if subject is None else {"dataset_name": subject}
        with _errors_of_data(chosen.name, config["dataset_path"]):
            parts[name] = _configured(config | {"task": name} | own)
    return _loaded(chosen, config["metadata"], parts)


def _configured(config: dict[str, Any]) -> Any:
    with quiet():
        from lm_eval.api.task import ConfigurableTask

        return ConfigurableTask(config=config)


def _catalogue(include: Sequence[str], names: Sequence[str]) -> Any:
    """The harness' index of tasks; of the user's folders alone where all that is asked is a task there.

    The harness' own thousands of files take seconds to read; what the user's folders have takes precedence anyway.
    """
    with quiet():
        from lm_eval.tasks import TaskManager

        if not include:
            return _own_catalogue()
        _require_readable(include)
        theirs = TaskManager(include_path=list(include), include_defaults=False)
        return theirs if set(names) <= set(theirs.all_subtasks) else TaskManager(include_path=list(include))


def _require_readable(include: Sequence[str]) -> None:
    """Raises `UserError` for a YAML file that cannot be read: the harness passes over it without a word."""
    from lm_eval.tasks._yaml_loader import load_yaml

    for path in sorted(path for place in include for path in Path(place).glob("**/*.yaml")):
        try:
            load_yaml(path, resolve_func=False)
        except Exception as error:  # of its own, of YAML, of what it includes
            raise UserError(f"{path}: not a task file ({_reason(error)})") from None


@functools.cache
def _own_catalogue() -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _from_harness(chosen: Chosen, catalogue: Any) -> list[LoadedTask]:
    """A task of the harness; a group that the harness pools by size is one, any other group or tag its tasks."""
    if chosen.base not in catalogue.all_tasks:
        raise unknown(chosen.base, catalogue.all_tasks)
    with _errors_of_data(chosen.name, "its data set"), quiet():
        loaded = catalogue.load([chosen.base])
    parts = loaded["tasks"]
    described = task_file(chosen.base)["metadata"] if chosen.preset == "modern" else {}
    group = loaded["groups"].get(chosen.base)
    if chosen.base in parts or (group is not None and _is_pooled(group)):
        return [_loaded(chosen, described, parts)]
    return [
        _loaded(Chosen(name, name, chosen.preset, "hub", chosen.by_name), {}, {name: part})
        for name, part in parts.items()
    ]


def _check_answers(task: LoadedTask) -> None:
    """Every right choice is one of the choices; the harness counts a question as wrong where it is none."""
    for name, part in task.parts.items():
        if part.OUTPUT_TYPE != "multiple_choice":
            continue
        for number, doc in part.doc_iterator():
            choices = part.doc_to_choice(doc)
            right = part.doc_to_text(doc) if part.multiple_input else part.doc_to_target(doc)
            for one in right if isinstance(right, (list, tuple)) else [right]:
                if one not in (range(len(choices)) if isinstance(one, int) else choices):
                    raise UserError(
                        f"--tasks {task.name}: the right choice of question {number} of {name} is {one!r}, none of its "
                        f"{len(choices)} choices; does this split say the answers?"
                    )


def _is_pooled(group: Any) -> bool:
    metrics = group.aggregate_metric_list or []
    return bool(metrics) and all(getattr(metric, "weight_by_size", False) for metric in metrics)


def _loaded(chosen: Chosen, described: Mapping[str, Any], parts: Mapping[str, Any], **about: Any) -> LoadedTask:
    metric, chain = _metric(chosen.name, next(iter(parts.values())), described.get("main"))
    title, group = described.get("title", chosen.name), described.get("group", "other")
    return LoadedTask(chosen, title, group, metric, chain, parts, **about)


def _metric(name: str, task: Any, wanted: str | None) -> tuple[str, str]:
    """The wanted metric, else the first that is a mean over items and better when higher; and the first filter."""
    from lm_eval.api.metrics import mean

    better = task.higher_is_better()
    means = [metric for metric, way in task.aggregation().items() if way is mean and better.get(metric)]
    if not means:
        raise UserError(f"--tasks {name}: no metric of it is a mean over its items that is better when higher")
    return str(wanted if wanted in means else means[0]), str(task._filters[0].name)


def _set_examples(task: LoadedTask, part: Any, num_fewshot: int | None, seed: int) -> None:
    own = part.config.num_fewshot
    if num_fewshot is not None and own != 0:
        part.set_config(key="num_fewshot", value=num_fewshot)
    elif own is None:
        part.set_config(key="num_fewshot", value=0)
    part.set_fewshot_seed(seed=FEWSHOT_SEED + seed)
    sampler, shots = getattr(part, "sampler", None), part.config.num_fewshot
    if sampler is not None and shots:
        same = part.fewshot_cfg.split is not None and part.fewshot_cfg.split == part.config.test_split
        there = len(sampler.df) - same
        if there < shots:
            raise UserError(
                f"--tasks {task.name}: {shots} examples before each question, and {part.config.task} has {there} to "
                "take them from; give --task_num_fewshot"
            )


@contextlib.contextmanager
def _errors_of_data(name: str, dataset: str) -> Iterator[None]:
    from jinja2 import TemplateError

    try:
        yield
    except UserError:
        raise
    except (TemplateError, LookupError, TypeError, AttributeError) as error:
        raise _unfit(name, error) from None
    except Exception as error:  # the hub's client, the data-set library and the task's own code have errors of any kind
        raise UserError(
            f"--tasks {name}: {dataset} cannot be had ({_reason(error)}); is the hub within reach? "
            "`local` tasks read --task_data without it"
        ) from None


@contextlib.contextmanager
def errors_of_rows(task: LoadedTask) -> Iterator[None]:
    """What a task's own expressions say of rows that are not what they expect; of a folder, rows were looked at."""
    from jinja2 import TemplateError

    try:
        yield
    except (TemplateError, LookupError, TypeError, AttributeError, ValueError) as error:
        where = {frame.f_globals.get("__name__") for frame, _ in traceback.walk_tb(error.__traceback__)}
        if task.chosen.data == "folder" or _MODEL in where:
            raise
        raise _unfit(task.name, error) from None


def _unfit(name: str, error: Exception) -> UserError:
    return UserError(
        f"--tasks {name}: a row of its data does not fit the task ({type(error).__name__}: {_reason(error)})"
    )


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
