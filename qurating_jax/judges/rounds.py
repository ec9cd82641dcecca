"""Disjoint groups of ids that are neighbours in the order of a hash."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence

Group = tuple[str, ...]
Keyed = tuple[int, str]  # a hash and the id it belongs to

_KEY_BITS = 64
_ODD = 0x9E3779B97F4A7C15  # spreads the bits of a product over 64


def form_groups(keyed: Sequence[Keyed], size: int, colours: Mapping[str, str] | None) -> tuple[list[Group], list[str]]:
    """Disjoint groups in the order of their least keys, and the ids in none.

    Ids are placed in a binary tree by their hash; groups form at the lowest node that holds k ungrouped ids that may
    meet, so one more id changes only groups on its own path.

    Args:
        keyed: sorted hashes with ids.
        size: k.
        colours: ids of one colour do not meet; None: all may. Then fewer than k ids stay out, else ids of fewer than k
            colours.
    """
    groups: list[tuple[Keyed, ...]] = []

    def gather(low: int, high: int, prefix: int, bit: int) -> list[Keyed]:
        """Groups the ids in [low, high), which share the key bits above `bit`; returns those left over."""
        if high - low < size or bit == 0:  # no bits left: equal keys, so rare that nothing finer is needed
            left = list(keyed[low:high])
        else:
            pivot = prefix | (1 << (bit - 1))
            middle = bisect_left(keyed, (pivot, ""), low, high)
            left = gather(low, middle, prefix, bit - 1) + gather(middle, high, pivot, bit - 1)
        if colours is not None and len(left) >= size:
            return _form(left, size, colours, groups)
        while len(left) >= size:
            groups.append(tuple(left[:size]))
            left = left[size:]
        return left

    left = gather(0, len(keyed), 0, _KEY_BITS)
    return [tuple(name for _, name in group) for group in sorted(groups)], [name for _, name in left]


def _form(left: Sequence[Keyed], size: int, colours: Mapping[str, str], groups: list[tuple[Keyed, ...]]) -> list[Keyed]:
    """Takes groups of `size` colours, the most frequent first, out of `left`; returns the rest.

    An id of the rarest of these colours chooses its partners by a hash of both: taken by rank, one id more would give
    all later ones other partners.
    """
    by_colour: dict[str, list[Keyed]] = {}
    for entry in left:
        by_colour.setdefault(colours[entry[1]], []).append(entry)
    if len(by_colour) < size:
        return list(left)
    while len(by_colour) >= size:
        chosen = sorted(by_colour, key=lambda colour: -len(by_colour[colour]))[:size]
        anchor = by_colour[chosen[-1]][0][0]
        group = []
        for colour in chosen:
            entries = by_colour[colour]
            entry = min(entries, key=lambda entry: (entry[0] ^ anchor) * _ODD % 2**64)
            entries.remove(entry)
            group.append(entry)
            if not entries:
                del by_colour[colour]
        groups.append(tuple(sorted(group)))
    return sorted(entry for entries in by_colour.values() for entry in entries)
