"""Judged pairs to look at: both texts, what the judge said in each order, what the rater says."""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from qurating_jax.method import gumbel
from qurating_jax.reporting.artifacts import Artifact, Notes, read_table
from qurating_jax.reporting.blocks import Page, PairsExplorer, ShownPair
from qurating_jax.reporting.evidence import Evidence, Settings
from qurating_jax.reporting.values import number, text, words

if TYPE_CHECKING:
    import pyarrow as pa

TEXT_CHARACTERS = 6000
_STREAM = "report pairs"
_VERDICTS = ("group", "purpose", "repeat", "criterion", "judge", "first_id", "second_id", "first_slot", "second_slot",
             "first_domain", "second_domain", "p_second")  # fmt: skip


def page(evidence: Evidence, notes: Notes) -> Page:
    """The explorer, of the analysis' pairs or of a sample of the judgments."""
    settings = evidence.settings
    explorers = list(_analysed(evidence)) or list(_judged(evidence.of("judge run"), settings, notes))
    if not settings.with_texts:
        explorers = [replace(of, pairs=tuple(map(_without_texts, of.pairs))) for of in explorers]
    lead = "Read some pairs: would you have said the same as the judge, and does the rater?"
    return Page("pairs", "Pairs", lead, tuple(explorers))


def _without_texts(pair: ShownPair) -> ShownPair:
    return replace(pair, first_id="", second_id="", first_text="", second_text="")


