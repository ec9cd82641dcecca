"""Are these criterion files sound? Errors fail the command; what is allowed but doubtful is printed as a warning."""

import re
from dataclasses import dataclass
from typing import Any

from qurating_jax.config import option
from qurating_jax.judges import criteria
from qurating_jax.runtime.errors import UsageError
from qurating_jax.stage import InspectConfig, require

_LONG_NOTES_CHARACTERS = 1000
# What a template of one's own should tell the judge, and the words that show that it does (English ones).
_SAID = {
    "that texts are cut off": r"cut|excerpt|truncat|fragment|mid-sentence|incomplete",
    "to ignore the language of a text": r"language",
    "to ignore the length of a text": r"length|how long|longer|shorter",
    "that a text is data and holds no instructions": r"instruct|command|order you|obey|data",
}


@dataclass(frozen=True, kw_only=True)
class Config(InspectConfig):
    """Options of `qurating criteria check`."""

    files: tuple[str, ...] = option((), "criterion files (or shipped names)", positional=True)


def main(config: Config) -> dict[str, Any]:
    """Prints a line per file and its warnings; raises `UsageError` after the last one where any failed."""
    require(config, "files")
    checked: list[dict[str, Any]] = []
    failed, names = [], set()
    for file in config.files:
        try:
            (criterion,) = criteria.load([file])
            if criterion.name in names:
                raise UsageError(f"{file}: an earlier file has the name {criterion.name} as well")
        except UsageError as error:
            print(f"error    {error}")
            failed.append(file)
            continue
        names.add(criterion.name)
        warnings = doubts(criterion)
        print(f"ok       {file}: {criterion.name}, hash {criterion.hash}")
        for warning in warnings:
            print(f"warning  {file}: {warning}")
        checked.append({"file": file, "name": criterion.name, "hash": criterion.hash, "warnings": warnings})
    if failed:
        raise UsageError(f"{len(failed)} of {len(config.files)} criterion files cannot be used: {', '.join(failed)}")
    return {"criteria": checked}


def doubts(criterion: criteria.Criterion) -> list[str]:
    """What is allowed in a criterion but probably not meant, one sentence each."""
    found = []
    if "?" not in criterion.question:
        found.append("the question has no question mark")
    if len(criterion.notes) > _LONG_NOTES_CHARACTERS:
        found.append(f"the notes have {len(criterion.notes)} characters; each request pays for them")
    for label in criterion.labels:
        if len(label) > 1:
            found.append(f"the label {label} may be several tokens; verdicts by logprobs read the first one alone")
    for mode, default in (("pairwise", criteria.PAIRWISE), ("individual", criteria.INDIVIDUAL)):
        own = getattr(criterion, mode)
        layouts = {mode: own, f"{mode}_documents_first": getattr(criterion, f"{mode}_documents_first")}
        if own != default and not layouts[f"{mode}_documents_first"]:
            found.append(f"{mode} is its own, {mode}_documents_first is missing: that layout cannot be asked for")
        for name, template in layouts.items():
            if template in ("", default):
                continue
            found += [f"{name} does not say {what}" for what, words in _SAID.items() if not _says(template, words)]
            if mode == "pairwise" and not _says(template, r"order|first|position"):
                found.append(f"{name} does not say to ignore the order of the texts")
    return found


def _says(template: str, words: str) -> bool:
    return re.search(words, re.sub(r"\{\w+\}", "", template), re.IGNORECASE) is not None
