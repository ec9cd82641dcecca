import ast
import json
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qurating_jax.data import corpus
from qurating_jax.data.corpus import Limits, Source

MIT = """MIT License

Copyright (c) {year} {owner}

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY.
"""


def module(name):
    return f'"""Module {name} explains itself."""\n\ndef {name}(x):\n    """Returns {name} of x."""\n    return x\n'


@pytest.fixture
def place(tmp_path):
    """A small installation: two library modules, two packages, and what must not be taken."""
    files = {
        "lib/alpha.py": module("alpha"),
        "lib/beta/gamma.py": module("gamma"),
        "lib/broken.py": "def (:\n",
        "lib/latin.py": b"# caf\xe9 without a coding line\n",
        "lib/nul.py": b"x = '\x00'\n",
        "lib/_sysconfigdata__linux.py": "prefix = '/home/somebody/python'\n",
        "lib/test/hidden.py": module("hidden"),
        "lib/pydoc_data/topics.py": "topics = {'assert': 'The assert statement\\n', 'if': 'The if ' 'statement'}\n",
        "lib/site-packages/elsewhere.py": module("elsewhere"),
        "packages/one/__init__.py": module("one"),
        "packages/one/api_pb2.py": module("generated"),
        "packages/one/CHANGELOG.md": "# 1.0\n\nFirst release of one.",
        "packages/one/data.txt": "1 2 3",
        "packages/one/licenses.py": module("licenses"),
        "packages/one-1.0.dist-info/METADATA": "Name: one\nVersion: 1.0\n\n# One\n\nDoes one thing.",
        "packages/one-1.0.dist-info/licenses/LICENSE": MIT.format(year=2020, owner="A. Person"),
        "packages/one-1.0.dist-info/RECORD": "one/__init__.py,,",
        "packages/two-2.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: two\nVersion: 2.0\n",
        "packages/two-2.0.dist-info/COPYING": MIT.format(year=1999, owner="Another Company, Inc."),
        "packages/broken-3.dist-info/RECORD": "",
        "packages/qurating_jax-0.1.0.dist-info/METADATA": "Name: qurating-jax\nVersion: 0.1.0\n\nOur own README.",
    }
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return corpus.Installation(tmp_path / "lib", (tmp_path / "packages",))


def texts(sources, domain):
    return {source.name: source.read() for source in sources if source.domain == domain}


def test_each_domain_has_its_files(place):
    names = {domain: [] for domain in corpus.DOMAINS}
    for source in corpus.find_sources(place):
        names[source.domain].append(source.name)
    library = ["alpha.py", "beta/gamma.py", "broken.py", "latin.py", "nul.py"]
    assert {domain: sorted(found) for domain, found in names.items()} == {
        "stdlib_docs": library,
        "source_code": library,
        "language_reference": ["pydoc_data/topics/assert", "pydoc_data/topics/if"],
        "package_docs": ["one/__init__.py", "one/licenses.py"],
        "package_readmes": ["one.dist-info/METADATA", "one/CHANGELOG.md", "two.dist-info/METADATA"],
        "licenses": ["one.dist-info/licenses/LICENSE", "two.dist-info/COPYING"],
    }


def test_texts_of_the_domains(place):
    sources = [
        source for source in corpus.find_sources(place) if source.name not in ("broken.py", "latin.py", "nul.py")
    ]
    assert texts(sources, "stdlib_docs")["alpha.py"] == "Module alpha explains itself.\n\nalpha\nReturns alpha of x."
    assert texts(sources, "source_code")["alpha.py"] == module("alpha")
    assert texts(sources, "language_reference")["pydoc_data/topics/if"] == "The if statement"
    readmes = texts(sources, "package_readmes")
    assert readmes["one.dist-info/METADATA"] == "# One\n\nDoes one thing."
    assert readmes["two.dist-info/METADATA"].strip() == ""


