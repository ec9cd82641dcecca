"""Small outputs of stages, hand-written, to report on."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from qurating_jax.reporting import blocks
from qurating_jax.reporting.artifacts import find_artifacts
from qurating_jax.reporting.collecting import collect
from qurating_jax.reporting.evidence import Evidence
from qurating_jax.runtime import manifest, storage

HOSTILE = (
    "</td></script><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7*7 }} \x1b[2J\u202egnp\x00 'quoted\" & done"
)
LM = {"perplexity": {"value": 12.345, "low": 12.0}, "bits_per_byte": {"value": 1.25, "low": 1.125, "high": 1.5}}
CRITERIA = ("educational_value", "writing_style")


def artifact(root, name, stage, counts, config=None, files=None):
    """A finished output with some JSON files."""
    run = manifest.begin(str(root / name), stage=stage, config=config or {}, identity={}, inputs={}, overwrite=False)
    for file, value in (files or {}).items():
        storage.write_json(run.path(file), value)
    manifest.finish(run, counts)
    return root / name


def annotated(root, name="annotate", **config):
    """Six documents in two parts: hostile, empty, long, unrated and not-a-number ones."""
    directory = artifact(root, name, "annotate", {"documents": 6, "criteria": list(CRITERIA)}, config=config)
    for part, (texts, ratings) in enumerate(
        [(["middling", HOSTILE, ""], [0.5, 9.25, None]), (["dull " * 200, "fine", "odd"], [-3.5, 1.0, float("nan")])]
    ):
        table = pa.table(
            {
                "id": [f"d{part}{row}" for row in range(3)],
                "text": texts,
                "educational_value_average": pa.array(ratings, pa.float32()),
                "writing_style_average": pa.array([part, None, None], pa.float32()),
                "clicks_average": ["not", "a", "rating"],
            }
        )
        pq.write_table(table, directory / f"part-{part:05d}.parquet", row_group_size=2)
    (directory / "rejected.parquet").write_bytes(b"not a part")
    return directory


def rated(root, num_documents, *, seed=0, row_group_size=100, num_parts=3):
    """Documents with windows and domains, and what is in them as columns: a random corpus of any size."""
    rng = np.random.default_rng(seed)
    columns = {
        "id": [f"doc-{number}" for number in range(num_documents)],
        "domain": [f"domain {number % 3}" for number in range(num_documents)],
        "text": [f"text of {number}\nsecond line" for number in range(num_documents)],
        "length": pa.array(rng.integers(1, 900, num_documents), pa.int32()),
        "chunk_lengths": pa.array([[512, 7]] * num_documents, pa.list_(pa.int32())),
    }
    for criterion in CRITERIA:
        windows = rng.normal(size=(num_documents, 2))
        columns[f"{criterion}_chunks"] = pa.array(windows.tolist(), pa.list_(pa.float32()))
        columns[f"{criterion}_average"] = pa.array(windows.mean(axis=1), pa.float32())
    table = pa.table(columns)
    directory = artifact(root, "annotate", "annotate", {"documents": num_documents, "criteria": list(CRITERIA)})
    size = -(-num_documents // num_parts)
    for part in range(num_parts):
        rows = table.slice(part * size, size)
        pq.write_table(rows, directory / f"part-{part:05d}.parquet", row_group_size=row_group_size)
    return table


def run(root):
    """One output or more of every stage."""
    artifact(
        root,
        "judge",
        "judge run",
        {"num_pairs": 1500, "parsed": {"num_valid": 7}, "criteria": {"educational_value": {"num_ties": 3}}},
        {"judge": {"kind": "offline"}},
    )
    accuracy = {"accuracy": 0.8125, "num_pairs": 640, "accuracy_margin_0.5": 0.9375, "num_pairs_margin_0.5": 64}
    validation = {"educational_value": accuracy, "writing_style": {"accuracy": None, "num_pairs": 0}}
    artifact(root, "train-rater", "train-rater", {"num_steps": 10}, files={"eval.json": {"validation": validation}})
    pairs = {"pair_accuracy": {"length": {"educational_value": {"accuracy": 0.5625, "num_pairs": 12}}}}
    artifact(root, "eval-rater", "eval-rater", {}, files={"eval.json": pairs})
    annotated(root)
    for number, name in enumerate(("educational_value", "uniform")):
        domains = [{"domain": "<b>web</b>", "target_tokens": 99.5, "selected_tokens": 100}]
        selection = {
            "settings": {"strategy": name},
            "selected_tokens": 123456,
            "num_rejected": 0,
            "threshold_key": None,
            "domains": domains,
        }
        artifact(root, f"select_{name}", "select", {"num_selected": 5}, files={"selection.json": selection})
        results = {"domains": {"web": LM | {"perplexity": {"value": 20.5 + number}}, "code": LM}, "all": LM}
        if name == "uniform":
            del results["domains"]["code"]
        evaluation = {"models": {"lm": results}, "context_tokens": 8}
        artifact(root / "models", f"eval_{name}", "eval-lm", {}, files={"eval.json": evaluation})


def evidence(root, **given):
    """What the outputs under a folder are as evidence."""
    artifacts, unfinished = find_artifacts(str(root))
    return Evidence(directory=str(root), artifacts=artifacts, unfinished=unfinished, **given)


def pages(root, **given):
    """The pages of a report by slug."""
    return {page.slug: page for page in collect(evidence(root, **given), "a title").pages}


def of_kind(page, kind):
    """The blocks of one kind of a page by title."""
    return {block.title: block for block in page.blocks if isinstance(block, kind)}


def tables(page):
    """The tables of a page by title."""
    return of_kind(page, blocks.Table)


def notes(page, kind):
    """The texts of a page's notes of a kind."""
    return [block.text for block in page.blocks if isinstance(block, blocks.Note) and block.kind == kind]


def rows_of(table):
    """The rows of a table as mappings."""
    return [dict(zip(table.headings, row, strict=True)) for row in table.rows]
