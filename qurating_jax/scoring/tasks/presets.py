"""Which tasks `--tasks` means: the ten of the paper from the hub or a folder, the harness' own, others by name.

- `paper`: the task files beside this module, prompts and shots of the harness v0.3, data sets of the hub;
- `local`: the same files, reading a folder (`scoring.tasks.folder`);
- `modern`: the same ten as the installed harness has them.

A name of a preset with a task behind it (`paper_mmlu`, `local_piqa`) is that one alone; any other is the harness'.
"""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

import yaml

from qurating_jax.runtime.errors import UsageError

PAPER = ("arc_easy", "arc_challenge", "sciq", "logiqa", "boolq", "hellaswag", "piqa", "winogrande", "nq_open", "mmlu")
PRESETS = ("modern", "paper", "local")
GROUPS = ("reading comprehension", "commonsense reasoning", "world knowledge", "other")  # in the order of tables


@dataclass(frozen=True)
class Chosen:
    """A task of an evaluation before its data are read.

    Attributes:
        name: what it is called in results; of the harness' own the harness' name.
        base: one of `PAPER`, or the harness' name.
        preset: whose prompts: "paper", "modern" (one of the ten as the harness has it), "harness" (any other of its).
        data: "folder", or "hub" for whatever the task says itself.
        by_name: it was asked for by itself, not as a part of a preset.
    """

    name: str
    base: str
    preset: Literal["paper", "modern", "harness"]
    data: Literal["hub", "folder"]
    by_name: bool


def task_file(base: str) -> dict[str, Any]:
    """The content of one of our own task files, in the harness' own format."""
    text = (resources.files(__package__) / "task_files" / f"{base}.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text))


def choose(given: Sequence[str]) -> list[Chosen]:
    """The tasks that `--tasks` names, each once, in the order given.

    Raises:
        UsageError: an unknown task of ours (`paper_...`, `local_...`).
    """
    found: dict[str, Chosen] = {}
    for entry in given:
        preset, _, base = entry.partition("_")
        if entry in PRESETS:
            for one in PAPER:
                chosen = _of_preset(entry, one, by_name=False)
                found.setdefault(chosen.name, chosen)
            continue
        if preset in ("paper", "local"):
            if base not in PAPER:
                raise unknown(entry, [f"{preset}_{one}" for one in PAPER])
            chosen = _of_preset(preset, base, by_name=True)
        elif entry in PAPER:
            chosen = _of_preset("modern", entry, by_name=True)
        else:
            chosen = Chosen(entry, entry, "harness", "hub", True)
        found[chosen.name] = chosen  # by name counts for more
    return list(found.values())


def unknown(name: str, known: Iterable[str]) -> UsageError:
    """What is said of a task that is not there."""
    close = difflib.get_close_matches(name, list(known), n=3)
    hint = (
        f"did you mean {' or '.join(close)}?" if close else f"presets: {', '.join(PRESETS)}; or a name of the harness"
    )
    return UsageError(f"--tasks: no task `{name}` ({hint})")


def _of_preset(preset: str, base: str, *, by_name: bool) -> Chosen:
    if preset == "modern":
        return Chosen(base, base, "modern", "hub", by_name)
    return Chosen(f"{preset}_{base}", base, "paper", "folder" if preset == "local" else "hub", by_name)
