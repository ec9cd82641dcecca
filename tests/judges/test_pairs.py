import itertools
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qurating_jax.judges import pairs

BALANCED = "abcd"


def documents(n, domains="a"):
    """n documents whose domains go round in `domains`."""
    return {f"doc{i}": domains[i % len(domains)] for i in range(n)}


def unordered(groups):
    return [frozenset(pair) for group in groups for pair in itertools.combinations(group, 2)]


def degrees(groups):
    return Counter(itertools.chain(*groups))


def components(groups):
    """Connected parts by flooding, an independent count."""
    neighbours = {}
    for group in groups:
        for name in group:
            neighbours.setdefault(name, set()).update(group)
    num_parts = 0
    while neighbours:
        num_parts += 1
        front = {next(iter(neighbours))}
        while front:
            front = set().union(*(neighbours.pop(name) for name in front)) & neighbours.keys()
    return num_parts


@settings(deadline=None, max_examples=150)
@given(
    st.integers(0, 40),
    st.sampled_from(["adjacent", "random", "within_domain", "across_domain"]),
    st.integers(2, 4),
    st.integers(1, 6),
    st.sampled_from(["a", "ab", "aab", "aaaab", "abcdefg"]),
    st.integers(0, 5),
)
def test_what_holds_for_every_design(n, kind, size, degree, pattern, seed):
    domains = documents(n, pattern)
    degree = 1 if kind == "adjacent" else degree
    found = pairs.design(domains, kind=kind, group_size=size, degree=degree, seed=seed)
    assert all(len(group) == len(set(group)) == size for group in found.groups)
    assert len(set(unordered(found.groups))) == len(unordered(found.groups))
    assert max(degrees(found.groups).values(), default=0) <= degree
    assert found.num_documents == len(degrees(found.groups))
    assert found.num_left_out == n - found.num_documents
    assert found.num_components == components(found.groups)
    for group in found.groups:
        if kind == "within_domain":
            assert len({domains[name] for name in group}) == 1
        if kind == "across_domain":
            assert len({domains[name] for name in group}) == size


@settings(deadline=None, max_examples=80)
@given(st.integers(2, 60), st.integers(1, 12), st.integers(0, 3))
def test_random_pairs_give_every_document_its_degree_and_are_connected(n, degree, seed):
    found = pairs.design(documents(n), kind="random", degree=degree, seed=seed)
    degree = min(degree, n - 1)
    counts = degrees(found.groups)
    lacking = [name for name in documents(n) if counts[name] != degree]
    assert len(lacking) == (degree * n) % 2
    assert all(counts[name] == degree - 1 for name in lacking)
    if degree > 1:
        assert components(found.groups) == found.num_components == 1


def test_adjacent_follows_the_input():
    domains = documents(7)
    assert pairs.design(domains, kind="adjacent", group_size=3).groups == [
        ("doc0", "doc1", "doc2"), ("doc3", "doc4", "doc5"),
    ]  # fmt: skip
    backwards = pairs.design(dict(reversed(domains.items())), kind="adjacent")
    assert backwards.groups == [("doc6", "doc5"), ("doc4", "doc3"), ("doc2", "doc1")]
    assert (backwards.num_left_out, backwards.num_components) == (1, 3)
    with pytest.raises(ValueError, match="use kind random"):
        pairs.design(domains, kind="adjacent", degree=2)


@pytest.mark.parametrize("size", [2, 3])
def test_degree_one_takes_every_document_once(size):
    groups = pairs.design(documents(100), kind="random", group_size=size).groups
    assert max(degrees(groups).values()) == 1
    assert len(groups) == 100 // size


@pytest.mark.parametrize(("size", "degree"), [(3, 2), (3, 4), (4, 3)])
def test_groups_of_more_are_connected_and_miss_few(size, degree):
    found = pairs.design(documents(500), kind="random", group_size=size, degree=degree)
    counts = degrees(found.groups)
    assert len(counts) == 500
    assert sum(degree - counts[name] for name in counts) < 2 * size
    assert min(counts.values()) >= degree - 1
    assert found.num_components == 1


def test_within_domains_each_domain_is_a_part():
    found = pairs.design(documents(400, BALANCED), kind="within_domain", degree=2)
    assert set(degrees(found.groups).values()) == {2}
    assert found.num_components == 4
    # The domain of one document has no pair; that of two has one.
    small = pairs.design(documents(20) | {"x": "b", "y": "c", "z": "c"}, kind="within_domain", degree=3)
    assert small.num_left_out == 1
    assert frozenset("yz") in unordered(small.groups)


