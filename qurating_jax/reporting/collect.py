"""From the artifacts under a folder to tables of formatted cells, the one source of the page and the summary.

What an artifact says is untrusted where it quotes documents: cells are cleaned of control characters here, and escaped
where they become HTML.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qurating_jax.runtime import manifest, storage

EXPECTED = ("judge run", "train-rater", "annotate", "select", "train-lm", "eval-lm")
EXCERPT_CHARACTERS = 300
CELL_CHARACTERS = 90  # of a cell in the plain summary
MOST_DOMAINS = 200  # rows of a table of domains
_SUFFIX = "_average"
_JOINERS = "\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}"  # "not printable" to Python, needed by Persian and Hindi
_SELECTION_FACTS = (
    "num_documents", "num_eligible", "num_selected", "share_documents", "eligible_tokens", "selected_tokens",
    "share_tokens", "budget_tokens", "budget_documents", "overshoot_tokens", "overshoot_documents", "threshold_key",
    "threshold_rating", "effective_sample_size", "effective_share", "kl_from_uniform", "mean_rating_eligible",
    "mean_rating_selected", "num_missing_domains", "num_rejected",
)  # fmt: skip


@dataclass(frozen=True)
class Artifact:
    """One stage output: its folder under the run (`name`), its path, and its manifest."""

    name: str
    path: str
    manifest: dict[str, Any]


@dataclass(frozen=True)
class Section:
    """A table of formatted cells with notes above it. `brief`: it is in the plain summary too."""

    title: str
    headings: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    notes: tuple[str, ...] = ()
    brief: bool = False


def find_artifacts(directory: str) -> tuple[list[Artifact], list[str]]:
    """The finished stage outputs in a folder or one level below its plain sub-folders, and the unfinished ones' names.

    Reports themselves are passed over.
    """
    found, unfinished = [], []
    for name, path in _folders(directory):
        if storage.exists(storage.join(path, manifest.MANIFEST)):
            document = manifest.read(path)
            if document["stage"] != "report":
                found.append(Artifact(name, path, document))
        elif storage.read_json(storage.join(path, manifest.RUN))["determined"]["stage"] != "report":
            unfinished.append(name)
    return found, unfinished


def collect(artifacts: list[Artifact], unfinished: list[str]) -> list[Section]:
    """Everything the page and the summary show, as tables of formatted cells."""
    stages = {artifact.manifest["stage"] for artifact in artifacts}
    gaps = [f"No finished output of `qurating {stage}`." for stage in EXPECTED if stage not in stages]
    gaps += [f"{name} is unfinished; run its command again to complete it." for name in unfinished]
    return [
        *([Section("Missing", notes=tuple(gaps), brief=True)] if gaps else []),
        Section(
            "Stages",
            ("folder", "stage", "counts"),
            tuple((a.name, a.manifest["stage"], _counts(a.manifest["counts"])) for a in artifacts),
        ),
        *(_judge(artifact) for artifact in artifacts if artifact.manifest["stage"] == "judge run"),
        *_rater([artifact for artifact in artifacts if artifact.manifest["stage"] in ("train-rater", "eval-rater")]),
        *(_extremes(artifact) for artifact in artifacts if artifact.manifest["stage"] == "annotate"),
        *_selections([artifact for artifact in artifacts if artifact.manifest["stage"] == "select"]),
        *_language_models([artifact for artifact in artifacts if artifact.manifest["stage"] == "eval-lm"]),
    ]


def _judge(artifact: Artifact) -> Section:
    judge = artifact.manifest["config"].get("judge") or {}
    notes: tuple[str, ...] = ()
    if judge.get("kind") == "offline":
        notes = (
            "The judge was the offline one: fixed formulas over the text, not a language model. "
            "Ratings learned from it show that the pipeline works, not what an LLM would prefer.",
        )
    criteria = _mappings(artifact.manifest["counts"].get("criteria"))
    measures = dict.fromkeys(name for _, values in criteria for name in values)
    rows = tuple((criterion, *(_cell(values.get(name)) for name in measures)) for criterion, values in criteria)
    headings = ("criterion", *(name.replace("_", " ") for name in measures))
    return Section(f"Judgments: {artifact.name}", headings, rows, notes=notes, brief=True)


def _rater(artifacts: list[Artifact]) -> Iterator[Section]:
    """Held-out pair accuracy by criterion, of the rater and of what it is compared with."""
    rows: list[tuple[str, str, str, dict[str, Any]]] = []
    notes: list[str] = []
    for artifact in artifacts:
        for path, values in _accuracies(_eval(artifact, notes)):
            rows.append((artifact.name, " ".join(path[:-1]).replace("_", " "), path[-1], values))
    if rows or notes:
        measures = dict.fromkeys(name for row in rows for name in row[3])
        cells = tuple((*map(_cell, row[:3]), *(_cell(row[3].get(name)) for name in measures)) for row in rows)
        headings = ("folder", "pairs", "criterion", *(name.replace("_", " ") for name in measures))
        yield Section("Rater: held-out pair accuracy", headings, cells, notes=tuple(notes), brief=True)


def _accuracies(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """The mappings with an `accuracy` at any depth, with the keys that lead there (the last one is the criterion)."""
    for key, inner in _mappings(value):
        if "accuracy" in inner:
            yield (*path, key), inner
        else:
            yield from _accuracies(inner, (*path, key))


def _extremes(artifact: Artifact) -> Section:
    """The documents with the highest and the lowest rating of every criterion."""
    best = _find_extremes(artifact)
    rows = tuple(
        (criterion, end, _cell(rating), name, text)
        for criterion, ends in best.items()
        for end, (rating, name, text) in ends.items()
    )
    notes = () if rows else ("No rated documents.",)
    headings = ("criterion", "", "rating", "document", "excerpt")
    return Section(f"Highest and lowest rated documents: {artifact.name}", headings, rows, notes=notes, brief=True)


def _find_extremes(artifact: Artifact) -> dict[str, dict[str, tuple[float, str, str]]]:
    """criterion -> "top" | "bottom" -> (rating, id, excerpt); texts are read for the extremes' row groups alone."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    found: dict[str, dict[str, tuple[float, str, int, int]]] = {}
    parts = [name for name in storage.list_dir(artifact.path) if name.startswith("part-") and name.endswith(".parquet")]
    for part in parts:
        with storage.open_read(f"{artifact.path}/{part}") as stream, pq.ParquetFile(stream) as file:
            criteria = [
                field.name.removesuffix(_SUFFIX)
                for field in file.schema_arrow
                if field.name.endswith(_SUFFIX) and pa.types.is_floating(field.type)
            ]
            for group in range(file.num_row_groups if criteria else 0):
                ratings = file.read_row_group(group, columns=[criterion + _SUFFIX for criterion in criteria])
                for criterion in criteria:
                    values = ratings[criterion + _SUFFIX].cast(pa.float64()).fill_null(float("nan")).to_numpy()
                    if np.isnan(values).all():
                        continue
                    ends = found.setdefault(criterion, {})
                    for end, row, better in (
                        ("top", int(np.nanargmax(values)), np.greater),
                        ("bottom", int(np.nanargmin(values)), np.less),
                    ):
                        if end not in ends or better(values[row], ends[end][0]):
                            ends[end] = (float(values[row]), part, group, row)
    return {
        criterion: {
            end: (rating, *_document(artifact, part, group, row)) for end, (rating, part, group, row) in ends.items()
        }
        for criterion, ends in found.items()
    }


