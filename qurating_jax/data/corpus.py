"""Real documents that every Python installation has: a small corpus of several domains, nothing downloaded.

    stdlib_docs         documentation strings of the standard library
    source_code         the standard library's source files
    language_reference  the help topics of `pydoc` (the language reference)
    package_docs        documentation strings of the installed packages
    package_readmes     their long descriptions, changelogs and Markdown or reStructuredText pages
    licenses            their licence texts

Python files are parsed, never imported. A corpus is a pure function of the installation, the seed and `Limits`: sources
are taken in an order that hashes of their names decide, in turns between packages, until a domain is full.
"""

import ast
import functools
import hashlib
import os
import platform
import re
import sysconfig
import warnings
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

DOMAINS = ("stdlib_docs", "source_code", "language_reference", "package_docs", "package_readmes", "licenses")

_OWN = ("qurating_jax", "qurating-jax")  # a corpus does not change because this project's own README does
_MAX_FILE_BYTES = 1 << 20
_SKIPPED_DIRECTORIES = frozenset(
    ("__pycache__", "node_modules", "site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3")
)
_PAGE_NAME = re.compile(r".*\.(md|rst)|(readme|changelog|changes|history|news|api_changes)[^/]*\.txt", re.IGNORECASE)
_LICENSE_NAME = re.compile(r"(licen[sc]es?|copying|notice)([-_.][^/]*)?(?<!\.py)(?<!\.pyi)(?<!\.json)", re.IGNORECASE)
# Built or generated Python: constants of the machine that compiled the interpreter, protocol buffers.
_GENERATED_NAME = re.compile(r"_sysconfigdata.*|.*_pb2\.py|.*_pb2_grpc\.py")
_DIST_INFO = re.compile(r"^([^/]+?)-[^/-]+\.dist-info(?=/|$)")
_UNREADABLE = (OSError, UnicodeError, SyntaxError, ValueError, RecursionError, MemoryError)


@dataclass(frozen=True)
class Installation:
    """Where to look: the standard library's directory and the directories that packages are installed in."""

    stdlib: Path
    packages: tuple[Path, ...]

    def fingerprint(self) -> str:
        """Hex sha256 of the Python version and of the installed distributions with theirs."""
        names = [name for root in self.packages for name in sorted(os.listdir(root)) if name.endswith(".dist-info")]
        names = [name for name in names if not name.startswith(_OWN)]
        return hashlib.sha256("\n".join([platform.python_version(), *names]).encode()).hexdigest()


@dataclass(frozen=True)
class Source:
    """A text that can be read. `name` is relative to its root, with `/`, and says nothing about the machine."""

    domain: str
    name: str
    read: Callable[[], str]


@dataclass(frozen=True)
class Piece:
    """A document of the corpus; `id` is `domain/source#piece`."""

    id: str
    domain: str
    source: str
    text: str


@dataclass(frozen=True)
class Limits:
    """Lengths are in characters; a piece may exceed `max_chars` by a tail shorter than `min_chars`."""

    max_chars: int = 4000
    min_chars: int = 200
    max_documents_per_domain: int = 1000


def installation() -> Installation:
    """The interpreter that runs this and the packages beside NumPy, which this project depends on."""
    places = [Path(sysconfig.get_path("purelib")), Path(str(metadata.distribution("numpy").locate_file("")))]
    roots = dict.fromkeys(place.resolve() for place in places if place.is_dir())
    return Installation(Path(sysconfig.get_path("stdlib")), tuple(roots))


def find_sources(place: Installation) -> list[Source]:
    """All texts of an installation; no file is read but the help topics. Ids are unique."""
    sources = [*library_sources(place.stdlib)]
    for root in place.packages:
        sources += package_sources(root)
    return list({(source.domain, source.name): source for source in sources}.values())


def library_sources(root: Path) -> Iterator[Source]:
    """`stdlib_docs`, `source_code` and `language_reference` below the standard library's directory."""
    for name in _walk(root):
        if name.endswith(".py") and not _GENERATED_NAME.fullmatch(name.rsplit("/", 1)[-1]):
            if name == "pydoc_data/topics.py":
                yield from _topics(root / name)
                continue
            yield Source("stdlib_docs", name, functools.partial(read_docstrings, root / name))
            yield Source("source_code", name, functools.partial(read_text, root / name))


