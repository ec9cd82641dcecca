"""A report with every kind of block, of made-up numbers that look like real ones; and texts that try to break out."""

import random

from qurating_jax.reporting.blocks import (
    Bars,
    DocumentsExplorer,
    Facts,
    Heatmap,
    Histogram,
    Intervals,
    Lines,
    Note,
    Page,
    PairsExplorer,
    Report,
    ShownDocument,
    ShownPair,
    Table,
    Verdicts,
)

MODELS = (
    "educational_value_temperature_2",
    "educational_value_top_k",
    "inverse_educational_value_temperature_2",
    "uniform",
)
CRITERIA = ("educational_value", "facts_and_trivia", "required_expertise", "writing_style")
DOMAINS = ("arxiv", "books", "code", "forum", "news", "recipes", "reference", "stories", "web", "")
TOPICS = (
    "recipe, oil, salt, oven, minutes",
    "theorem, proof, lemma, let, bound",
    "court, law, judge, state, case",
    "game, team, season, player, win",
    "cell, protein, gene, expression, mice",
    "king, century, war, empire, castle",
    "install, error, file, version, python",
)
SELECTIONS = ("educational τ=1", "educational top", "uniform")
HOSTILE = (
    "</script><img src=x onerror=\"window.broken='img'\">",
    "<svg onload=\"window.broken='svg'\"></svg>",
    "abc \u202e txt.exe \u202c\u2066 x",
    "nul \x00 bell \x07 escape \x1b[31m",
    "lone \ud800 surrogate \udfff",
    "{{ 7 * 7 }} {% for x in y %} ${7*7}",
    "\"' onmouseover=\"window.broken='attribute'\" x='",
    "]]> --> <!-- <style>* { display: none }</style>",
    "line\u2028separator\u2029end &lt;b&gt; &amp;amp;",
    "مرحبا بالعالم hello שלום",
)
_WORDS = [
    "the",
    "of",
    "and",
    "a",
    "to",
    "in",
    "is",
    "was",
    "for",
    "on",
    "as",
    "with",
    "by",
    "at",
    "from",
    "it",
    "that",
    "this",
    "one",
    "had",
    "not",
    "are",
    "but",
    "which",
    "have",
    "been",
    "their",
    "were",
    "theorem",
    "season",
    "oven",
    "protein",
    "castle",
    "version",
    "court",
    "reader",
    "harbour",
    "winter",
    "question",
    "answer",
    "method",
    "measure",
    "light",
]


