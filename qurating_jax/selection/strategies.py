"""What each strategy orders documents by, and the decision that follows from a budget."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from qurating_jax.method import budget as budgets
from qurating_jax.runtime.errors import UserError
from qurating_jax.selection import orders
from qurating_jax.selection.drawing.cuts import Measure
from qurating_jax.selection.drawing.decision import Decision
from qurating_jax.selection.drawing.members import Drawer, Member, cut_at, tally
from qurating_jax.selection.keys import passes, statistics
from qurating_jax.selection.keys.files import KeyFiles
from qurating_jax.selection.keys.table import Order
from qurating_jax.selection.options import BudgetOptions, StrategyOptions
from qurating_jax.selection.orders import Ratings

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Preference:
    """What a strategy orders documents by.

    Attributes:
        keys: the table, with the scores of all orders.
        members: the orders and their shares of the budget; one for most strategies.
        ratings: the rating that the selection is reported by; None: none.
        labels: what scores are, for people, where their names in the table do not say it.
    """

    keys: KeyFiles
    members: tuple[Member, ...]
    ratings: Ratings | None
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def scores(self) -> tuple[str, ...]:
        """The scores that the members read."""
        return tuple(dict.fromkeys(member.order.score for member in self.members if member.order.score))


@dataclass(frozen=True, eq=False)
class Budget:
    """What is to be selected.

    Attributes:
        measure: what is counted.
        amount: how much of it.
        targets: int64 [D], of every domain, summing to the amount; None: what the rating says, without a budget.
        available: int64 [D], what could be selected.
    """

    measure: Measure
    amount: int
    targets: NDArray[np.int64] | None
    available: NDArray[np.int64]


def prefer(options: StrategyOptions, keys: KeyFiles, seed: int, memory_bytes: int) -> Preference:
    """The orders of every strategy but `dsir` and `mix`, whose members come from elsewhere.

    Raises:
        ValueError: ratings that order nothing.
    """
    strategy = options.strategy
    if strategy == "perplexity":
        # The column says which way is up: likely text has a high log-likelihood and a low perplexity.
        column = options.perplexity or options.log_likelihood
        ratings = Ratings(keys, column, column, "none")
        inverse = (options.keep == "lowest") == bool(options.perplexity)
        return _alone(ratings.keys, ratings.order(temperature=None, inverse=inverse, stream=None), ratings)
    known = [name for name in (*options.weights, options.reference) if name]
    if strategy == "uniform":
        stream = orders.noise_stream(seed, options.noise_group, strategy="uniform")
        ratings_shown = None
        if known and set(known) <= set(keys.score_names):
            try:
                ratings_shown = _combined(options, keys, memory_bytes)
            except ValueError as error:  # it only reports them
                log.warning("the ratings are not reported: %s", error)
        return _alone(ratings_shown.keys if ratings_shown else keys, Order("", stream=stream), ratings_shown)
    ratings = _combined(options, keys, memory_bytes)
    if strategy != "sample":
        return _alone(ratings.keys, ratings.order(temperature=None, inverse=options.inverse, stream=None), ratings)
    stream = orders.noise_stream(
        seed, options.noise_group, strategy=strategy, label=ratings.label, inverse=options.inverse
    )
    order = ratings.order(temperature=options.temperature, inverse=options.inverse, stream=stream)
    return _alone(ratings.keys, order, ratings)


def prefer_mix(
    options: StrategyOptions, keys: KeyFiles, joined: Mapping[str, str], seed: int, memory_bytes: int
) -> Preference:
    """The members of a mix: what `sample` would draw by each rating, or selections that were made before.

    The noise is that of `sample`, so that the mix is the union of these samples' beginnings.

    Args:
        options: whose `members` these are.
        keys: the table.
        joined: for members that are selections the score that holds their keys, null where they did not select.
        seed: of the noise.
        memory_bytes: of the distinct ratings of a column.

    Raises:
        ValueError: ratings that order nothing.
    """
    members, labels = [], dict[str, str]()
    for name in options.members:
        if name in joined:
            order = Order(joined[name])
        else:
            stream = orders.noise_stream(
                seed, options.noise_group, strategy="sample", label=name, inverse=options.inverse
            )
            ratings = orders.combine(
                keys, {name: 1.0}, reference="", normalize=options.normalize, memory_bytes=memory_bytes
            )
            keys, labels[ratings.score] = ratings.keys, name
            order = ratings.order(temperature=options.temperature, inverse=options.inverse, stream=stream)
        members.append(Member(name, order, Fraction(1, len(options.members))))
    return Preference(keys, tuple(members), None, labels)


def prefer_dsir(
    options: StrategyOptions, keys: KeyFiles, sizes: Mapping[str, tuple[str, int]], seed: int
) -> Preference:
    """The members of a resampling: one for every target, with shares by the targets' sizes.

    Args:
        options: of the strategy.
        keys: the table, with the scores.
        sizes: by target the score that holds its log weights, and its number of n-grams.
        seed: of the noise.
    """
    total = sum(size for _, size in sizes.values())
    members = tuple(
        Member(
            name,
            Order(score, 1.0, 0.0, orders.noise_stream(seed, options.noise_group, strategy="dsir", label=name)),
            Fraction(size, total),
        )
        for name, (score, size) in sizes.items()
    )
    labels = {member.order.score: f"log weight of {member.name}" for member in members}
    first = members[0].order.score
    return Preference(keys, members, Ratings(keys, first, labels[first], "none"), labels)


def measure_budget(options: BudgetOptions, preference: Preference) -> Budget:
    """The budget in tokens or documents, and every domain's part of it.

    Raises:
        UserError: nothing can be selected, or less than the budget.
        ValueError: domain targets or caps that cannot be kept.
    """
    measure: Measure = "documents" if options.budget_documents is not None else "tokens"
    available = count_available(preference, measure)
    total = int(available.sum())
    if not total:
        raise UserError("no document can be selected: none has tokens and what the strategy orders by")
    if options.budget_fraction is not None:
        # The decimal that it prints as: 0.1 of 10 tokens is 1, not a little more.
        amount = max(1, round(Fraction(str(options.budget_fraction)) * total))
    else:
        amount = options.budget_documents or options.budget_tokens or total
    amount = math.ceil(Fraction(amount, options.num_epochs))
    if amount > total:
        if not options.allow_all:
            raise UserError(
                f"the budget of {amount:,} {measure} is more than the {total:,} that can be selected; give a smaller "
                "one, --num_epochs N to read the selection N times, or --allow_all to select all"
            )
        log.warning(
            "the budget of %s %s is above the %s there are: all are selected", f"{amount:,}", measure, f"{total:,}"
        )
        amount = total
    targets = budgets.domain_targets(
        available,
        amount,
        names=preference.keys.domain_names,
        shares=options.shares,
        caps=options.caps,
        allow_short=options.allow_all,
    )
    return Budget(measure, amount, targets, available)


def decide(options: StrategyOptions, preference: Preference, budget: Budget, seed: int, memory_bytes: int) -> Decision:
    """The decision of strategies that fill a budget."""
    drawer = Drawer(preference.keys, budget.measure, budget.available, memory_bytes, passes.num_processes())
    targets = [int(target) for target in budget.targets] if budget.targets is not None else [budget.amount]
    if options.strategy == "mix":
        return drawer.mix(preference.members, targets, seed)
    if len(preference.members) > 1:
        return drawer.in_turn(preference.members, targets)
    return drawer.one(preference.members[0].order, targets)


def decide_by_rating(options: StrategyOptions, preference: Preference, memory_bytes: int) -> tuple[Decision, Budget]:
    """The decision of strategies that end where a rating does: `threshold`, `percentile`, `fraction`."""
    (member,) = preference.members
    order, keys = member.order, preference.keys
    available = count_available(preference, "documents")
    total = int(available.sum())
    if not total:
        raise UserError("no document can be selected: none has tokens and a rating")
    if options.fraction is not None:
        amount = max(1, round(Fraction(str(options.fraction)) * total))
        targets = budgets.domain_targets(available, amount, names=keys.domain_names)
        budget = Budget("documents", amount, targets, available)
        return decide(options, preference, budget, 0, memory_bytes), budget
    if options.threshold is not None:
        # In the rating's own precision: what was written as 3.1 is at 3.1, also where it is the float32 next to it.
        with np.errstate(over="ignore"):
            rating = float(keys.block(0).scores[order.score].dtype.type(options.threshold))
    else:
        assert options.percentile is not None
        share = options.percentile / 100
        share = 1 - share if options.inverse else share
        rating = float(statistics.quantiles(keys, order.score, [share], passes.num_processes())[0])
    decision = cut_at(order, rating * order.scale + order.shift, len(keys.domain_names))
    taken = int(tally(keys, decision, "documents", passes.num_processes()).sum())
    if not taken:
        bound = rating if options.threshold is None else options.threshold
        raise UserError(f"no rating in `{preference.ratings.label if preference.ratings else ''}` reaches {bound:g}")
    return decision, Budget("documents", taken, None, available)


def count_available(preference: Preference, measure: Measure) -> NDArray[np.int64]:
    """What can be selected of every domain: int64 [D]; documents that any member's order holds."""
    held = statistics.totals(preference.keys, preference.scores, passes.num_processes())
    return held.tokens if measure == "tokens" else held.documents


def _combined(options: StrategyOptions, keys: KeyFiles, memory_bytes: int) -> Ratings:
    return orders.combine(
        keys,
        options.weights,
        reference=options.reference,
        normalize=options.normalize,
        memory_bytes=memory_bytes,
    )


def _alone(keys: KeyFiles, order: Order, ratings: Ratings | None) -> Preference:
    labels = {ratings.score: ratings.label} if ratings else {}
    return Preference(keys, (Member("", order, Fraction(1)),), ratings, labels)


def needed_columns(options: StrategyOptions, order_by: str, selections: Sequence[str]) -> list[str]:
    """The rating columns that a selection reads, without the members that are `selections`."""
    wanted: list[str] = []
    if options.strategy == "perplexity":
        wanted.append(options.perplexity or options.log_likelihood)
    elif options.strategy == "mix":
        wanted += [name for name in options.members if name not in selections]
    elif options.strategy != "dsir":
        wanted += [*options.weights, *([options.reference] if options.reference else [])]
    return list(dict.fromkeys([*wanted, *([order_by] if order_by else [])]))