def package_sources(root: Path) -> Iterator[Source]:
    """`package_docs`, `package_readmes` and `licenses` below one directory of installed packages."""
    for name in _walk(root):
        last = name.rsplit("/", 1)[-1]
        public = _DIST_INFO.sub(r"\1.dist-info", name)  # without the version: ids outlive an upgrade
        if name.startswith(_OWN):
            continue
        if _LICENSE_NAME.fullmatch(last):
            yield Source("licenses", public, functools.partial(read_text, root / name))
        elif ".dist-info/" in name:
            if last == "METADATA":
                yield Source("package_readmes", public, functools.partial(read_description, root / name))
        elif _PAGE_NAME.fullmatch(last):
            yield Source("package_readmes", public, functools.partial(read_text, root / name))
        elif last.endswith(".py") and "/" in name and not _GENERATED_NAME.fullmatch(last):
            yield Source("package_docs", public, functools.partial(read_docstrings, root / name))


def read_text(path: Path) -> str:
    """A UTF-8 file. Raises `ValueError` where it is too large or not UTF-8, `OSError` where it cannot be read."""
    if path.stat().st_size > _MAX_FILE_BYTES:
        raise ValueError(f"larger than {_MAX_FILE_BYTES} bytes")
    return path.read_text(encoding="utf-8-sig")


def read_description(path: Path) -> str:
    """The long description in an installed distribution's METADATA file; empty where it has none."""
    read_text(path)  # its checks
    return str(metadata.Distribution.at(path.parent).metadata.json.get("description", ""))


def read_docstrings(path: Path) -> str:
    """The documentation strings of a Python file in their order, each after the name it documents."""
    blocks: list[str] = []

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                name = f"{prefix}{child.name}"
                documentation = ast.get_docstring(child)
                if documentation:
                    blocks.append(f"{name}\n{documentation}")
                if isinstance(child, ast.ClassDef):
                    visit(child, f"{name}.")
            elif isinstance(child, (ast.If, ast.Try)):  # definitions that depend on the platform
                visit(child, prefix)

    tree = _parse(path)
    blocks += filter(None, [ast.get_docstring(tree)])
    visit(tree, "")
    return "\n\n".join(blocks)


def clean(text: str) -> str:
    """Text without control characters, surrogates, badges and embedded data; at most two blank lines in a row."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\f", "\n")
    text = re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff]", "", text)
    text = re.sub(r"[\ud800-\udfff]", "\ufffd", text)  # a string literal may hold what no UTF-8 file can
    lines = (line.rstrip() for line in text.split("\n"))
    text = "\n".join(line for line in lines if not _BADGES.fullmatch(line) and not _is_data(line))
    return re.sub(r"\n{4,}", "\n\n\n", text).strip("\n")


_BADGES = re.compile(r"\s*(\[?!\[[^\]]*\]\([^)]*\)(\]\([^)]*\))?\s*)+|\s*\.\. (\|[^|]*\| )?image::.*|\s*<img\b.*")


def _is_data(line: str) -> bool:
    """An embedded image or minified code: very long, hardly a space."""
    return len(line) > 1000 and line.count(" ") * 50 < len(line)


def is_text(text: str) -> bool:
    """False for tables of numbers and code points: under half of the visible characters are letters."""
    visible = "".join(text.split())
    return 2 * sum(map(str.isalpha, visible)) >= len(visible)


def cut(text: str, max_chars: int, min_chars: int) -> list[str]:
    """Cuts a text into pieces of about `max_chars` characters at blank lines.

    A paragraph that is too long is cut at line ends, a line that is too long anywhere. Only whitespace between pieces
    is lost. A last piece under `min_chars` stays with the one before it.
    """
    pieces: list[str] = []
    for part in _parts(text, max_chars, ("\n\n", "\n", "")):
        if pieces and len(pieces[-1]) + len(part) <= max_chars:
            pieces[-1] += part
        else:
            pieces.append(part)
    if len(pieces) > 1 and len(pieces[-1].strip()) < min_chars:
        tail = pieces.pop()
        pieces[-1] += tail
    return [piece.strip("\n").rstrip() for piece in pieces if piece.strip()]


def collect(sources: Sequence[Source], limits: Limits, seed: int) -> tuple[list[Piece], Counter[str]]:
    """Reads, cleans, cuts and deduplicates sources until every domain is full.

    Returns:
        The pieces in an order drawn by their ids, so that every prefix mixes the domains, and the numbers of sources
        (`unreadable`, `not_text`) and pieces (`too_short`, `duplicates`) passed over.
    """
    pieces: list[Piece] = []
    passed_over: Counter[str] = Counter(unreadable=0, not_text=0, too_short=0, duplicates=0)
    seen: set[bytes] = set()
    for domain in DOMAINS:
        chosen = [source for source in sources if source.domain == domain]
        pieces += _collect_domain(_in_turns(chosen, seed), limits, seen, passed_over)
    return sorted(pieces, key=lambda piece: draw(seed, "order", piece.id)), passed_over


def is_heldout(source: str, fraction: float, seed: int) -> bool:
    """Whether a source is held out. All pieces of a file fall on one side, and so do its code and its docstrings."""
    return draw(seed, "heldout", source) < fraction * 2.0**64


def draw(seed: int, purpose: str, name: str) -> int:
    """A uniform 64-bit number that depends on nothing but its arguments."""
    key = f"{seed}\0{purpose}\0{name}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big")


def _collect_domain(
    sources: Sequence[Source], limits: Limits, seen: set[bytes], passed_over: Counter[str]
) -> list[Piece]:
    pieces: list[Piece] = []
    sketches: list[frozenset[int]] = []
    for source in sources:
        try:
            text = clean(source.read())
        except _UNREADABLE:
            passed_over["unreadable"] += 1
            continue
        if text and not is_text(text):
            passed_over["not_text"] += 1
            continue
        for number, part in enumerate(cut(text, limits.max_chars, limits.min_chars)):
            if len(part) < limits.min_chars:
                passed_over["too_short"] += 1
                continue
            if len(pieces) == limits.max_documents_per_domain:
                return pieces
            key = hashlib.sha256(" ".join(part.lower().split()).encode()).digest()
            # Licences are the same few texts under other names: near-duplicates count as duplicates there.
            if key in seen or (source.domain == "licenses" and _is_near_duplicate(part, sketches)):
                passed_over["duplicates"] += 1
                continue
            seen.add(key)
            pieces.append(Piece(f"{source.domain}/{source.name}#{number}", source.domain, source.name, part))
    return pieces


def _is_near_duplicate(text: str, sketches: list[frozenset[int]]) -> bool:
    """Compares hashed five-word shingles with all kept texts (Jaccard similarity >= 0.7); keeps a new text's own."""
    words = re.findall(r"[a-z]+", text.lower())
    hashes = (zlib.crc32(" ".join(words[i : i + 5]).encode()) for i in range(max(1, len(words) - 4)))
    sketch = frozenset(value for value in hashes if value % 4 == 0)  # a fixed quarter of them is enough to compare
    if any(len(sketch & other) >= 0.7 * len(sketch | other) for other in sketches):
        return True
    sketches.append(sketch)
    return False