def _document(artifact: Artifact, part: str, group: int, row: int) -> tuple[str, str]:
    """Id and excerpt of one annotated document."""
    import pyarrow.parquet as pq

    settings = artifact.manifest["config"]
    fields = (settings.get("id_field", "id"), settings.get("text_field", "text"))
    with storage.open_read(f"{artifact.path}/{part}") as stream, pq.ParquetFile(stream) as file:
        present = file.schema_arrow.names
        roots = [field if field in present else field.split(".")[0] for field in fields]
        rows = file.read_row_group(group, columns=[root for root in roots if root in present]).slice(row, 1).to_pylist()
    values = []
    for field in fields:
        value: Any = rows[0]
        for key in [field] if field in present else field.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        values.append("" if value is None else str(value))
    return clean(values[0], CELL_CHARACTERS), clean(values[1], EXCERPT_CHARACTERS)


def _selections(artifacts: list[Artifact]) -> Iterator[Section]:
    """What the selections did, side by side; then what each did by domain and by member, and what they share."""
    notes: list[str] = []
    documents = {artifact.name: _json(artifact, "selection.json", notes) for artifact in artifacts}
    if not documents:
        return
    facts = {name: _selection_facts(document) for name, document in documents.items()}
    named = dict.fromkeys(fact for found in facts.values() for fact, value in found.items() if value is not None)
    rows = tuple((fact, *(_cell(found.get(fact)) for found in facts.values())) for fact in named)
    yield Section("Selections", ("", *documents), rows, notes=tuple(notes), brief=bool(notes))
    ratings = [row for name, document in documents.items() for row in _rating_rows(name, document)]
    if ratings:
        headings = dict.fromkeys(heading for row in ratings for heading in row)
        cells = tuple(tuple(_cell(row.get(heading)) for heading in headings) for row in ratings)
        yield Section("Selections: ratings before and after", tuple(headings), cells)
    yield from _domain_mix({name: _list_of(document, "domains") for name, document in documents.items()})
    for name, document in documents.items():
        overlap = document.get("overlap")
        for title, table in (
            ("Selection by domain", _list_of(document, "domains")),
            ("Selection by member", _list_of(document, "members")),
            ("Overlap with other selections", _list_of(overlap, "with") if isinstance(overlap, dict) else []),
        ):
            if table:
                yield _table(f"{title}: {name}", table)