def test_docstrings_in_their_order_without_running_anything(tmp_path):
    path = tmp_path / "code.py"
    path.write_text(
        '"""Module."""\nraise SystemExit("imported")\n'
        'class A:\n    """Class."""\n    async def f(self):\n        """Method.\n\n        Indented.\n        """\n'
        'try:\n    import x\nexcept ImportError:\n    pass\nelse:\n    def g():\n        "One \\d line."\n'
        "def undocumented():\n    pass\n"
    )
    assert corpus.read_docstrings(path) == "Module.\n\nA\nClass.\n\nA.f\nMethod.\n\nIndented.\n\ng\nOne \\d line."


def test_collected_pieces(place):
    limits = Limits(max_chars=400, min_chars=10, max_documents_per_domain=100)
    pieces, passed_over = corpus.collect(corpus.find_sources(place), limits, seed=0)
    # broken.py and nul.py are no Python and latin.py is no UTF-8, but as text two of the three can be read.
    assert passed_over["unreadable"] == 4
    assert len({piece.id for piece in pieces}) == len(pieces)
    for piece in pieces:
        assert re.fullmatch(re.escape(f"{piece.domain}/{piece.source}#") + r"\d+", piece.id)
        assert not piece.source.startswith("/")
        assert "home" not in piece.text
    licenses = [piece for piece in pieces if piece.domain == "licenses"]
    assert len({piece.source for piece in licenses}) == 1, "the same licence under another name is a duplicate"
    assert passed_over["duplicates"] >= len(licenses)


def test_pieces_do_not_depend_on_the_order_of_the_sources(place):
    limits = Limits(max_chars=300, min_chars=5, max_documents_per_domain=2)
    sources = corpus.find_sources(place)
    pieces, passed_over = corpus.collect(sources, limits, seed=3)
    assert corpus.collect(sources[::-1], limits, seed=3) == (pieces, passed_over)
    assert corpus.collect(sources, limits, seed=4)[0] != pieces
    assert max(Counter(piece.domain for piece in pieces).values()) == 2


def test_a_large_package_takes_turns_with_small_ones():
    def source(name):
        return Source("package_docs", name, lambda: f"All the words about {name} and nothing but them, at length.")

    sources = [source(f"large/m{i}.py") for i in range(200)] + [source(f"small{i}/m.py") for i in range(5)]
    pieces, _ = corpus.collect(sources, Limits(min_chars=10, max_documents_per_domain=12), seed=0)
    packages = Counter(piece.source.split("/")[0] for piece in pieces)
    assert packages == {"large": 7} | {f"small{i}": 1 for i in range(5)}


def test_duplicates_are_found_whatever_their_case_and_spacing():
    same = ["Hello, World of\n\n words", "hello,  world of words", "Hello, World of wards"]
    sources = [Source("stdlib_docs", f"{i}.py", lambda text=text: text) for i, text in enumerate(same)]
    pieces, passed_over = corpus.collect(sources, Limits(min_chars=5), seed=0)
    assert (len(pieces), passed_over["duplicates"]) == (2, 1)


def test_near_duplicates_count_among_licences_only():
    variants = [MIT.format(year=2000 + i, owner=f"Owner {i}") for i in range(3)] + ["Other words entirely. " * 20]
    for domain, expected in (("licenses", 2), ("package_readmes", 4)):
        sources = [Source(domain, f"p{i}/LICENSE", lambda text=text: text) for i, text in enumerate(variants)]
        pieces, _ = corpus.collect(sources, Limits(min_chars=5), seed=0)
        assert len(pieces) == expected


def test_tables_of_numbers_and_short_texts_are_passed_over():
    contents = {"numbers.py": "0x12, 0x34, 0x56,\n" * 50, "short.py": "words", "fine.py": "These are words. " * 20}
    sources = [Source("source_code", name, lambda text=text: text) for name, text in contents.items()]
    pieces, passed_over = corpus.collect(sources, Limits(min_chars=20), seed=0)
    assert [piece.source for piece in pieces] == ["fine.py"]
    assert (passed_over["not_text"], passed_over["too_short"]) == (1, 1)


def test_large_files_are_unreadable(tmp_path):
    path = tmp_path / "large.py"
    path.write_text("# " + "x" * (1 << 20))
    with pytest.raises(ValueError, match="larger than"):
        corpus.read_text(path)