def _in_turns(sources: Sequence[Source], seed: int) -> list[Source]:
    """One file of every package, then the second of every package ...: a large package does not fill a domain."""
    packages: dict[str, list[tuple[int, Source]]] = defaultdict(list)
    for source in sources:
        packages[source.name.split("/", 1)[0]].append((draw(seed, "source", source.name), source))
    turns = []
    for members in packages.values():
        members.sort(key=lambda member: (member[0], member[1].name))
        turns += [(turn, drawn, source) for turn, (drawn, source) in enumerate(members)]
    turns.sort(key=lambda entry: (entry[0], entry[1], entry[2].name))
    return [source for _, _, source in turns]


def _parts(text: str, max_chars: int, separators: tuple[str, ...]) -> Iterator[str]:
    """Parts no longer than `max_chars` that join to `text`, cut after the first separator that makes them so."""
    if len(text) <= max_chars:
        yield text
        return
    separator, *finer = separators
    if not separator:
        yield from (text[start : start + max_chars] for start in range(0, len(text), max_chars))
        return
    paragraphs = text.split(separator)
    for index, paragraph in enumerate(paragraphs):
        whole = paragraph + separator if index < len(paragraphs) - 1 else paragraph
        yield from _parts(whole, max_chars, tuple(finer))


def _walk(root: Path) -> Iterator[str]:
    """Names of all files below `root`, relative, with `/`, in sorted order; hidden and test directories left out."""
    for directory, names, files in os.walk(root):
        names[:] = sorted(name for name in names if name not in _SKIPPED_DIRECTORIES and not name.startswith("."))
        relative = Path(directory).relative_to(root)
        yield from ((relative / file).as_posix() for file in sorted(files))


def _topics(path: Path) -> Iterator[Source]:
    """One source per help topic: the file is one dictionary of texts."""
    try:
        tree = _parse(path)
        for node in tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
                for topic, text in ast.literal_eval(node.value).items():
                    yield Source("language_reference", f"pydoc_data/topics/{topic}", functools.partial(str, text))
    except _UNREADABLE:
        return


def _parse(path: Path) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about other people's escape sequences
        return ast.parse(read_text(path))
