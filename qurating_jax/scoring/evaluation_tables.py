"""An evaluation as files and tables: Parquet tables for a report, nested values for JSON, tables for a terminal."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from qurating_jax.method.bradley_terry import sigmoid
from qurating_jax.runtime.terminal import NOTHING, add_row, interval, number, table
from qurating_jax.scoring.accuracy import MARGINS
from qurating_jax.scoring.evaluation import LABELS, RATER, Curve, Evaluation, Measure, Model, OrderCheck
from qurating_jax.scoring.judged_pairs import JudgedPairs

if TYPE_CHECKING:
    from rich.table import Table

_ACCURACIES = tuple(f"accuracy_{margin:g}" for margin in MARGINS)
_SCORES = ("log_loss", "ece", "auc")
_CEILINGS = tuple(f"noise_ceiling_{margin:g}" for margin in MARGINS)
_WHERE = [("source", pa.string()), ("domain", pa.string()), ("criterion", pa.string()), ("model", pa.string())]
_MEASURES = pa.schema(
    [*_WHERE, ("metric", pa.string()), ("value", pa.float64()), ("low", pa.float64()), ("high", pa.float64()),
     ("n", pa.int64())]
)  # fmt: skip

Slice = dict[str, dict[str, dict[str, Any]]]  # model -> metric -> value, low, high, n


def measures_table(measures: Iterable[Measure]) -> pa.Table:
    """A row per measure; source and domain are null where all of them count."""
    return pa.Table.from_pylist([vars(measure) for measure in measures], schema=_MEASURES)


def curves_table(curves: Sequence[Curve], names: Sequence[str]) -> pa.Table:
    """A row per bin or point, with its number in its curve; `names` are the columns of a curve."""
    sizes = [len(curve.columns[names[0]]) for curve in curves]
    columns: dict[str, pa.Array] = {
        name: pa.array(np.repeat([getattr(curve, name) for curve in curves], sizes).tolist(), kind)
        for name, kind in _WHERE
    }
    columns["number"] = pa.array([place for size in sizes for place in range(size)], pa.int64())
    for name in names:
        values = np.concatenate([curve.columns[name] for curve in curves] or [np.zeros(0)])
        columns[name] = pa.array(values, pa.int64() if name == "n" else pa.float64())
    return pa.table(columns)


def pairs_table(pairs: JudgedPairs, rater: Model, baselines: Sequence[Model]) -> pa.Table:
    """A row per pair and criterion with a label, with the differences second less first of every model."""
    row, column = np.nonzero(~np.isnan(pairs.labels))
    characters = pairs.characters()[row]
    ids = np.array(pairs.ids, dtype=object).reshape(-1, 2)[row]

    def named(values: Sequence[str]) -> pa.Array:
        return pa.array([values[i] for i in row.tolist()], pa.string())

    difference = rater.differences[row, column]
    columns = {
        "source": named(pairs.sources),
        "domain": named(pairs.domains),
        "criterion": pa.array([pairs.criteria[c] for c in column], pa.string()),
        "group": pa.array(pairs.group[row]),
        "first_id": pa.array(ids[:, 0].tolist(), pa.string()),
        "second_id": pa.array(ids[:, 1].tolist(), pa.string()),
        "first_characters": pa.array(characters[:, 0]),
        "second_characters": pa.array(characters[:, 1]),
        "label": pa.array(pairs.labels[row, column]),
        "num_votes": pa.array(pairs.num_votes[row, column]),
        "difference": pa.array(difference),
        "probability": pa.array(sigmoid(difference)),
    }
    for model in baselines:
        columns[f"{model.name}_difference"] = pa.array(model.differences[row, column])
    return pa.table(columns)


@dataclass
class Findings:
    """What an evaluation leaves.

    Attributes:
        result: the document for JSON.
        files: tables to write as Parquet, by name.
        shown: tables for a terminal.
        lines: what is said below them.
    """

    result: dict[str, Any] = field(default_factory=dict)
    files: dict[str, pa.Table] = field(default_factory=dict)
    shown: "list[Table]" = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    _measures: list[Measure] = field(default_factory=list)

    def add_pairs(
        self,
        pairs: JudgedPairs,
        rater: Model,
        baselines: Sequence[Model],
        notes: Mapping[str, str],
        found: Evaluation,
        check: OrderCheck,
    ) -> None:
        """Adds the evaluation on judged pairs: `judgments`, `pair_accuracy`, `baselines` and `swapped`."""
        nested = document(found)
        accuracy = pair_accuracy(nested)
        self.result |= {"judgments": nested, "pair_accuracy": accuracy}
        self.result |= {"baselines": dict(notes), "swapped": asdict(check)}
        self.files["pairs"] = pairs_table(pairs, rater, baselines)
        self.files["reliability"] = curves_table(found.reliability, ("predicted", "observed", "n"))
        self.files["roc"] = curves_table(found.roc, ("false_positive_rate", "true_positive_rate", "threshold"))
        self._add(found.measures)
        self.shown += tables(nested)
        self.lines += [f"{name}: {note}" for name, note in notes.items()]
        self.lines.append(
            f"scored again, second text first: {check.num_changed_winners} of {check.num_pairs} winners changed; "
            f"differences are {check.mean_difference:.3g} on average, the largest change of one is "
            f"{check.max_swap_deviation:.1e}"
        )
        if found.num_slices_left_out:
            self.lines.append(f"{found.num_slices_left_out} smaller sources and domains have no figures of their own")

    def add_correlations(self, measures: list[Measure]) -> None:
        """Adds rank correlations: `rank_correlation`."""
        self.result["rank_correlation"] = correlations(measures)
        self._add(measures)
        self.shown.append(correlations_table(self.result["rank_correlation"]))

    def _add(self, measures: list[Measure]) -> None:
        self._measures += measures
        self.files["metrics"] = measures_table(self._measures)


def document(found: Evaluation) -> dict[str, Any]:
    """criterion -> `all`, `sources` and `domains` by name -> model -> metric -> value, low, high, n."""
    nested: dict[str, Any] = {}
    for measure in found.measures:
        of = nested.setdefault(measure.criterion, {"all": {}, "sources": {}, "domains": {}})
        if measure.source is not None:
            of = of["sources"].setdefault(measure.source, {})
        elif measure.domain is not None:
            of = of["domains"].setdefault(measure.domain, {})
        else:
            of = of["all"]
        of.setdefault(measure.model, {})[measure.metric] = _numbers(measure)
    return nested


def correlations(measures: Iterable[Measure]) -> dict[str, Any]:
    """Model -> criterion -> metric -> value, low, high, n."""
    nested: dict[str, Any] = {}
    for measure in measures:
        of = nested.setdefault(measure.model, {}).setdefault(measure.criterion, {})
        of[measure.metric] = _numbers(measure)
    return nested


def pair_accuracy(nested: Mapping[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """Model -> criterion -> what `accuracy.accuracy_by_criterion` says, from a `document`."""
    result: dict[str, dict[str, dict[str, Any]]] = {}
    for criterion, of in nested.items():
        for model, metrics in _models(of["all"]):
            row = result.setdefault(model, {})[criterion] = {"num_ties": int(of["all"][LABELS]["ties"]["value"])}
            for margin, name in zip(MARGINS, _ACCURACIES, strict=True):
                suffix = f"_margin_{margin}" if margin else ""
                row |= {f"accuracy{suffix}": metrics[name]["value"], f"num_pairs{suffix}": metrics[name]["n"]}
    return result


def tables(nested: Mapping[str, Any]) -> "Iterator[Table]":
    """The tables of a `document`, by criterion: models side by side, then the rater on every part, if any."""
    headings = ("accuracy", *(f"margin {margin:g}" for margin in MARGINS[1:]))
    scores = ("log loss", "ECE", "AUC")
    for criterion, of in nested.items():
        everything, parts = of["all"], (*of["sources"].items(), *of["domains"].items())
        labels = everything[LABELS]
        baselines = [name for name in everything if name not in (RATER, LABELS)]
        title = f"{criterion}: {labels['pairs']['value']:.0f} pairs, {labels['ties']['value']:.0f} of them ties"
        made = table(title, "model", *headings, "near length", *scores)
        for model in (RATER, *baselines):
            metrics = everything[model]
            accuracies = (interval(metrics[name]) for name in (*_ACCURACIES, "accuracy_near_length"))
            add_row(made, model, *accuracies, *_scores(metrics))
        best = {name: number(metric["value"]) for name, metric in labels.items()}
        add_row(made, "(at best)", *(best[name] for name in _CEILINGS), NOTHING, best["entropy"], NOTHING, NOTHING)
        yield made
        if not parts:
            continue
        title = f"{criterion}: the {RATER} by source and domain, and the accuracy of the others"
        made = table(title, "part", "pairs", "ties", *headings, *scores, *baselines)
        for name, part in parts:
            counts = (f"{part[LABELS][count]['value']:.0f}" for count in ("pairs", "ties"))
            accuracy, *confident = (part[RATER][metric] for metric in _ACCURACIES)
            numbers = (number(one["value"]) for one in (*confident, *(part[RATER][key] for key in _SCORES)))
            beside = (number(part[model][_ACCURACIES[0]]["value"]) for model in baselines)
            add_row(made, name, *counts, interval(accuracy), *numbers, *beside)
        yield made


def correlations_table(nested: Mapping[str, Any]) -> "Table":
    """The table of what `correlations` says."""
    made = table("Rank correlation with the true score", "criterion", "documents", "model", "Spearman", "Kendall")
    for model, criteria in nested.items():
        for criterion, of in criteria.items():
            add_row(made, criterion, of["spearman"]["n"], model, interval(of["spearman"]), interval(of["kendall"]))
    return made


def _scores(metrics: Mapping[str, Any]) -> Iterator[str]:
    return (number(metrics[name]["value"]) if name in metrics else NOTHING for name in _SCORES)


def _models(of: Slice) -> Iterator[tuple[str, dict[str, dict[str, Any]]]]:
    return ((model, metrics) for model, metrics in of.items() if model != LABELS)


def _numbers(measure: Measure) -> dict[str, Any]:
    return {"value": measure.value, "low": measure.low, "high": measure.high, "n": measure.n}
