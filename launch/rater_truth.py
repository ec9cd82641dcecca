"""Files of human and LLM judgments -> what `rater_truth.sh` trains and tests on: JSON lines, split by a seeded hash."""

import argparse
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import zstandard

HELD_OUT_DEBATES = 3

Row = dict[str, Any]


def main() -> None:
    """Writes the files of one task."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=["clear", "ukp", "alpaca"])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for name, rows in {"clear": clear, "ukp": ukp, "alpaca": alpaca}[arguments.task](arguments.data, arguments.seed):
        write(arguments.out / f"{name}.jsonl", rows)


def clear(data: Path, seed: int) -> Iterator[tuple[str, list[Row]]]:
    """Excerpts with an easiness; a fifth held out by a hash of the id."""
    rows = [
        {"id": str(row["id"]), "text": row["text"], "easiness": row["BT_easiness"]}
        for row in read(data / "clear" / "clear_part.jsonl.zst")
    ]
    return sides(rows, lambda row: share(seed, row["id"]) < 0.2)


def ukp(data: Path, seed: int) -> Iterator[tuple[str, list[Row]]]:
    """Pairs of arguments with votes; the debates that come first by their hash are held out, both stances of each."""
    folder = data / "ukpconvarg1"
    votes = [
        {"text_a": row["a1"], "text_b": row["a2"], "votes_a": row["n_a1"], "votes_b": row["n_a2"],
         "votes_tie": row["n_equal"], "domain": debate(row["topic"]), "criterion": "convincingness"}
        for row in read(folder / "votes_full.jsonl.zst")
    ]  # fmt: skip
    strict = [
        {
            "text_a": row["a1"],
            "text_b": row["a2"],
            "p_b": float(row["label"] == "a2"),
            "domain": debate(row["topic"]),
            "criterion": "convincingness",
        }
        for row in read(folder / "pairs_strict.jsonl.zst")
    ]
    debates = sorted({row["domain"] for row in votes}, key=lambda name: share(seed, name))
    held_out = set(debates[:HELD_OUT_DEBATES])
    print(f"{len(debates)} debates, held out: {', '.join(sorted(held_out))}")
    yield from sides(votes, lambda row: row["domain"] in held_out)
    yield "heldout_strict", [row for row in strict if row["domain"] in held_out]


def alpaca(data: Path, seed: int) -> Iterator[tuple[str, list[Row]]]:
    """Pairs of answers; the files list the same model first throughout, so the sides are swapped by a hash."""
    rows = []
    for row in read(data / "alpaca_eval_soft" / "prefs.jsonl.zst"):
        pair = {"text_a": row["a"], "text_b": row["b"], "p_b": row["p_b_better"], "domain": row["dataset"]}
        if share(seed, row["a"] + row["b"]) < 0.5:
            pair |= {"text_a": row["b"], "text_b": row["a"], "p_b": 1 - row["p_b_better"]}
        rows.append(pair | {"criterion": "preference", "instruction": row["instruction"]})
    return sides(rows, lambda row: share(seed, row["instruction"]) < 0.2)


def sides(rows: list[Row], is_held_out: Callable[[Row], bool]) -> Iterator[tuple[str, list[Row]]]:
    """All rows, and the two sides of the split; what shares a text with the training side is not held out."""
    train = [row for row in rows if not is_held_out(row)]
    known = {fold(text) for row in train for text in texts(row)}
    yield "all", rows
    yield "train", train
    yield "heldout", [row for row in rows if is_held_out(row) and not known & {fold(text) for text in texts(row)}]


def texts(row: Row) -> list[str]:
    """The texts of a row."""
    return [row[name] for name in ("text", "text_a", "text_b") if name in row]


def fold(text: str) -> str:
    """A text without what case and white space say."""
    return " ".join(text.lower().split())


def debate(topic: str) -> str:
    """`christianity-or-atheism-_atheism` -> `christianity-or-atheism-`: a topic is one stance of a debate."""
    return topic.rsplit("_", 1)[0]


def share(seed: int, text: str) -> float:
    """A number in [0, 1) that seed and text decide."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{text}".encode()).digest()[:8], "big") / 2**64


def read(path: Path) -> Iterator[Row]:
    """The rows of a file of compressed JSON lines."""
    with path.open("rb") as stream:
        for line in io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(stream), encoding="utf-8"):
            yield json.loads(line)


def write(path: Path, rows: Iterable[Row]) -> None:
    """Writes JSON lines and says how many."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = list(rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(f"{path.name}: {len(rows)} rows")


if __name__ == "__main__":
    main()