def _analysed(evidence: Evidence) -> Iterator[PairsExplorer]:
    rows = evidence.analysis.rows("pairs", "criterion", "first_text", "second_text", "p_forward", "p_backward")
    settings = evidence.settings
    drawn = [rows[place] for place in _order([_key(row) for row in rows], settings.seed)]
    held_out = [row for row in drawn if row.get("held_out") is True]
    others = [row for row in drawn if row.get("held_out") is not True]
    contested = [row for row in others if _is_contested(row)]
    settled = [row for row in others if not _is_contested(row)]
    room = max(settings.max_pairs - len(held_out), 0)
    told = max(room - len(settled), room // 2)  # half of the room, and what the others leave
    shown = [*held_out, *contested[:told], *settled[: room - len(contested[:told])]][: settings.max_pairs]
    if shown:
        pairs = tuple(map(_pair, shown))
        counts = [sum(row in group for row in map(id, shown)) for group in (
            set(map(id, held_out)), set(map(id, contested)), set(map(id, settled))
        )]  # fmt: skip
        note = (
            f"One criterion each: {counts[0]:,} of the "
            f"{len(held_out):,} on which the rater was not trained; {counts[1]:,} of the {len(contested):,} others on "
            f"which the judge changed its mind with the order or the rater disagrees; {counts[2]:,} of the remaining "
            f"{len(settled):,}. Drawn by a hash, so shares among the shown say nothing of all pairs."
        )
        yield PairsExplorer(pairs, len(rows), note)


def _is_contested(row: dict[str, Any]) -> bool:
    """Whether the judge's winner changes with the order, or the rater prefers the other text."""
    forward, backward, ours = (number(row.get(name)) for name in ("p_forward", "p_backward", "p_rater"))
    if forward is not None and backward is not None and (forward - 0.5) * (backward - 0.5) < 0:
        return True
    known = [p for p in (forward, backward) if p is not None]
    return bool(ours is not None and known and (ours - 0.5) * (sum(known) / len(known) - 0.5) < 0)


def _pair(row: dict[str, Any]) -> ShownPair:
    held_out = row.get("held_out")
    return ShownPair(
        criterion=words(text(row["criterion"])),
        judge=text(row.get("judge")),
        first_id=text(row.get("first_id")),
        second_id=text(row.get("second_id")),
        first_domain=text(row.get("first_domain")),
        second_domain=text(row.get("second_domain")),
        first_text=_cut(text(row["first_text"])),
        second_text=_cut(text(row["second_text"])),
        p_forward=number(row["p_forward"]),
        p_backward=number(row["p_backward"]),
        p_rater=number(row.get("p_rater")),
        held_out=held_out if isinstance(held_out, bool) else None,
    )


def _cut(body: str) -> str:
    return body if len(body) <= TEXT_CHARACTERS else f"{body[: TEXT_CHARACTERS - 1]}…"


def _judged(judged: list[Artifact], settings: Settings, notes: Notes) -> Iterator[PairsExplorer]:
    """A sample of the groups that were judged, with all criteria and judges of each."""
    for artifact in judged:
        verdicts = read_table(artifact, "verdicts.parquet", _VERDICTS, notes)
        judgments = read_table(artifact, "judgments.parquet", ("texts", "ids"), notes)
        if verdicts is None or judgments is None or not verdicts.num_rows:
            continue
        groups, num_pairs = _drawn_groups(verdicts, settings)
        rows = _orders(verdicts, groups)
        texts = _texts(judgments, {name for row in rows for name in (row["first_id"], row["second_id"])})
        pairs = tuple(
            _pair(row | {"first_text": texts.get(row["first_id"], ""), "second_text": texts.get(row["second_id"], "")})
            for row in rows[: settings.max_pairs]
        )
        if pairs:
            note = (
                f"{len(pairs):,} of the {num_pairs:,} judged pairs of {artifact.name}, one criterion each, whole "
                "groups drawn by a hash of seed and group."
            )
            yield PairsExplorer(pairs, num_pairs, note)


def _drawn_groups(verdicts: "pa.Table", settings: Settings) -> tuple[list[int], int]:
    """Groups in the order of their hashes, enough to show, and how many pairs there are in all."""
    import pyarrow.compute as pc

    main = _main(verdicts)
    keys = main.group_by(["group", "criterion", "judge"]).aggregate([])
    groups = sorted(pc.unique(main["group"]).to_pylist())
    order = _order([str(group) for group in groups], settings.seed)
    most = -(-settings.max_pairs * len(groups) // max(keys.num_rows, 1))
    slots = pc.count_distinct(pc.binary_join_element_wise(*(
        main[name].cast("string")
        for name in ("group", "criterion", "judge")
    ), *(pc.cast(of(main["first_slot"], main["second_slot"]), "string")
         for of in (pc.min_element_wise, pc.max_element_wise)), ",")).as_py()  # fmt: skip
    return [groups[place] for place in order[:most]], int(slots)


def _main(verdicts: "pa.Table") -> "pa.Table":
    import pyarrow.compute as pc

    return verdicts.filter(pc.and_(pc.equal(verdicts["purpose"], "main"), pc.equal(verdicts["repeat"], 0)))


def _orders(verdicts: "pa.Table", groups: list[int]) -> list[dict[str, Any]]:
    """A row per pair, criterion and judge, with p(second is better) of both orders; groups as given."""
    import pyarrow as pa
    import pyarrow.compute as pc

    chosen = _main(verdicts)
    chosen = chosen.filter(pc.is_in(chosen["group"], value_set=pa.array(groups, chosen["group"].type)))
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in chosen.select(_VERDICTS).to_pylist():
        is_forward = row["first_slot"] <= row["second_slot"]
        slots = (row["first_slot"], row["second_slot"])
        key = (row["group"], min(slots), max(slots), row["criterion"], row["judge"])
        one, other = ("first", "second") if is_forward else ("second", "first")
        pair = found.setdefault(
            key,
            {
                "criterion": row["criterion"],
                "judge": row["judge"],
                **{f"first_{name}": row[f"{one}_{name}"] for name in ("id", "domain")},
                **{f"second_{name}": row[f"{other}_{name}"] for name in ("id", "domain")},
                "p_forward": None,
                "p_backward": None,
            },
        )
        p = number(row["p_second"])
        pair["p_forward" if is_forward else "p_backward"] = p if is_forward or p is None else 1.0 - p
    places = {group: place for place, group in enumerate(groups)}
    return [found[key] for key in sorted(found, key=lambda key: (places[key[0]], *map(str, key[1:])))]


def _texts(judgments: "pa.Table", wanted: set[str]) -> dict[str, str]:
    """The texts of some documents, as the judge saw them."""
    import pyarrow as pa

    texts: dict[str, str] = {}
    if not all(pa.types.is_list(judgments[name].type) for name in ("ids", "texts")):
        return texts
    for batch in judgments.select(["ids", "texts"]).to_batches(max_chunksize=4096):
        for names, bodies in zip(batch["ids"].to_pylist(), batch["texts"].to_pylist(), strict=True):
            for name, body in zip(names or (), bodies or (), strict=False):
                if name in wanted:
                    texts.setdefault(name, text(body))
    return texts


def _key(row: dict[str, Any]) -> str:
    return "\n".join(text(row.get(name)) for name in ("criterion", "judge", "first_id", "second_id"))


def _order(names: list[str], seed: int) -> list[int]:
    """Places in the order of a draw that the names decide."""
    if not names:
        return []
    keys = gumbel.uniform_bits(gumbel.hash_ids(names), gumbel.noise_stream(seed, _STREAM)).tolist()
    return sorted(range(len(names)), key=lambda place: (keys[place], place))