def documents(num: int, seed: int = 0, words: int = 120, texts: tuple[str, ...] = ()) -> tuple[ShownDocument, ...]:
    """Documents with ratings, percentiles and windows; the first ones have the given texts (as id and domain too)."""
    rng = random.Random(seed)
    made = []
    for i in range(num):
        ratings = [rng.gauss(0.3 * (i % 4), 1.2) for _ in CRITERIA]
        windows = rng.randint(1, 7)
        text = " ".join(rng.choices(_WORDS, k=rng.randint(words // 2, words))).capitalize() + "."
        given = texts[i] if i < len(texts) else None
        made.append(
            ShownDocument(
                id=given if given is not None else f"doc-{i:05d}-{rng.getrandbits(48):012x}",
                domain=given if given is not None else DOMAINS[i % len(DOMAINS)],
                topic=None if i % 11 == 10 else i % len(TOPICS),
                tokens=rng.randint(60, 3000),
                ratings=tuple(None if i % 97 == 96 else rating for rating in ratings),
                percentiles=tuple(None if i % 97 == 96 else rng.uniform(0, 100) for _ in ratings),
                text=given if given is not None else f"{text}\n\nSecond paragraph of document {i}.\n\tindented",
                is_cut=i % 5 == 0,
                window_tokens=tuple([512] * (windows - 1) + [rng.randint(20, 512)]),
                windows=tuple(tuple(rating + rng.gauss(0, 0.8) for _ in range(windows)) for rating in ratings),
                selected=tuple(k for k in range(len(SELECTIONS)) if (i + k) % 3 == 0 and rng.random() < 0.6),
            )
        )
    return tuple(made)


def pairs(num: int, seed: int = 1, texts: tuple[str, ...] = ()) -> tuple[ShownPair, ...]:
    """Judged pairs, some of which flip with the order, some of which the rater sees otherwise."""
    rng = random.Random(seed)
    made = []
    for i in range(num):
        forward, backward = rng.random(), rng.random()
        text = texts[i] if i < len(texts) else " ".join(rng.choices(_WORDS, k=90))
        made.append(
            ShownPair(
                criterion=CRITERIA[i % 4],
                judge=("claude", "offline")[i % 2] if i >= len(texts) else text,
                first_id=text if i < len(texts) else f"first-{i}",
                second_id=f"second-{i}",
                first_domain=DOMAINS[i % 9],
                second_domain=DOMAINS[(i * 7) % 9],
                first_text=text,
                second_text=" ".join(rng.choices(_WORDS, k=60)),
                p_forward=forward,
                p_backward=None if i % 13 == 12 else backward,
                p_rater=None if i % 17 == 16 else rng.random(),
                held_out=None if i % 19 == 18 else i % 3 == 0,
            )
        )
    return tuple(made)


def verdicts(word: str = "") -> Verdicts:
    """Three questions by criterion: every verdict, one that was not asked, and a gap."""
    said = ("passes", "caution", "fails", "unknown")
    questions = (f"Is it length in disguise?{word}", "Does its selection survive control for domain?", "Enough values?")
    cells = tuple(
        tuple(
            None
            if (i, j) == (2, 3)
            else (said[(i + j) % 4], f"0.{5 * i + j + 1}", f"Because of {i} and {j}: {word or 'R² of length alone'}.")
            for j in range(len(CRITERIA))
        )
        for i in range(len(questions))
    )
    return Verdicts("Verdicts", questions, CRITERIA, cells, "What the audit says.", brief=True)


def _figures() -> tuple[Page, ...]:
    rng = random.Random(2)
    edges = tuple(-4 + 0.4 * i for i in range(21))

    def bell(center: float) -> tuple[float, ...]:
        heights = [2.718 ** (-((edge + 0.2 - center) ** 2) / 2) for edge in edges[:-1]]
        return tuple(height / sum(heights) for height in heights)

    steps = tuple(float(25 * 2**i) for i in range(9))
    ratings = Page(
        "ratings",
        "Ratings",
        "How the ratings are distributed, by domain and criterion, and what they go along with.",
        (
            Histogram("Educational value", edges, {"all": bell(0)}, "normalised rating", "All 47,696 documents."),
            Histogram(
                "Educational value by domain",
                edges,
                {d or "none": bell(k / 3 - 1) for k, d in enumerate(DOMAINS[:7])},
                "rating",
            ),
            Heatmap(
                "Correlations between criteria",
                CRITERIA,
                CRITERIA,
                tuple(
                    tuple(
                        1.0 if i == j else None if (i, j) == (0, 3) else round(rng.uniform(-0.6, 0.8), 3)
                        for j in range(4)
                    )
                    for i in range(4)
                ),
                center=0.0,
                note="Spearman's rank correlation, averaged over domains.",
            ),
            Heatmap(
                "Mean rating by domain",
                DOMAINS[:9],
                CRITERIA,
                tuple(tuple(rng.uniform(0.1, 3) for _ in CRITERIA) for _ in range(9)),
            ),
            Intervals(
                "Length and rating",
                tuple((c, "", v, v - 0.03, v + 0.03) for c, v in zip(CRITERIA, (0.41, 0.22, -0.05, 0.12), strict=True)),
                "Spearman's ρ",
                reference=0.0,
            ),
            Note(
                "Ratings do not measure the social or literary value of a text, nor of the people who wrote it.",
                "caution",
            ),
        ),
    )
    selection = Page(
        "selection",
        "Selection",
        "What a selection takes, and what it leaves.",
        (
            Bars(
                "Tokens by domain, before and after",
                tuple(d or "none" for d in DOMAINS),
                {s: tuple(round(rng.uniform(1, 24), 2) for _ in DOMAINS) for s in ("before", "after")},
                "%",
            ),
            Bars(
                "Mix of the selections",
                SELECTIONS,
                {d or "none": tuple(rng.uniform(2, 20) for _ in SELECTIONS) for d in DOMAINS[:8]},
                "%",
                stacked=True,
            ),
            Bars(
                "Change of the mean rating",
                ("a rather long label that has to be cut because nothing is as wide as it " * 2, "short", "gap"),
                {"change": (0.8123, -0.41, None)},
                "standard deviations",
            ),
            Lines(
                "Effective sample size",
                {
                    name: (steps, tuple(1e5 / (1 + k + i) for i, _ in enumerate(steps)))
                    for k, name in enumerate(SELECTIONS)
                },
                "temperature",
                "documents",
                log_x=True,
                log_y=True,
            ),
        ),
    )
    models = Page(
        "models",
        "Models and tasks",
        "Whether a selection made a better model.",
        (
            Intervals(
                "Accuracy against uniform",
                tuple(
                    (task, model, v, v - 0.02, v + 0.02)
                    for task in ("ARC-easy", "SciQ", "LogiQA", "BoolQ", "HellaSwag")
                    for model in ("educational τ=1", "educational top")
                    for v in (rng.uniform(-0.02, 0.04),)
                ),
                "difference of accuracy",
                reference=0.0,
            ),
            Lines(
                "Training loss",
                {
                    name: (
                        tuple(float(10 * i) for i in range(120)),
                        tuple(
                            None if 40 <= i < 44 else 3 + 5 / (1 + i / 9) + rng.gauss(0, 0.04) + 0.1 * k
                            for i in range(120)
                        ),
                    )
                    for k, name in enumerate(("uniform, seed 0", "educational, seed 0", "educational, seed 1"))
                },
                "step",
                "loss (nats per token)",
            ),
            Lines(
                "Reliability of the rater",
                {"rater": ((0.05, 0.2, 0.4, 0.6, 0.8, 0.95), (0.08, 0.22, 0.37, 0.64, 0.77, 0.93))},
                "predicted p",
                "observed share",
                diagonal=True,
            ),
            Lines("Curves without values", {"empty": ((), ()), "null": ((1.0, 2.0), (None, None))}, "step", "loss"),
            Lines(
                "Perplexity of the models",
                {
                    name: (steps, tuple(900.0 / (1 + i) + 40 * k for i, _ in enumerate(steps)))
                    for k, name in enumerate(MODELS)
                },
                "step",
                "perplexity",
            ),
            Intervals(
                "Bits per byte less uniform",
                tuple(
                    (name, "difference", 0.01 * k, 0.01 * k - 0.02, 0.01 * k + 0.02)
                    for k, name in enumerate(MODELS[:3])
                ),
                "bits per byte",
                reference=0.0,
            ),
            Table(
                "Language models: held-out text",
                (
                    "held-out domain",
                    *(f"{what}: {name}" for what in ("perplexity", "bits per byte") for name in MODELS),
                ),
                tuple((d or "none", *(rng.uniform(2, 200) for _ in range(8))) for d in DOMAINS),
            ),
            Note("No eval-lm output with tasks; run `qurating eval-lm --tasks paper`.", "missing"),
        ),
    )
    return ratings, selection, models


def report(
    num_documents: int = 240,
    num_pairs: int = 120,
    *,
    hostile: bool = False,
    words: int = 120,
    pages: tuple[Page, ...] = (),
) -> Report:
    """The whole of it; `hostile`: every text that can be is one that tries to break out."""
    texts = HOSTILE if hostile else ()
    word = HOSTILE[0] if hostile else "all"
    summary = Page(
        "summary",
        "Summary",
        "Twelve small language models, four selections and three seeds: what the ratings did.",
        (
            Facts(
                (
                    ("documents rated", 47696, "of 47,696 in ten domains"),
                    ("tokens", 31_415_926, "by the model's tokenizer"),
                    ("held-out accuracy", 0.8731, "of the rater, on 1,204 pairs"),
                    ("bits per byte", 1.1042, "educational, τ = 1"),
                    ("cost", "$0.00", "the judge was offline"),
                    (word, None, word if hostile else "not measured"),
                )
            ),
            Note("The judge was the offline one: fixed formulas over the text, not a language model.", "caution"),
            Table(
                "Stages" if not hostile else HOSTILE[1],
                ("folder", "stage", "documents", "mean", "done", word if hostile else "remark"),
                (
                    ("annotate", "annotate", 47696, 0.25, True, None),
                    ("select-a", "select", 9120, 1.5, True, HOSTILE[0] if hostile else "τ = 1"),
                    ("select-b", "select", 120, None, False, HOSTILE[2] if hostile else ""),
                    *(((text, text, 1, 2.0, True, text) for text in HOSTILE) if hostile else ()),
                ),
                note="Every stage that was found.",
                brief=True,
            ),
            Table("Nothing", ("a", "b"), ()),
            Note(f"A paragraph. {word}"),
        ),
    )
    trouble = Page(
        "trouble<>",
        HOSTILE[0],
        HOSTILE[5],
        (
            Bars(HOSTILE[0], HOSTILE, {HOSTILE[0]: tuple(map(float, range(10))), HOSTILE[2]: (1.0,) * 10}, HOSTILE[1]),
            Intervals(HOSTILE[1], tuple((t, HOSTILE[0], 1.0, 0.5, 2.0) for t in HOSTILE), HOSTILE[0]),
            Histogram(HOSTILE[2], (0.0, 1.0, 2.0), dict.fromkeys(HOSTILE, (0.5, 0.5)), HOSTILE[0], HOSTILE[3]),
            Lines(HOSTILE[3], dict.fromkeys(HOSTILE, ((1.0, 2.0), (1.0, 2.0))), HOSTILE[0], HOSTILE[1]),
            Heatmap(HOSTILE[4], HOSTILE, HOSTILE[:2], ((1.0, 2.0),) * 10, unit=HOSTILE[0]),
        ),
    )
    documents_page = Page(
        "documents",
        "Documents",
        "Read what was rated.",
        (
            DocumentsExplorer(
                CRITERIA,
                TOPICS if not hostile else (*HOSTILE[:4], *TOPICS[4:]),
                SELECTIONS if not hostile else HOSTILE[:3],
                documents(num_documents, words=words, texts=texts),
                47696,
                "Drawn by domain with seed 0, the tails more densely.",
            ),
        ),
    )
    pairs_page = Page(
        "pairs",
        "Pairs",
        "Read what was judged.",
        (PairsExplorer(pairs(num_pairs, texts=texts), 4000, "The first of every batch."),),
    )
    title = HOSTILE[0] if hostile else "QuRating run: laptop experiments"
    middle = pages or (*_figures(), *((trouble,) if hostile else ()))
    audit = Page("audit", "Rater audit", "Is it in disguise?", (verdicts(HOSTILE[0] if hostile else ""),))
    provenance = Page("provenance", "Provenance", "Where everything comes from.")
    every = (summary, *middle, audit, documents_page, pairs_page, provenance)
    return Report(title, "qurating-jax 0.1.0, twelve runs", every)
