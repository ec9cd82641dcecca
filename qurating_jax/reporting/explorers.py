"""What the explorers of a report read: columns of documents and of pairs as JSON that markup cannot break out of.

What does not fit under the size cap is left out here: first the ends of long texts, then documents and pairs from the
end of their lists.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qurating_jax.reporting.blocks import DocumentsExplorer, Numbers, PairsExplorer, ShownDocument, ShownPair

Explorer = DocumentsExplorer | PairsExplorer
TEXT_CHARACTERS = (20_000, 10_000, 5_000, 3_000, 2_000, 1_000, 600, 300)  # of a text, where whole ones are too many
_IN_MARKUP = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&\u2028\u2029"}


@dataclass(frozen=True)
class Shown:
    """How much of the explorers a report shows: of every text so many characters (None: all), of the rows a share."""

    characters: int | None = None
    share: float = 1.0

    def rows(self, explorer: Explorer) -> int:
        """How many rows of an explorer are shown, from its first one on."""
        return math.floor(self.share * len(rows_of(explorer)))


def rows_of(explorer: Explorer) -> Sequence[ShownDocument | ShownPair]:
    """The documents or the pairs of an explorer."""
    return explorer.documents if isinstance(explorer, DocumentsExplorer) else explorer.pairs


def to_json(data: Any) -> str:
    """JSON for a data block of a page: no sign in it starts a tag, an entity or a line of a script."""
    return json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).translate(_IN_MARKUP)


def data_of(explorer: Explorer, shown: Shown, *, with_texts: bool) -> dict[str, Any]:
    """The columns that the page's script reads; neither ids nor texts are among them without `with_texts`."""
    if isinstance(explorer, DocumentsExplorer):
        return _documents(explorer, shown, with_texts)
    return _pairs(explorer, shown, with_texts)


def _documents(explorer: DocumentsExplorer, shown: Shown, with_texts: bool) -> dict[str, Any]:
    documents = explorer.documents[: shown.rows(explorer)]
    domains = sorted({document.domain for document in documents})
    numbers = {domain: index for index, domain in enumerate(domains)}
    criteria = range(len(explorer.criteria))
    data: dict[str, Any] = {
        "kind": "documents",
        "criteria": explorer.criteria,
        "topics": explorer.topics,
        "selections": explorer.selections,
        "domains": domains,
        "numAll": explorer.num_all,
        "length": len(documents),
        "domain": [numbers[document.domain] for document in documents],
        "topic": [document.topic for document in documents],
        "tokens": [document.tokens for document in documents],
        "ratings": [_column([document.ratings for document in documents], k, 5) for k in criteria],
        "percentiles": [_column([document.percentiles for document in documents], k, 4) for k in criteria],
        "windowTokens": [document.window_tokens for document in documents],
        "windows": [[_numbers(values, 4) for values in document.windows] for document in documents],
        "selected": [document.selected for document in documents],
        "means": _numbers(explorer.means, 5),
        "stds": _numbers(explorer.stds, 5),
    }
    if with_texts:
        data["id"] = [document.id for document in documents]
        data["text"] = [_cut(document.text, shown) for document in documents]
        data["isCut"] = [int(document.is_cut or _is_cut(document.text, shown)) for document in documents]
    return data


def _pairs(explorer: PairsExplorer, shown: Shown, with_texts: bool) -> dict[str, Any]:
    pairs = explorer.pairs[: shown.rows(explorer)]
    names = {
        "criteria": sorted({pair.criterion for pair in pairs}),
        "judges": sorted({pair.judge for pair in pairs}),
        "domains": sorted({domain for pair in pairs for domain in (pair.first_domain, pair.second_domain)}),
    }
    index = {kind: {name: i for i, name in enumerate(values)} for kind, values in names.items()}
    data: dict[str, Any] = {
        "kind": "pairs",
        **names,
        "numAll": explorer.num_all,
        "length": len(pairs),
        "criterion": [index["criteria"][pair.criterion] for pair in pairs],
        "judge": [index["judges"][pair.judge] for pair in pairs],
        "firstDomain": [index["domains"][pair.first_domain] for pair in pairs],
        "secondDomain": [index["domains"][pair.second_domain] for pair in pairs],
        "forward": _numbers([pair.p_forward for pair in pairs], 4),
        "backward": _numbers([pair.p_backward for pair in pairs], 4),
        "rater": _numbers([pair.p_rater for pair in pairs], 4),
        "heldOut": [pair.held_out for pair in pairs],
    }
    if with_texts:
        data["firstId"] = [pair.first_id for pair in pairs]
        data["secondId"] = [pair.second_id for pair in pairs]
        data["firstText"] = [_cut(pair.first_text, shown) for pair in pairs]
        data["secondText"] = [_cut(pair.second_text, shown) for pair in pairs]
        data["firstIsCut"] = [int(_is_cut(pair.first_text, shown)) for pair in pairs]
        data["secondIsCut"] = [int(_is_cut(pair.second_text, shown)) for pair in pairs]
    return data


def _column(rows: Sequence[Numbers], index: int, digits: int) -> list[float | None]:
    return _numbers([row[index] for row in rows], digits)


def _numbers(values: Sequence[float | None], digits: int) -> list[float | None]:
    return [None if value is None or not math.isfinite(value) else _short(value, digits) for value in values]


def _short(value: float, digits: int) -> float:
    rounded = float(f"{value:.{digits}g}")
    return int(rounded) if rounded == int(rounded) else rounded


def _cut(text: str, shown: Shown) -> str:
    return text[: shown.characters] if _is_cut(text, shown) else text


def _is_cut(text: str, shown: Shown) -> bool:
    return shown.characters is not None and len(text) > shown.characters


def is_any_cut(explorer: Explorer, shown: Shown) -> bool:
    """True where a text of the explorer is cut to make room."""
    rows = rows_of(explorer)[: shown.rows(explorer)]
    texts = ((row.text,) if isinstance(row, ShownDocument) else (row.first_text, row.second_text) for row in rows)
    return any(_is_cut(text, shown) for of in texts for text in of)


def fit(explorers: Sequence[Explorer], budget: int, *, with_texts: bool) -> tuple[Shown, list[str]]:
    """As much of the explorers as their JSON has room for in `budget` bytes, and that JSON, one text each.

    First the ends of texts go, in steps, then rows from the end, the same share of every explorer.
    """
    for characters in (None, *(TEXT_CHARACTERS if with_texts else ())):
        shown = Shown(characters)
        blocks = [to_json(data_of(explorer, shown, with_texts=with_texts)) for explorer in explorers]
        if _size(blocks) <= budget:
            return shown, blocks
    low, high = 0.0, 1.0
    smallest = Shown(TEXT_CHARACTERS[-1] if with_texts else None, 0.0)
    best = smallest, [to_json(data_of(explorer, smallest, with_texts=with_texts)) for explorer in explorers]
    for _ in range(14):
        shown = Shown(smallest.characters, (low + high) / 2)
        blocks = [to_json(data_of(explorer, shown, with_texts=with_texts)) for explorer in explorers]
        if _size(blocks) <= budget:
            best, low = (shown, blocks), shown.share
        else:
            high = shown.share
    return best


def _size(blocks: Sequence[str]) -> int:
    return sum(len(block.encode()) for block in blocks)