@pytest.mark.parametrize(
    ("dirty", "expected"),
    [
        ("\ufeffa\r\nb\rc\fd", "a\nb\nc\nd"),
        ("a\x00b\x1b[0m \t\nc", "ab[0m\nc"),
        ("a\n\n\n\n\n\nb", "a\n\n\nb"),
        ("[![build](https://x/y.svg)](https://x) ![b](z)\nText ![kept](z)", "Text ![kept](z)"),
        (".. image:: https://x/y.svg\n<img src='x'>\n.. |b| image:: y\nText", "Text"),
        ("lone \ud800 surrogate", "lone \ufffd surrogate"),
        ("before\n" + "QUJD" * 300 + "\nafter", "before\nafter"),
        ("word " * 300, ("word " * 300).strip()),
        ("", ""),
    ],
)
def test_clean(dirty, expected):
    assert corpus.clean(dirty) == expected
    assert corpus.clean(expected) == expected
    expected.encode()


@given(
    text=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), max_size=40).flatmap(
        lambda words: st.sampled_from(["\n\n", "\n", " "]).map(lambda between: between.join(words))
    ),
    max_chars=st.integers(2, 60),
    data=st.data(),
)
def test_cut_loses_nothing_but_whitespace(text, max_chars, data):
    min_chars = data.draw(st.integers(1, max_chars - 1))
    pieces = corpus.cut(text, max_chars, min_chars)
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert all(piece.strip() for piece in pieces)
    # A tail joins its neighbour; whitespace at its end does not count for its length.
    assert all(len(piece) <= max_chars for piece in pieces[:-1])
    assert not pieces or len(pieces[-1]) <= 2 * max_chars
    assert corpus.cut(text, max_chars, min_chars) == pieces


def test_cut_prefers_blank_lines():
    paragraphs = ["a" * 30, "b" * 30, "c" * 30]
    assert corpus.cut("\n\n".join(paragraphs), 70, 5) == ["\n\n".join(paragraphs[:2]), paragraphs[2]]
    assert corpus.cut("\n\n".join(paragraphs), 70, 40) == ["\n\n".join(paragraphs)]
    assert corpus.cut("x" * 25, 10, 5) == ["x" * 10, "x" * 10, "x" * 5]


def test_split_is_by_file_and_of_the_asked_size():
    names = [f"package{i}/module.py" for i in range(20000)]
    heldout = {name for name in names if corpus.is_heldout(name, 0.1, seed=0)}
    assert abs(len(heldout) - 2000) < 200  # 4.7 standard deviations
    assert heldout != {name for name in names if corpus.is_heldout(name, 0.1, seed=1)}
    assert heldout < {name for name in names if corpus.is_heldout(name, 0.2, seed=0)}
    assert not any(corpus.is_heldout(name, 0.0, seed=0) for name in names)


def test_draw_is_fixed():
    # Literals: a change of Python, machine or PYTHONHASHSEED must not change a corpus.
    assert corpus.draw(0, "order", "a") == 13579670098219665324
    assert corpus.draw(0, "split", "a") != 13579670098219665324


def test_fingerprint_follows_the_installed_versions(place):
    before = place.fingerprint()
    (place.packages[0] / "qurating_jax-0.1.0.dist-info").rename(place.packages[0] / "qurating_jax-0.2.0.dist-info")
    (place.packages[0] / "one" / "new.py").write_text("")
    assert place.fingerprint() == before
    (place.packages[0] / "two-2.0.dist-info").rename(place.packages[0] / "two-2.1.dist-info")
    assert place.fingerprint() != before


def test_this_installation_has_every_domain():
    sources = corpus.find_sources(corpus.installation())
    found = Counter(source.domain for source in sources)
    assert set(found) == set(corpus.DOMAINS)
    assert found["stdlib_docs"] > 300
    assert not any(source.name.startswith("/") or ".." in source.name.split("/") for source in sources)
    topics = [source.read() for source in sources if source.domain == "language_reference"]
    assert any('"assert"' in topic for topic in topics)
    json_source = next(s for s in sources if (s.domain, s.name) == ("stdlib_docs", "json/__init__.py"))
    assert ast.get_docstring(ast.parse(Path(json.__file__).read_text())) in json_source.read()