def _selection_facts(document: dict[str, Any]) -> dict[str, Any]:
    """The facts of a selection as a whole by name, reasons of rejection each by itself."""
    settings = document.get("settings")
    asked = {name: _plain(value) for name, value in settings.items()} if isinstance(settings, dict) else {}
    # What came of a budget stands below, in the units that were counted.
    asked = {name: value for name, value in asked.items() if name not in _SELECTION_FACTS}
    found = {name: document.get(name) for name in _SELECTION_FACTS}
    facts = {str(name).replace("_", " "): value for name, value in (asked | found).items()}
    rejected = document.get("rejected")
    reasons = rejected.items() if isinstance(rejected, dict) else ()
    return facts | {f"rejected: {str(reason).replace('_', ' ')}": count for reason, count in reasons if count}


def _plain(value: Any) -> Any:
    """A setting as one value: lists and mappings as text, None where there is nothing in them."""
    if isinstance(value, dict):
        value = [f"{key}: {part}" for key, part in value.items()]
    return ", ".join(map(str, value)) or None if isinstance(value, list) else value


def _rating_rows(name: str, document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for rating, about in _mappings(document.get("ratings")):
        for side, values in _mappings(about):
            plain = {key.replace("_", " "): value for key, value in values.items() if key != "quantiles"}
            quantiles = values.get("quantiles")
            shares = quantiles.items() if isinstance(quantiles, dict) else ()
            yield {
                "selection": name,
                "rating": rating,
                "documents": side,
                **plain,
                **{f"quantile {share}": value for share, value in shares},
            }


def _domain_mix(selections: dict[str, list[dict[str, Any]]]) -> Iterator[Section]:
    """Shares of the domains before and after, selections side by side, those that changed most first."""
    shares: dict[str, dict[str, tuple[Any, Any]]] = {}
    for name, rows in selections.items():
        for row in rows:
            pair = (row.get("share_eligible"), row.get("share_selected"))
            if pair != (None, None):
                shares.setdefault(str(row.get("domain")), {})[name] = pair
    if not shares:
        return

    def change(domain: str) -> float:
        return max(_difference(pair) for pair in shares[domain].values())

    domains = sorted(shares, key=lambda domain: (-change(domain), domain))
    shown = [name for name in selections if any(name in found for found in shares.values())]
    cells = tuple(
        (_cell(domain), *(_cell(share) for name in shown for share in shares[domain].get(name, (None, None))))
        for domain in domains[:MOST_DOMAINS]
    )
    headings = ("domain", *(f"{when}: {name}" for name in shown for when in ("before", "after")))
    yield Section("Domain mix: shares before and after selection", headings, cells, notes=_more(domains))


def _table(title: str, table: list[dict[str, Any]]) -> Section:
    """Rows with the columns that say something in one of them; the name first."""
    keys = [
        key
        for key in dict.fromkeys(key for row in table for key in row)
        if any(row.get(key) is not None for row in table)
    ]
    keys.sort(key=lambda key: key not in ("domain", "member", "selection"))
    rows = tuple(tuple(_cell(row.get(key)) for key in keys) for row in table[:MOST_DOMAINS])
    return Section(title, tuple(key.replace("_", " ") for key in keys), rows, notes=_more(table))


def _more(rows: list[Any]) -> tuple[str, ...]:
    rest = len(rows) - MOST_DOMAINS
    return (f"{rest:,} more are in selection.json.",) if rest > 0 else ()


def _difference(pair: tuple[Any, Any]) -> float:
    before, after = (float(share) if isinstance(share, (int, float)) else 0.0 for share in pair)
    return abs(after - before)


def _list_of(document: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """The mappings in a list of a document; none where it is something else."""
    value = document.get(name)
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def _language_models(artifacts: list[Artifact]) -> Iterator[Section]:
    """Perplexity and bits per byte by domain, models side by side; eval.json has `models` by name (docs/eval_lm.md)."""
    notes: list[str] = []
    results: dict[str, dict[str, Any]] = {}
    for artifact in artifacts:
        models = _mappings(_eval(artifact, notes).get("models"))
        results |= {artifact.name if len(models) == 1 else f"{artifact.name} {name}": of for name, of in models}
    if not results and not notes:
        return
    domains = sorted({domain for result in results.values() for domain, _ in _mappings(result.get("domains"))})
    measures = ("perplexity", "bits_per_byte")
    rows = []
    for domain in [*domains, None]:
        cells = [_cell(domain) if domain is not None else "all domains"]
        for measure in measures:
            for result in results.values():
                values = result.get("all") if domain is None else (result.get("domains") or {}).get(domain)
                cells.append(_cell(dict(_mappings(values)).get(measure, {}).get("value")))
        rows.append(tuple(cells))
    headings = (
        "held-out domain",
        *(f"{measure.replace('_', ' ')}: {name}" for measure in measures for name in results),
    )
    yield Section("Language models: held-out text", headings, tuple(rows), notes=tuple(notes), brief=True)


def _folders(directory: str) -> Iterator[tuple[str, str]]:
    for name in storage.list_dir(directory):
        path = storage.join(directory, name)
        if manifest.is_artifact(path):
            yield name, path
            continue
        for inner in storage.list_dir(path):
            if manifest.is_artifact(storage.join(path, inner)):
                yield f"{name}/{inner}", storage.join(path, inner)


def _eval(artifact: Artifact, notes: list[str]) -> dict[str, Any]:
    return dict(_mappings(_json(artifact, "eval.json", notes)))


def _json(artifact: Artifact, name: str, notes: list[str]) -> dict[str, Any]:
    path = storage.join(artifact.path, name)
    if not storage.exists(path):
        notes.append(f"{artifact.name} has no {name}.")
        return {}
    document = storage.read_json(path)
    return document if isinstance(document, dict) else {}


def _mappings(value: Any) -> list[tuple[str, dict[str, Any]]]:
    """The entries of a mapping that are mappings themselves; none where it is no mapping."""
    return (
        [(str(key), inner) for key, inner in value.items() if isinstance(inner, dict)]
        if isinstance(value, dict)
        else []
    )


def _flat(counts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in counts.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key} ".replace("_", " "))
        else:
            yield f"{prefix}{key}".replace("_", " "), value


def _counts(counts: Mapping[str, Any]) -> str:
    return ", ".join(f"{name.removeprefix('num ')} {_cell(value)}" for name, value in _flat(counts))


def _cell(value: Any) -> str:
    """Text cleaned, counts with thousands separators, other numbers with four significant digits, null as a dash."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
    return clean(str(value), CELL_CHARACTERS)


def is_number(cell: str) -> bool:
    """True for a formatted number (to align it right)."""
    return cell == "-" or cell.lstrip("-").replace(",", "").replace(".", "").replace("e-", "").isdecimal()


def clean(text: str, characters: int) -> str:
    """One line of at most so many characters, without control and direction marks that could fool a terminal."""
    line = " ".join(text[: 20 * characters].split())
    line = "".join(sign if sign.isprintable() or sign in _JOINERS else "\N{REPLACEMENT CHARACTER}" for sign in line)
    return line if len(line) <= characters and len(text) <= 20 * characters else line[: characters - 1] + "…"
