"""`qurating select`: domains by column, nested, as products, missing; targets and caps."""

import pytest
import select_runs as runs

from qurating_jax.runtime.errors import UserError


@pytest.fixture(scope="module")
def table():
    return runs.corpus()


@pytest.fixture(scope="module")
def source(table, tmp_path_factory):
    return runs.write(tmp_path_factory.mktemp("source"), table, 3)


def _tokens_by_domain(found):
    amounts = {}
    for row in found.ids.to_pylist():
        amounts[row["domain"]] = amounts.get(row["domain"], 0) + row["tokens"]
    return amounts


def test_nested_domains_products_and_missing_ones(tmp_path, table, source):
    nested = runs.select(tmp_path / "nested", source, domain_field=("meta.source.name",))
    assert [row["domain"] for row in nested.explained["domains"]] == ["s0", "s1", "s2"]
    assert nested.explained["num_missing_domains"] == 0
    product = runs.select(tmp_path / "product", source, domain_field=("meta.source.number", "domain"))
    names = {f"{number % 2} × {name}" for number, name in enumerate(runs.domains(table))}
    assert [row["domain"] for row in product.explained["domains"]] == sorted(names)
    assert "0 × (missing)" in names
    assert product.explained["num_missing_domains"] == table["domain"].null_count > 0
    ids = {name: row for row, name in enumerate(table["id"].to_pylist())}
    for row in product.ids.to_pylist():
        number = ids[row["id"]]
        assert row["domain"] == f"{number % 2} × {runs.domains(table)[number]}"
    for found in (nested, product):
        assert 0 <= found.explained["overshoot_tokens"] < 300
        for row in found.explained["domains"]:
            assert row["selected_tokens"] == _tokens_by_domain(found).get(row["domain"], 0)
            assert abs(row["selected_tokens"] - row["target_tokens"]) < 300


def test_one_pool_has_no_domains(tmp_path, source):
    found = runs.select(tmp_path / "out", source)
    assert found.explained["domains"] == []
    assert found.ids["domain"].null_count == len(found.ids)


def test_given_targets_and_caps(tmp_path, source):
    shares = ("domain-0=0.5", "(missing)=0.1", "*=0.4")
    options = {"domain_field": ("domain",), "budget_tokens": 9000}
    found = runs.select(tmp_path / "shares", source, domain_targets=shares, **options)
    rows = {row["domain"]: row for row in found.explained["domains"]}
    assert rows["domain-0"]["target_tokens"] == 4500
    assert rows["(missing)"]["target_tokens"] == 900
    others = {name: row for name, row in rows.items() if name not in ("domain-0", "(missing)")}
    held = sum(row["eligible_tokens"] for row in others.values())
    for row in others.values():
        assert row["target_tokens"] == pytest.approx(3600 * row["eligible_tokens"] / held, abs=1)
    for name, amount in _tokens_by_domain(found).items():
        assert abs(amount - rows[name]["target_tokens"]) < 300
    capped = runs.select(tmp_path / "caps", source, domain_caps=("domain-1=0.02", "*=0.2"), **options)
    rows = {row["domain"]: row for row in capped.explained["domains"]}
    assert rows["domain-1"]["target_tokens"] == 180
    assert sum(row["target_tokens"] for row in rows.values()) == 9000
    free = [row for name, row in rows.items() if name != "domain-1"]
    held = sum(row["eligible_tokens"] for row in free)
    for row in free:
        assert row["target_tokens"] == pytest.approx(8820 * row["eligible_tokens"] / held, abs=1)
        assert row["target_tokens"] <= 1800


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"domain_targets": ("domain-9=1",)}, "the domain `domain-9`, which no document has; did you mean `domain-"),
        ({"domain_targets": ("domain-1=0.3", "domain-2=0.3", "*=0.3")}, "shares sum to 0.9, not to 1"),
        ({"domain_targets": ("domain-1=1",), "budget_tokens": 20_000}, "domain `domain-1` has .* fewer than its share"),
        ({"domain_targets": ("domain-1=0.5", "*=0.5"), "domain_caps": ("domain-1=0.4",)}, "is above its cap 0.4"),
        ({"domain_caps": ("*=0.01",)}, "the caps leave room for 400 of the budget's 5,000 tokens"),
        ({"domain_caps": ("domain-1=1.5",)}, "the cap 1.5 of domain `domain-1` is not a number from 0 to 1"),
    ],
)
def test_domains_that_cannot_be(tmp_path, source, options, message):
    with pytest.raises(UserError, match=message):
        runs.select(tmp_path / "out", source, domain_field=("domain",), **options)


def test_a_short_domain_gives_all_where_allowed(tmp_path, table, source):
    options = {"domain_field": ("domain",), "domain_targets": ("domain-1=0.9", "*=0.1"), "budget_tokens": 20_000}
    found = runs.select(tmp_path / "out", source, allow_all=True, strategy="uniform", **options)
    rows = {row["domain"]: row for row in found.explained["domains"]}
    assert rows["domain-1"]["selected_tokens"] == rows["domain-1"]["eligible_tokens"]
    assert 20_000 <= found.counts["selected_tokens"] < 20_300
