"""One colour and shape per series all over a report: the same name looks the same in every figure."""

from collections.abc import Mapping, Sequence

from qurating_jax.reporting.bars import Slots
from qurating_jax.reporting.blocks import Bars, Figure, Heatmap, Histogram, Intervals, Lines


def series_of(figure: Figure) -> list[str]:
    """Names of the series of a figure, in its order; a heat map has none."""
    if isinstance(figure, (Bars, Histogram, Lines)):
        return list(figure.series)
    return list(dict.fromkeys(row[1] for row in figure.rows)) if isinstance(figure, Intervals) else []


def slots(figures: Sequence[Figure]) -> dict[str, int]:
    """Places in the order of colours by name of series, for all figures of a report.

    A name takes the first place that no name has which stands in a figure with it, so that series of one figure never
    share a look (up to forty of them) and a name keeps its own from figure to figure. Names of many figures choose
    first. Figures of one series give none.
    """
    together: dict[str, set[str]] = {}
    num_figures: dict[str, int] = {}
    for figure in figures:
        names = series_of(figure)
        if len(names) > 1:
            for name in names:
                together.setdefault(name, set()).update(names)
                num_figures[name] = num_figures.get(name, 0) + 1
    taken: dict[str, int] = {}
    for name in sorted(together, key=lambda name: -num_figures[name]):
        others = together[name]
        used = {taken[other] for other in others if other in taken}
        taken[name] = next(place for place in range(len(used) + 1) if place not in used)
    return taken


def places(figure: Figure, known: Mapping[str, int]) -> Slots:
    """Places by (series, label) of a figure, by (series, "") where it has no labels.

    Where there is one series and every label is a series of other figures, labels have the colours of those.
    """
    names = series_of(figure)
    if isinstance(figure, Intervals):
        labels = list(dict.fromkeys(row[0] for row in figure.rows))
    else:
        labels = list(figure.labels) if isinstance(figure, Bars) else [""]
    if isinstance(figure, Heatmap):
        return {}
    if len(names) == 1:
        are_series = all(label in known for label in labels)
        return {(names[0], label): known[label] if are_series else 0 for label in labels}
    return {(name, label): known[name] for name in names for label in labels}
