"""fetch as a command: published layouts from a hub on loopback go into the stages that read them; faults, restarts."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time

import fake_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_hf as tiny

from qurating_jax import __main__ as command
from qurating_jax.data import documents
from qurating_jax.data.judgment_files import find_judgments, read_judgments
from qurating_jax.data.tokenizer import load_tokenizer
from qurating_jax.models.base import resolve_base
from qurating_jax.models.config import ArchitectureOverrides
from qurating_jax.runtime import hub, manifest, mirrors
from qurating_jax.runtime.errors import UserError

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
RATER, JUDGMENTS, CORPUS = (
    f"princeton-nlp/{name}" for name in ("QuRater-1.3B", "QuRating-GPT3.5-Judgments", "QuRatedPajama-260B")
)
CRITERIA = ("writing_style", "required_expertise", "facts_and_trivia", "educational_value")
SHARDS = [f"data/train-{number:05d}-of-00003.parquet" for number in range(3)]


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(hub, "_FIRST_WAIT_SECONDS", 0.01)
    with fake_hub.serve() as running:
        running.connect(monkeypatch)
        yield running


@pytest.fixture(scope="module")
def rater(tmp_path_factory):
    """A rater of random weights, as a Hugging Face directory."""
    return tiny.make_model(tmp_path_factory.mktemp("rater"), 3)


def files_of(directory):
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def as_parquet(rows):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


def rated_rows(start, num, rng):
    """Rows in the layout of QuRatedPajama: no id."""
    return [
        {"text": f"row {number} " + "word " * 9, "input_ids": list(range(16)), "length": 16,
         "source_domain": ("RedPajamaC4", "RedPajamaBook")[number % 2]}
        | {f"{criterion}_average": float(rng.normal()) for criterion in CRITERIA}
        | {f"{criterion}_chunks": [float(rng.normal())] for criterion in CRITERIA}
        for number in range(start, start + num)
    ]  # fmt: skip


def corpus_files():
    rng = np.random.default_rng(0)
    shards = {name: as_parquet(rated_rows(40 * number, 40, rng)) for number, name in enumerate(SHARDS)}
    return shards | {"README.md": b"# rated\n", ".gitattributes": b"*.parquet lfs\n", "load.py": b"raise SystemExit"}


def spoilt(name):
    content = corpus_files()[name]
    return content[:-1] + bytes([content[-1] ^ 1])


def judged_rows(num, seed=0):
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(num):
        good, bad = f"cellulose proof theorem {seed} {number}", f"ok ok lol {seed} {number}"
        swapped = bool(rng.integers(2))
        p = 0.1 if swapped else 0.9
        row = {"texts": [good, bad] if swapped else [bad, good]}
        for criterion in CRITERIA:
            row[f"{criterion}_average"] = [[-100.0, p], [1 - p, -100.0]]
            row[f"{criterion}_votes_a"] = [[-100.0, 2.0], [18.0, -100.0]]
        rows.append(row)
    return rows


@pytest.fixture
def corpus(server):
    return server.add("datasets", CORPUS, corpus_files(), lfs=SHARDS)


def run(*argv):
    return command.main([str(word) for word in argv])


def fetch(name, output, *more):
    return run("fetch", name, "--output", output, *more)


def error_of(capsys, *argv):
    assert run(*argv) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line.removeprefix("error: ")


def asked(server):
    """Names of the files that were asked for, in order."""
    return [path.split("?")[0].split("/", 5)[-1] for _, path, _ in server.requests if not path.startswith("/api/")]


# --- what was fetched goes into the stages ----------------------------------------------------------------------------


def test_a_fetched_rater_annotates_as_its_directory_does(server, rater, tmp_path):
    files = files_of(rater) | {"pytorch_model.bin": b"\x80pickle", "modeling.py": b"raise SystemExit"}
    server.add("models", RATER, files, lfs={"model.safetensors", "pytorch_model.bin"})
    assert fetch("qurater-1.3b", tmp_path / "rater") == 0
    assert files_of(tmp_path / "rater" / "hf") == files_of(rater)
    texts = tmp_path / "docs.jsonl"
    texts.write_text("".join(json.dumps({"id": str(n), "text": text}) + "\n" for n, text in enumerate(tiny.TEXTS)))
    for name, path in (("fetched", tmp_path / "rater"), ("original", rater)):
        options = ["--rater", path, "--window_tokens", 32, "--output", tmp_path / name]
        assert run("annotate", "--input", texts, *options) == 0
    tables = [pq.read_table(tmp_path / name / "part-00000.parquet") for name in ("fetched", "original")]
    assert tables[0].num_rows == len(tiny.TEXTS)
    assert tables[0].equals(tables[1])


def test_a_fetched_model_is_a_tokenizer_and_a_base(server, tmp_path):
    original = tiny.make_model(tmp_path / "lm", 0)
    server.add("models", "princeton-nlp/Sheared-LLaMA-1.3B", files_of(original), lfs={"model.safetensors"})
    assert fetch("sheared-llama-1.3b", tmp_path / "fetched") == 0
    identity = load_tokenizer(str(original)).identity
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in tiny.TEXTS))
    for place in (tmp_path / "fetched", tmp_path / "fetched" / "hf"):
        assert load_tokenizer(str(place)).identity == identity
        options = ["--sequence_tokens", 16, "--num_workers", 1, "--output", tmp_path / f"tokens_of_{place.name}"]
        assert run("tokenize", "--input", tmp_path / "docs.jsonl", "--tokenizer", place, *options) == 0
        found = resolve_base(str(place), revision=None, architecture=ArchitectureOverrides(), vocab_size=300,
                             sequence_tokens=64)  # fmt: skip
        assert found.directory == str(tmp_path / "fetched" / "hf")
    training = ["--model", tmp_path / "fetched", "--num_steps", 2, "--batch_sequences", 8, "--dry_run"]
    assert run("train-lm", "--tokens", tmp_path / "tokens_of_hf", *training) == 0
    assert run("eval-lm", "--model", tmp_path / "fetched", "--input", tmp_path / "docs.jsonl",
               "--output", tmp_path / "eval") == 0  # fmt: skip


def test_fetched_judgments_train_a_rater_and_keep_their_splits(server, tmp_path):
    names = ["data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"]
    files = {names[0]: as_parquet(judged_rows(80)), names[1]: as_parquet(judged_rows(7, 1)), "README.md": b"judged"}
    server.add("datasets", JUDGMENTS, files, lfs=names)
    output = tmp_path / "judgments"
    assert fetch("judgments", output) == 0
    assert files_of(output / "files") == files
    with pytest.raises(UserError, match="has the splits test, train; say which"):
        find_judgments([str(output)])
    assert len(read_judgments([f"{output}#train"])) == 80
    assert len(read_judgments([f"{output}#test"])) == 7
    options = ["--base", "ngrams", "--margin", 0, "--output", tmp_path / "rater"]
    assert run("train-rater", "--judgments", f"{output}#train", *options) == 0
    found = json.loads((tmp_path / "rater" / "eval.json").read_text())["validation"]
    assert set(found) == set(CRITERIA)


def test_domains_of_the_test_judgments_are_read_together(server, tmp_path):
    domains = ("arxiv", "book", "c4", "github", "wikipedia")
    files = {f"data/{domain}-00000-of-00001.parquet": as_parquet(judged_rows(3, n)) for n, domain in enumerate(domains)}
    server.add("datasets", f"{JUDGMENTS}-Test", files, lfs=files)
    assert fetch("judgments-test", tmp_path / "out") == 0
    found = read_judgments([str(tmp_path / "out")])
    assert [domain for domain, _ in found.domains] == sorted(domains * 3)


def test_a_fetched_rated_corpus_enters_at_select(corpus, tmp_path):
    assert fetch("quratedpajama-260b", tmp_path / "corpus") == 0
    assert [
        file.removeprefix(f"{tmp_path}/corpus/files/") for file in documents.find_files([str(tmp_path / "corpus")])
    ] == SHARDS
    options = ["--strategy", "sample", "--rating", "educational_value_average", "--temperature", 2.0]
    options += ["--domain_field", "source_domain", "--budget_tokens", 640, "--output", tmp_path / "chosen"]
    assert run("select", "--input", tmp_path / "corpus", *options) == 0
    counts = manifest.read(str(tmp_path / "chosen"))["counts"]
    assert (counts["num_documents"], counts["num_selected"]) == (120, 40)  # 640 of rows of 16 tokens
    rows = [row for path in sorted((tmp_path / "chosen").glob("part-*")) for row in pq.read_table(path).to_pylist()]
    shares = [sum(row["source_domain"] == domain for row in rows) for domain in ("RedPajamaC4", "RedPajamaBook")]
    assert shares == [20, 20]
    texts = {row["text"] for name in SHARDS for row in pq.read_table(tmp_path / "corpus" / "files" / name).to_pylist()}
    assert {row["text"] for row in rows} < texts


def test_fetched_data_is_no_model_and_an_unfinished_fetch_is_read_by_nobody(server, corpus, tmp_path, capsys):
    assert fetch("quratedpajama-260b", tmp_path / "corpus") == 0
    message = error_of(
        capsys, "eval-lm", "--model", tmp_path / "corpus", "--input", tmp_path / "corpus", "--output", tmp_path / "e"
    )
    assert message == f"{tmp_path}/corpus: fetched data, not a model"
    repo = server.repositories["datasets", CORPUS]
    repo.wrong = {SHARDS[2]: [spoilt(SHARDS[2])] * 2}
    assert f"{SHARDS[2]}: expected" in error_of(capsys, "fetch", "quratedpajama-260b", "--output", tmp_path / "half")
    with pytest.raises(UserError, match="no files ending in"):
        documents.find_files([str(tmp_path / "half")])
    with pytest.raises(UserError, match="unfinished output of `qurating fetch`"):
        manifest.exported(str(tmp_path / "half"))


# --- what is recorded -------------------------------------------------------------------------------------------------


def test_the_manifest_says_what_was_fetched_and_a_second_fetch_gives_the_same_bytes(server, corpus, tmp_path, capsys):
    for name in ("one", "two"):
        assert fetch("quratedpajama-260b", tmp_path / name, "--json") == 0
    counts = json.loads(capsys.readouterr().out.splitlines()[-1])
    sizes = {name: len(content) for name, content in corpus_files().items() if name in (*SHARDS, "README.md")}
    assert counts == {
        "name": "quratedpajama-260b", "kind": "rated_corpus", "repo": CORPUS, "repo_type": "dataset", "commit": corpus,
        "licence": "see the repository", "files": 4, "bytes": sum(sizes.values()), "sha256": counts["sha256"],
    }  # fmt: skip
    listed = json.loads((tmp_path / "one" / "files.json").read_text())
    assert (listed["repo"], listed["commit"]) == (CORPUS, corpus)
    assert {entry["name"]: entry["size"] for entry in listed["files"]} == sizes
    for entry in listed["files"]:
        printed = subprocess.run(
            ["sha256sum", tmp_path / "one" / "files" / entry["name"]], capture_output=True, check=True
        )
        assert printed.stdout.split()[0].decode() == entry["sha256"]
    own = ("manifest.json", "config.yaml", "log.txt")
    one, two = ({name: content for name, content in files_of(tmp_path / name).items() if name not in own}
                for name in ("one", "two"))  # fmt: skip
    assert one == two
    manifests = [manifest.read(str(tmp_path / name)) | {"config": None} for name in ("one", "two")]
    assert manifests[0] == manifests[1]
    left = {path.name for path in (tmp_path / "one").iterdir()}
    assert left == {"files", "files.json", "commit.json", "run.json", *own}
    before = len(server.requests)
    assert fetch("quratedpajama-260b", tmp_path / "one") == 0
    assert len(server.requests) == before  # finished: nobody is asked


def test_a_dry_run_says_how_much_and_downloads_nothing(server, corpus, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("fetch", "quratedpajama-260b", "--dry_run") == 0
    num_bytes = sum(len(content) for name, content in corpus_files().items() if name in (*SHARDS, "README.md"))
    assert capsys.readouterr().out == f"would fetch 4 files, {num_bytes:,} bytes, of {CORPUS} at {corpus}\n"
    assert asked(server) == []
    assert list(tmp_path.iterdir()) == []


def test_without_a_name_the_registry_is_listed(capsys, tmp_path):
    assert run("fetch", "--json") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "kind", "repository"]
    assert lines[1].split() == ["qurater-1.3b", "rater", RATER]
    assert len(lines) == 1 + 40 + 1
    assert json.loads(lines[-1])["artifacts"]["qurater-1.3b"]["labels"] == list(CRITERIA)
    own = tmp_path / "own.yaml"
    own.write_text("artifacts: {mine: {repo: me/mine}}")
    assert run("fetch", "--registry", own) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["mine", "language_model", "me/mine"]


def test_what_is_missing_on_the_command_line(capsys):
    assert run("fetch", "judgments") == 2
    assert "--output is required" in capsys.readouterr().err
    assert run("fetch", "judgment", "--output", "x") == 2
    assert "no published artifact `judgment`; did you mean judgments" in capsys.readouterr().err
    assert run("fetch", "judgments", "--output", "gs://bucket/x") == 2
    assert "this stage writes to a local or mounted disk" in capsys.readouterr().err
    assert run("fetch", "judgments", "--output", "x", "--num_workers", "0") == 2
    assert "num_workers 0 is to be at least 1" in capsys.readouterr().err


# --- which files ------------------------------------------------------------------------------------------------------


def test_only_the_tokenizer(server, rater, tmp_path, capsys):
    server.add("models", RATER, files_of(rater), lfs={"model.safetensors"})
    assert fetch("qurater-1.3b", tmp_path / "out", "--include", "tokenizer*") == 0
    assert {path.name for path in (tmp_path / "out" / "hf").iterdir()} == {"tokenizer.json", "tokenizer_config.json"}
    assert load_tokenizer(str(tmp_path / "out")).identity == load_tokenizer(str(rater)).identity
    message = error_of(capsys, "fetch", "qurater-1.3b", "--include", "*.gguf", "--output", tmp_path / "none")
    assert message.endswith(f"none of its {len(files_of(rater))} files fits *.gguf")
    assert 'config.include was ["tokenizer*"], now []' in error_of(
        capsys, "fetch", "qurater-1.3b", "--output", tmp_path / "out"
    )


def test_weights_that_are_pickles_alone_are_refused_before_anything_is_downloaded(server, tmp_path, capsys):
    commit = server.add(
        "models", RATER, {"config.json": b"{}", "pytorch_model.bin": b"\x80"}, lfs={"pytorch_model.bin"}
    )
    safe = server.add("models", RATER, {"config.json": b"{}", "model.safetensors": b"x"}, branch="refs/pr/3")
    message = error_of(capsys, "fetch", "qurater-1.3b", "--output", tmp_path / "out")
    assert message == (
        f"{RATER}@{commit}: holds no .safetensors; pytorch_model.bin is a pickle, which is not read: name a --revision "
        "with safetensors (refs/pr/N), or a --mirror with a copy that was saved as safetensors"
    )
    assert asked(server) == []
    assert fetch("qurater-1.3b", tmp_path / "pr", "--revision", "refs/pr/3") == 0
    assert manifest.read(str(tmp_path / "pr"))["counts"]["commit"] == safe


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_columns_are_checked_on_the_first_file_before_the_others_come(server, tmp_path, capsys, form):
    rows = [{"text": "a", "length": 1, "domain": "web"}] * 5
    content = as_parquet(rows) if form == "parquet" else "".join(json.dumps(row) + "\n" for row in rows).encode()
    names = [f"data/train-{number:05d}-of-00003.{form}" for number in range(3)]
    server.add("datasets", CORPUS, dict.fromkeys(names, content), lfs=names)
    message = error_of(capsys, "fetch", "quratedpajama-260b", "--output", tmp_path / "out")
    assert message.startswith(f"{CORPUS}: lacks the columns writing_style_average, required_expertise_average, ")
    assert "(it has text, length, domain)" in message
    assert set(server.served) == {names[0]}


def test_a_first_file_that_is_no_parquet_is_one_line(server, tmp_path, capsys):
    server.add("datasets", CORPUS, {SHARDS[0]: b"not parquet"}, lfs=SHARDS)
    assert "not a Parquet file" in error_of(capsys, "fetch", "quratedpajama-260b", "--output", tmp_path / "out")


def test_names_that_lead_out_are_refused(server, corpus, tmp_path, capsys):
    server.repositories["datasets", CORPUS].names = {SHARDS[1]: "../../evil.parquet"}
    message = error_of(capsys, "fetch", "quratedpajama-260b", "--output", tmp_path / "a" / "out")
    assert "lists a file called '../../evil.parquet', which is no plain path" in message
    assert asked(server) == []
    assert {path.name for path in tmp_path.rglob("*")} >= {"a", "out"}
    assert not list(tmp_path.rglob("evil*"))


def test_a_disk_without_room_is_refused_before_anything_is_downloaded(server, corpus, tmp_path, capsys, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    message = error_of(capsys, "fetch", "quratedpajama-260b", "--output", tmp_path / "out")
    assert "bytes are still to come, and the disk has 1,000 free" in message
    assert asked(server) == []


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_a_gated_repository_and_no_token_anywhere(server, corpus, tmp_path, capsys, monkeypatch):
    repo = server.repositories["datasets", CORPUS]
    repo.token = "hf_right_and_secret"
    for token in (None, "hf_wrong_and_secret", "hf_right_and_secret"):
        if token:
            monkeypatch.setenv("HF_TOKEN", token)
        code = fetch("quratedpajama-260b", tmp_path / "out")
        caught = capsys.readouterr()
        written = caught.out + caught.err + "".join(str(content) for content in files_of(tmp_path / "out").values())
        assert "secret" not in written
        assert ("accept its terms at" in caught.err and "set HF_TOKEN" in caught.err) is (token != repo.token)
        assert code == (0 if token == repo.token else 1)


def test_offline(server, corpus, tmp_path, capsys, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    message = error_of(capsys, "fetch", "quratedpajama-260b", "--output", tmp_path / "out")
    assert message.startswith(f"{CORPUS}: HF_HUB_OFFLINE is set, so the hub is not asked; ")
    assert server.requests == []


# --- interruptions ----------------------------------------------------------------------------------------------------


def environment(server):
    """Of a process of its own: the client reads its variables when it is imported."""
    clean = {key: value for key, value in os.environ.items() if not key.lower().startswith(("hf_", "http", "no_proxy"))}
    return clean | server.environment | {"PYTHONPATH": str(REPOSITORY), "HF_TOKEN_PATH": "/nonexistent/token"}


def start(server, *argv):
    command_line = [sys.executable, "-m", "qurating_jax", *map(str, argv)]
    return subprocess.Popen(
        command_line, env=environment(server), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_killed_in_the_middle_the_same_command_goes_on_at_the_same_byte_and_commit(server, tmp_path):
    gate, big = threading.Event(), np.random.default_rng(0).bytes(3_000_000)
    files = {"config.json": b"{}", "model.safetensors": big, "tokenizer.json": b"{}"}
    commit = server.add(
        "models", RATER, files, lfs={"model.safetensors"}, hold={"model.safetensors": (1_200_000, gate)}
    )
    arguments = ["fetch", "qurater-1.3b", "--output", tmp_path / "out"]
    partial = tmp_path / "out" / ".unfinished" / "partial" / "model.safetensors"
    first = start(server, *arguments)
    wait_until(lambda: partial.exists() and partial.stat().st_size == 1_200_000
               and len(list((tmp_path / "out" / ".unfinished" / "whole").glob("*"))) == 2)  # fmt: skip
    second = start(server, *arguments)  # while the first one works
    assert (
        second.communicate(timeout=60)[1]
        .splitlines()[-1]
        .endswith("another process fetches into it; wait for it, or choose another --output")
    )
    assert second.returncode == 1
    first.send_signal(signal.SIGKILL)
    first.communicate(timeout=60)
    gate.set()
    wait_until(lambda: server.served["model.safetensors"] >= 1_200_000)
    moved = server.add("models", RATER, files | {"config.json": b"[]"})
    assert moved != commit
    server.served.clear()
    again = start(server, *arguments)
    out, errors = again.communicate(timeout=60)
    assert again.returncode == 0, errors
    assert files_of(tmp_path / "out" / "hf") == files
    assert manifest.read(str(tmp_path / "out"))["counts"]["commit"] == commit
    # What the killed one's connection still got is not counted: it was asked for before.
    assert server.served == {"model.safetensors": len(big) - 1_200_000}
    assert out == ""
    for line in errors.splitlines():  # nothing of the client's own
        assert line[2] == line[5] == ":", line


def test_a_moved_branch_never_mixes_and_another_revision_is_another_run(server, corpus, tmp_path, capsys):
    repo = server.repositories["datasets", CORPUS]
    repo.wrong = {SHARDS[2]: [spoilt(SHARDS[2])] * 2}
    error_of(capsys, "fetch", "quratedpajama-260b", "--num_workers", 1, "--output", tmp_path / "out")
    changed = corpus_files() | {SHARDS[2]: as_parquet(rated_rows(500, 40, np.random.default_rng(9)))}
    later = server.add("datasets", CORPUS, changed, lfs=SHARDS)
    assert later != corpus
    message = error_of(capsys, "fetch", "quratedpajama-260b", "--revision", later, "--output", tmp_path / "out")
    assert "holds another run (config.revision was null, now" in message
    assert fetch("quratedpajama-260b", tmp_path / "out") == 0
    assert manifest.read(str(tmp_path / "out"))["counts"]["commit"] == corpus
    assert (tmp_path / "out" / "files" / SHARDS[2]).read_bytes() == corpus_files()[SHARDS[2]]
    assert fetch("quratedpajama-260b", tmp_path / "new") == 0
    assert manifest.read(str(tmp_path / "new"))["counts"]["commit"] == later


def test_stopped_between_the_last_file_and_the_manifest_nothing_comes_twice(server, corpus, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(mirrors, "record", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert fetch("quratedpajama-260b", tmp_path / "out") == 130
    server.served.clear()
    assert fetch("quratedpajama-260b", tmp_path / "out") == 0
    assert server.served == {}
    assert manifest.read(str(tmp_path / "out"))["counts"]["files"] == 4


# --- mirrors ----------------------------------------------------------------------------------------------------------


def test_a_mirror_gives_what_the_hub_gave(server, corpus, tmp_path, capsys):
    assert fetch("quratedpajama-260b", tmp_path / "hub") == 0
    place = tmp_path / "mirror" / "datasets" / CORPUS
    shutil.copytree(tmp_path / "hub" / "files", place)
    shutil.copy(tmp_path / "hub" / "files.json", place)
    before = len(server.requests)
    mirror = ["--mirror", tmp_path / "mirror"]
    assert fetch("quratedpajama-260b", tmp_path / "copy", *mirror) == 0
    assert len(server.requests) == before
    assert files_of(tmp_path / "copy" / "files") == files_of(tmp_path / "hub" / "files")
    both = [manifest.read(str(tmp_path / name))["counts"] for name in ("hub", "copy")]
    assert both[0] == both[1]
    assert (tmp_path / "copy" / "files.json").read_bytes() == (tmp_path / "hub" / "files.json").read_bytes()
    wrong = ["fetch", "quratedpajama-260b", *mirror, "--revision", "f" * 40, "--output", tmp_path / "other"]
    assert error_of(capsys, *wrong) == f"{place}: holds commit {corpus}, not {'f' * 40}"
    content = (place / SHARDS[1]).read_bytes()
    (place / SHARDS[1]).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    message = error_of(capsys, "fetch", "quratedpajama-260b", *mirror, "--output", tmp_path / "spoilt")
    assert f"{SHARDS[1]}: expected sha256" in message
    assert not (tmp_path / "spoilt" / "files").exists()
    assert "holds another run (inputs.mirror" in error_of(
        capsys, "fetch", "quratedpajama-260b", *mirror, "--output", tmp_path / "copy"
    )


def test_a_mirror_as_hf_download_lays_it_out(server, rater, tmp_path, capsys):
    """The folder is made by the client's own download."""
    commit = server.add("models", RATER, files_of(rater), lfs={"model.safetensors"})
    place = tmp_path / "mirror" / RATER
    program = "import sys, huggingface_hub as h; h.snapshot_download(sys.argv[1], local_dir=sys.argv[2])"
    settings = environment(server) | {"HF_HOME": str(tmp_path / "home")}
    argv = [sys.executable, "-c", program, RATER, place]
    made = subprocess.run(argv, env=settings, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    assert fetch("qurater-1.3b", tmp_path / "out", "--mirror", tmp_path / "mirror") == 0
    assert files_of(tmp_path / "out" / "hf") == files_of(rater)
    assert manifest.read(str(tmp_path / "out"))["counts"]["commit"] == commit
    message = error_of(capsys, "fetch", "judgments", "--mirror", tmp_path / "mirror", "--output", tmp_path / "none")
    assert f"has no {JUDGMENTS}" in message