@pytest.mark.parametrize("domains", ["ab", "aabc", "aabbc", "abcdefgh", "aaabbc"])
@pytest.mark.parametrize("n", [120, 121, 1000])
def test_across_domains_no_document_is_left_that_could_have_a_partner(domains, n):
    documents_of = documents(n, domains)
    largest = max(Counter(documents_of.values()).values())
    groups = pairs.design(documents_of, kind="across_domain").groups
    assert len(groups) == min(n // 2, n - largest)


def test_across_domains_what_more_than_half_has_is_left_out():
    found = pairs.design(documents(100, "aaab"), kind="across_domain")
    assert (len(found.groups), found.num_left_out) == (25, 50)
    assert pairs.design(documents(9), kind="across_domain").groups == []
    assert pairs.design({}, kind="across_domain").num_components == 0


@pytest.mark.parametrize("domains", ["ab", "aabc", "aabbc", "abcdefgh"])
@pytest.mark.parametrize("degree", [2, 3, 4])
def test_across_domains_degrees_are_met_and_hang_together(domains, degree):
    found = pairs.design(documents(400, domains), kind="across_domain", degree=degree)
    missing = sum(degree - count for count in degrees(found.groups).values())
    assert found.num_documents == 400
    assert missing <= 2 * degree  # the ends of a chain
    assert found.num_components == 1


def test_all_pairs_of_a_small_set_are_found():
    assert len(set(unordered(pairs.design(documents(12), kind="random", num_groups=66).groups))) == 66
    assert len(set(unordered(pairs.design(documents(12, "abc"), kind="across_domain", num_groups=48).groups))) == 48
    assert len(set(unordered(pairs.design(documents(12, "abc"), kind="within_domain", num_groups=18).groups))) == 18


@pytest.mark.parametrize("kind", ["adjacent", "random", "within_domain", "across_domain"])
@pytest.mark.parametrize("wanted", [1, 17, 40])
def test_a_number_of_groups_is_a_subset_of_the_smallest_degree(kind, wanted):
    domains = documents(100, BALANCED)
    found = pairs.design(domains, kind=kind, num_groups=wanted, seed=2)
    everything = pairs.design(domains, kind=kind, seed=2).groups
    assert len(found.groups) == wanted
    assert [group for group in everything if group in set(found.groups)] == found.groups


def test_more_than_one_round_takes_further_degrees():
    found = pairs.design(documents(100), kind="random", num_groups=140).groups
    assert len(set(unordered(found))) == 140
    assert max(degrees(found).values()) == 3


def test_too_many_are_refused_with_the_largest_number():
    with pytest.raises(ValueError, match=r"67 groups of 2 .* 12 documents give at most 66 "):
        pairs.design(documents(12), kind="random", num_groups=67)
    with pytest.raises(ValueError, match=r"give at most 48 .*ask for fewer or give more documents"):
        pairs.design(documents(12, "abc"), kind="across_domain", num_groups=49)
    with pytest.raises(ValueError, match="give at most 6 "):
        pairs.design(documents(12), kind="adjacent", num_groups=7)
    with pytest.raises(ValueError, match="ask for fewer"):  # seven triples of seven documents are a projective plane
        pairs.design(documents(7), kind="random", num_groups=7, group_size=3, seed=1)
    with pytest.raises(ValueError, match="at most 0"):
        pairs.design({"a": "x", "b": "y"}, kind="within_domain", num_groups=1)
    with pytest.raises(ValueError, match="at most 0"):
        pairs.design({}, kind="random", num_groups=1)


@pytest.mark.parametrize("bad", [{"group_size": 1}, {"degree": 0}, {"num_groups": -1}])
def test_bad_arguments_are_refused(bad):
    with pytest.raises(ValueError, match="expected"):
        pairs.design(documents(12), kind="random", **bad)


@pytest.mark.parametrize("kind", ["random", "within_domain", "across_domain"])
@pytest.mark.parametrize("options", [{}, {"degree": 3}, {"group_size": 3}, {"num_groups": 120}])
def test_independent_of_input_order_and_dependent_on_the_seed(kind, options):
    domains = documents(201, "abbcc")
    backwards = dict(reversed(domains.items()))
    one = pairs.design(domains, kind=kind, seed=1, **options).groups
    assert one == pairs.design(backwards, kind=kind, seed=1, **options).groups
    assert set(unordered(one)) != set(unordered(pairs.design(domains, kind=kind, seed=2, **options).groups))


# ---- stability


@pytest.mark.parametrize(
    ("kind", "domains", "options", "mean", "largest"),
    [
        # A plain cut of the sorted ids into pairs would change half of them, 250 on average.
        ("random", BALANCED, {}, 5, 12),
        ("random", BALANCED, {"degree": 2}, 1.01, 1),
        ("random", BALANCED, {"degree": 3}, 6, 12),
        ("random", BALANCED, {"degree": 4}, 3, 6),
        ("random", BALANCED, {"group_size": 3}, 5, 12),
        ("within_domain", BALANCED, {}, 5, 12),
        ("within_domain", BALANCED, {"degree": 2}, 1.01, 1),
        ("across_domain", "ab", {}, 15, 35),
        ("across_domain", BALANCED, {}, 15, 35),
        ("across_domain", "aabc", {}, 20, 50),
        ("across_domain", BALANCED, {"degree": 2}, 40, 80),
        ("random", BALANCED, {"num_groups": 300}, 5, 12),
    ],
)
def test_one_more_document_changes_few_groups(kind, domains, options, mean, largest):
    before = set(map(frozenset, pairs.design(documents(1000, domains), kind=kind, **options).groups))
    changed = []
    for extra in range(24):
        more = documents(1000, domains) | {f"new{extra}": domains[extra % len(domains)]}
        after = set(map(frozenset, pairs.design(more, kind=kind, **options).groups))
        changed.append(len(before - after))
        assert abs(len(after) - len(before)) <= 2 * options.get("degree", 1)
    assert sum(changed) / 24 < mean
    assert max(changed) <= largest


@pytest.mark.parametrize("kind", ["adjacent", "random", "within_domain", "across_domain"])
@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("degree", [1, 2, 3])
def test_kept_groups_stay_and_new_documents_get_theirs(kind, size, degree):
    degree = 1 if kind == "adjacent" else degree
    domains, more = documents(90, BALANCED), documents(130, BALANCED)
    options = {"kind": kind, "group_size": size, "degree": degree}
    keep = pairs.design(domains, **options).groups
    found = pairs.design(more, keep=keep, **options)
    assert found.groups[: len(keep)] == keep
    assert len(set(unordered(found.groups))) == len(unordered(found.groups))
    before, counts = degrees(keep), degrees(found.groups)
    if degree == 1:
        assert max(counts.values()) == 1
    assert min(counts[name] for name in more if name not in domains) >= degree - 1
    for group in found.groups[len(keep) :]:
        assert any(before[name] < degree for name in group)
    if kind == "random" and size == 2 and degree > 1:
        assert found.num_components == 1
    # With the same documents there is nothing to add but for those that the first run could not place.
    lacking = sum(degree - before[name] for name in domains)
    assert len(pairs.design(domains, keep=keep, **options).groups) - len(keep) <= lacking


def test_a_number_of_groups_counts_the_kept_ones():
    keep = pairs.design(documents(40), kind="random").groups
    found = pairs.design(documents(60), kind="random", num_groups=25, keep=keep).groups
    assert found[:20] == keep
    assert len(found) == 25
    assert max(degrees(found).values()) == 1
    assert pairs.design(documents(60), kind="random", num_groups=5, keep=keep).groups == keep
    with pytest.raises(ValueError, match="ask for fewer"):
        pairs.design(documents(4), kind="random", num_groups=7, keep=[("doc0", "doc1")])


def test_kept_groups_that_no_longer_fit_are_named():
    with pytest.raises(ValueError, match="document gone, which is no longer there"):
        pairs.design(documents(4), kind="random", keep=[("doc0", "doc1"), ("doc2", "gone"), ("lost", "doc3")])
    with pytest.raises(ValueError, match="3 documents, not 2"):
        pairs.design(documents(4), kind="random", keep=[("doc0", "doc1", "doc2")])


# ---- distribution


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_partners_are_uniform(degree):
    # Over seeds, each of the 9 others is as often the partner of doc0: chi-squared with 8 degrees of freedom.
    partners = Counter()
    for seed in range(900):
        for group in pairs.design(documents(10), kind="random", degree=degree, seed=seed).groups:
            if "doc0" in group:
                partners.update(name for name in group if name != "doc0")
    counts = [partners[f"doc{i}"] for i in range(1, 10)]
    assert sum(counts) == 900 * degree
    assert sum((count - 100 * degree) ** 2 / (100 * degree) for count in counts) < 26.1  # p = 0.001


def test_partners_across_domains_are_uniform_by_symmetry():
    partners = Counter()
    for seed in range(600):
        for group in pairs.design(documents(12, "aabc"), kind="across_domain", seed=seed).groups:
            if "doc0" in group:
                partners.update(name for name in group if name != "doc0")
    assert set(partners) == {f"doc{i}" for i in range(12) if i % 4 in (2, 3)}
    assert sum((count - 100) ** 2 / 100 for count in partners.values()) < 20.5  # 5 degrees of freedom, p = 0.001


@pytest.mark.parametrize("hash_seed", ["0", "1"])
def test_the_same_in_every_process(hash_seed):
    program = (
        "from qurating_jax.judges import pairs\n"
        "docs = {f'doc{i}': 'abc'[i % 3] for i in {*range(60)}}\n"
        "for kind in ('random', 'within_domain', 'across_domain'):\n"
        "    print(pairs.design(docs, kind=kind, degree=3, seed=3).groups)\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONHASHSEED": hash_seed}, capture_output=True, text=True, check=True
    )
    expected = [
        str(pairs.design(documents(60, "abc"), kind=kind, degree=3, seed=3).groups)
        for kind in ("random", "within_domain", "across_domain")
    ]
    assert found.stdout.splitlines() == expected
