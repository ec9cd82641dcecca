"""What a report consists of: pages of blocks.

Whoever collects makes blocks, whoever renders shows them; neither knows the other. All text here is raw: it is escaped
where it becomes HTML. A figure carries its numbers, so that the table behind it can always be shown.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Cell = str | int | float | bool | None
Numbers = tuple[float | None, ...]


@dataclass(frozen=True)
class Note:
    """A paragraph. `missing` says what is not there and what would make it; `caution` what not to conclude."""

    text: str
    kind: Literal["plain", "missing", "caution"] = "plain"


@dataclass(frozen=True)
class Facts:
    """Key figures as cards: (label, value, explanation or "")."""

    items: tuple[tuple[str, Cell, str], ...]


@dataclass(frozen=True)
class Table:
    """Rows of cells. `brief`: it is in the plain summary too."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""
    brief: bool = False


Verdict = Literal["passes", "caution", "fails", "unknown"]
VerdictCell = tuple[Verdict, str, str]  # verdict, its value in a few signs, the sentence behind it


@dataclass(frozen=True)
class Verdicts:
    """Answers to questions by criterion (or whatever the columns are): a row per question, a cell per column.

    A cell that is None was not asked. `brief`: the matrix is in the plain summary too.
    """

    title: str
    questions: tuple[str, ...]
    columns: tuple[str, ...]
    cells: tuple[tuple[VerdictCell | None, ...], ...]
    note: str = ""
    brief: bool = False


@dataclass(frozen=True)
class Bars:
    """Horizontal bars, one group per label, one bar per series; `stacked`: the series of a label add up."""

    title: str
    labels: tuple[str, ...]
    series: Mapping[str, Numbers]
    unit: str = ""
    stacked: bool = False
    note: str = ""


@dataclass(frozen=True)
class Intervals:
    """Estimates with intervals as dots and whiskers: a row per (label, series), and a line at `reference`."""

    title: str
    rows: tuple[tuple[str, str, float | None, float | None, float | None], ...]  # label, series, value, low, high
    unit: str = ""
    reference: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Histogram:
    """Shares per bin by series, over common edges [n + 1]."""

    title: str
    edges: tuple[float, ...]
    series: Mapping[str, Numbers]
    unit: str = ""
    note: str = ""


@dataclass(frozen=True)
class Lines:
    """Curves: series -> (x, y), as many of the one as of the other."""

    title: str
    series: Mapping[str, tuple[Numbers, Numbers]]
    x_label: str
    y_label: str
    log_x: bool = False
    log_y: bool = False
    diagonal: bool = False  # a line y = x to compare with
    note: str = ""


@dataclass(frozen=True)
class Heatmap:
    """Values by row and column; colours diverge around `center` where there is one, else go from low to high."""

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[Numbers, ...]
    center: float | None = None
    unit: str = ""
    note: str = ""


Figure = Bars | Intervals | Histogram | Lines | Heatmap


@dataclass(frozen=True)
class ShownDocument:
    """A document of the explorer.

    Attributes:
        id: its id.
        domain: its domain, "" where it has none.
        topic: number of its topic in `DocumentsExplorer.topics`; None: none was found for it.
        tokens: its length.
        ratings: by criterion, in the explorer's order; None: unrated.
        percentiles: of the ratings among all rated documents, 0 to 100, or None.
        text: as much of the text as is shown; "" in a report without texts.
        is_cut: the text goes on.
        window_tokens: tokens of each window.
        windows: ratings of the windows by criterion, in the explorer's order.
        selected: numbers of the selections, in the explorer's order, that took it.
    """

    id: str
    domain: str
    topic: int | None
    tokens: int
    ratings: Numbers
    percentiles: Numbers
    text: str
    is_cut: bool
    window_tokens: tuple[int, ...]
    windows: tuple[Numbers, ...]
    selected: tuple[int, ...]


@dataclass(frozen=True)
class DocumentsExplorer:
    """Documents to filter, sort, search and read. `num_all`: of how many they are a sample, stated in `sample_note`.

    `means` and `stds`: of the ratings of all rated documents, by criterion. Windows are coloured by how far they are
    from that mean; without them, from the mean of the documents shown.
    """

    criteria: tuple[str, ...]
    topics: tuple[str, ...]
    selections: tuple[str, ...]
    documents: tuple[ShownDocument, ...]
    num_all: int
    sample_note: str = ""
    means: Numbers = ()
    stds: Numbers = ()


@dataclass(frozen=True)
class ShownPair:
    """A judged pair of the explorer, on one criterion by one judge.

    `p_forward` is the judge's p(second is better) where the first text was shown first, `p_backward` where the second
    was; `p_rater` the rater's. None: not asked, not answered, not rated. `held_out`: the rater was not trained on it.
    """

    criterion: str
    judge: str
    first_id: str
    second_id: str
    first_domain: str
    second_domain: str
    first_text: str
    second_text: str
    p_forward: float | None
    p_backward: float | None
    p_rater: float | None
    held_out: bool | None = None


@dataclass(frozen=True)
class PairsExplorer:
    """Judged pairs to filter and read. `num_all`: of how many they are a sample, stated in `sample_note`."""

    pairs: tuple[ShownPair, ...]
    num_all: int
    sample_note: str = ""


Block = Note | Facts | Table | Verdicts | Figure | DocumentsExplorer | PairsExplorer


@dataclass(frozen=True)
class Page:
    """One page of the report: `slug` is its place in the address, `lead` one sentence on what it answers."""

    slug: str
    title: str
    lead: str
    blocks: tuple[Block, ...] = field(default=())


@dataclass(frozen=True)
class Report:
    """A whole report: `subtitle` is one plain line under the title (what was run, when, with which version)."""

    title: str
    subtitle: str
    pages: tuple[Page, ...]
