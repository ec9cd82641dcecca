"""Which columns of the input are ratings, labels, groups: decided from headers, before anything is read."""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from qurating_jax.analysis.corpus import Wanted
from qurating_jax.data import document_columns as columns
from qurating_jax.data.columnar import ColumnFile
from qurating_jax.data.document_columns import AVERAGE
from qurating_jax.data.documents import get_field
from qurating_jax.data.jsonl import JSONL_CODECS, JsonlFile, parse_or_reject
from qurating_jax.data.rejects import Rejects
from qurating_jax.runtime.errors import UserError

LOG_LIKELIHOOD = "log_likelihood"  # of a language model: nothing to select by here, but a covariate
_PUBLISHED = ("writing_style", "required_expertise", "facts_and_trivia", "educational_value")
_SAMPLE_ROWS = 1000  # of a JSON lines file
_SHOWN_NAMES = 400  # characters, in errors


@dataclass(frozen=True)
class Headers:
    """Columns of some files.

    Attributes:
        schemas: of the columnar files.
        rows: first rows of the JSON lines files.
    """

    schemas: tuple[pa.Schema, ...]
    rows: tuple[dict, ...]

    @property
    def names(self) -> list[str]:
        """All columns, in the order of their first appearance."""
        found = dict.fromkeys(name for schema in self.schemas for name in schema.names)
        return list(found | dict.fromkeys(name for row in self.rows for name in row))

    @property
    def numbers(self) -> list[str]:
        """The columns that hold single numbers."""
        return [name for name in self.names if self._is_number(name)]

    def has(self, field: str) -> bool:
        """True where some file has the column or dotted path."""
        return any(columns.has(schema, field) for schema in self.schemas) or any(
            get_field(row, field) is not None or field in row for row in self.rows
        )

    def _is_number(self, name: str) -> bool:
        kinds = [schema.field(name).type for schema in self.schemas if name in schema.names]
        values = [row[name] for row in self.rows if row.get(name) is not None]
        return (bool(kinds) or bool(values)) and (
            all(pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind) for kind in kinds)
            and all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
        )


def read_headers(files: Sequence[str]) -> Headers:
    """Headers of columnar files and the first rows of JSON lines files.

    Raises:
        UserError: a file is truncated or corrupt.
    """
    schemas: dict[bytes, pa.Schema] = {}
    rows: list[dict] = []
    for file in files:
        if file.endswith(tuple(JSONL_CODECS)):
            reader = JsonlFile(file)
            for number, line, too_long in reader.read(0, _SAMPLE_ROWS):
                rows.append(parse_or_reject(file, number, line, too_long, Rejects(None, "skip")) or {})
            reader.close()
            continue
        source = ColumnFile(file)
        source.close()
        schemas.setdefault(source.schema.serialize().to_pybytes(), source.schema)
    return Headers(tuple(schemas.values()), tuple(rows))


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the options name, see `qurating analyze --help`."""

    criteria: tuple[str, ...]
    labels: tuple[str, ...]
    groups: tuple[str, ...]
    domain_field: str
    tokens_field: str
    default_domain_field: str
    default_tokens_field: str


@dataclass(frozen=True)
class Plan:
    """What is read.

    Attributes:
        criteria: names without `_average`, the published four first, then by name.
        columns: criterion -> its column.
        labels: columns of external labels.
        likelihoods: columns of log-likelihoods, covariates of their own.
        documents: of the documents' columns.
        scores: of the columns that stand in files of scores.
        notes: what is missing and what that means.
    """

    criteria: tuple[str, ...]
    columns: dict[str, str]
    labels: tuple[str, ...]
    likelihoods: tuple[str, ...]
    documents: Wanted
    scores: Wanted
    notes: tuple[str, ...]


def plan(asked: Asked, documents: Headers, scores: Headers | None) -> Plan:
    """Decides what is read from where; ratings in files of scores come before those among the documents.

    Raises:
        UserError: no ratings, or a column that was named is not there.
    """
    both = [documents, *([scores] if scores else [])]
    numbers = dict.fromkeys(name for headers in both for name in headers.numbers)
    found = _criteria(asked.criteria, numbers, both)
    likelihoods = tuple(name for name in numbers if name.startswith(LOG_LIKELIHOOD) and name not in found.values())
    for option, names in (("labels", asked.labels), ("groups", asked.groups)):
        for name in names:
            if not documents.has(name):
                raise _missing(name, option, documents.names)
    notes = []
    domain, tokens, side_tokens = asked.domain_field, asked.tokens_field, ""
    if domain and not documents.has(domain):
        if domain != asked.default_domain_field:
            raise _missing(domain, "domain_field", documents.names)
        domain = ""
    if not domain:
        notes.append("No domain field: nothing is said by domain or within domains (--domain_field names one).")
    if tokens and not documents.has(tokens):
        side_tokens = tokens if scores and scores.has(tokens) else ""
        if not side_tokens and tokens != asked.default_tokens_field:
            raise _missing(tokens, "tokens_field", documents.names)
        tokens = ""
    if not (tokens or side_tokens):
        notes.append("No token counts: every document counts as one token (--tokens_field names the column).")
    rated = tuple(found.values())
    beside = tuple(name for name in (*rated, *likelihoods) if scores and name in scores.names)
    own = tuple(name for name in dict.fromkeys([*rated, *likelihoods, *asked.labels]) if name not in beside)
    return Plan(
        tuple(found),
        found,
        asked.labels,
        likelihoods,
        Wanted(numbers=own, groups=asked.groups, domain=domain, tokens=tokens),
        Wanted(numbers=beside, tokens=side_tokens),
        tuple(notes),
    )


def _criteria(asked: Sequence[str], numbers: dict[str, None], headers: Sequence[Headers]) -> dict[str, str]:
    """Criterion -> column."""
    names = list(dict.fromkeys(name for one in headers for name in one.names))
    if not asked:
        found = {
            name.removesuffix(AVERAGE): name
            for name in numbers
            if name.endswith(AVERAGE) and not name.startswith(LOG_LIKELIHOOD)
        }
        if not found:
            raise UserError(
                f"no ratings: no column of numbers ends with `{AVERAGE}` (columns: {', '.join(names)[:_SHOWN_NAMES]}); "
                "rate the documents with `qurating annotate`, or name columns with --criteria"
            )
        return {name: found[name] for name in sorted(found, key=_place)}
    found = {}
    for name in asked:
        column = name if any(one.has(name) for one in headers) else name.removesuffix(AVERAGE) + AVERAGE
        if not any(one.has(column) for one in headers):
            raise _missing(name, "criteria", names)
        found[name.removesuffix(AVERAGE)] = column
    return found


def _place(name: str) -> tuple[int, str]:
    return (_PUBLISHED.index(name) if name in _PUBLISHED else len(_PUBLISHED), name)


def _missing(name: str, option: str, names: Sequence[str]) -> UserError:
    return UserError(f"the documents have no column `{name}` (--{option}); columns: {', '.join(names)[:_SHOWN_NAMES]}")
