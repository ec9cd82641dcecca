import contextlib
import http.server
import json
import os
import subprocess
import sys
import threading
import urllib.parse

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from qurating_jax.data.tokenizer import EOS_TOKEN, TextTokenizer, load_tokenizer, train_byte_level_bpe
from qurating_jax.runtime import manifest
from qurating_jax.runtime.errors import UserError

FILES = ("gpt-neox-20b-pii-special.json", "redpajama-incite-neox.tokenizer.json", "llama-test-tokenizer.json")
NASTY = (
    "",
    " ",
    " leading space",
    "trailing \n",
    "\n\n\n\t\r\n",
    "a" + " " * 5000 + "b",
    "=" * 3000,
    "\x00NUL\x00 and \x07",
    "🙂👩‍👩‍👧 🇫🇷",
    "e\u0301 \u00e9 ﬁ Å \u212b",
    "שלום 日本語 नमस्ते",
    "\ufffd\ufeff\u200b\U0010ffff",
    "a</s>b </s> <s>",
    "a<|endoftext|>b<|padding|>",
    "|||EMAIL_ADDRESS||| |||IP_ADDRESS|||",
    "def f(x):\n        return x  # code",
)
CORPUS = [
    "The quick brown fox jumps over the lazy dog. " * 3,
    "naïve café\n\n  indented",
    "0123456789 " * 9,
    "🙂" * 5,
] * 4


@pytest.fixture(scope="module")
def small():
    return train_byte_level_bpe(CORPUS, 320)


def fast(path, **kwargs):
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_file=str(path), **kwargs)


@pytest.mark.torch
@pytest.mark.parametrize(("name", "eos_id"), list(zip(FILES, (0, 0, 2), strict=True)))
def test_ids_are_those_of_transformers(real_data, name, eos_id):
    path = real_data / "tokenizers" / name
    theirs, ours = fast(path), load_tokenizer(str(path))
    encoded = ours.encode(NASTY)
    for text, ids in zip(NASTY, encoded, strict=True):
        assert ids.dtype == np.int32
        assert ids.tolist() == theirs(text, add_special_tokens=False)["input_ids"], text
    assert len(encoded[0]) == 0
    assert ours.vocab_size == max(theirs.get_vocab().values()) + 1
    assert ours.eos_id == eos_id  # of a bare file: by the usual names
    # In one batch or one by one, nothing changes.
    for text, ids in zip(NASTY, encoded, strict=True):
        np.testing.assert_array_equal(ours.encode([text])[0], ids)


@pytest.mark.torch
@pytest.mark.parametrize("name", [FILES[0], FILES[2]])
def test_saved_directory_gives_the_same_ids_in_transformers(real_data, tmp_path, name):
    from transformers import AutoTokenizer

    ours = load_tokenizer(str(real_data / "tokenizers" / name))
    ours.save(str(tmp_path))
    # As in an exported model, whose config would let AutoTokenizer prefer the model family's own class.
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    theirs = AutoTokenizer.from_pretrained(str(tmp_path))
    for text, ids in zip(NASTY, ours.encode(NASTY), strict=True):
        assert ids.tolist() == theirs(text, add_special_tokens=False)["input_ids"], text
    assert theirs.eos_token_id == ours.eos_id
    again = load_tokenizer(str(tmp_path))
    assert (again.identity, again.eos_id, again.vocab_size) == (ours.identity, ours.eos_id, ours.vocab_size)


@pytest.mark.torch
def test_vocabulary_and_merges_without_a_tokenizer_json(real_data, tmp_path):
    from transformers import AutoTokenizer, GPT2TokenizerFast

    directory = str(real_data / "tokenizers" / "gpt2")
    ours, theirs = load_tokenizer(directory), GPT2TokenizerFast.from_pretrained(directory)
    for text, ids in zip(NASTY, ours.encode(NASTY), strict=True):
        assert ids.tolist() == theirs(text, add_special_tokens=False)["input_ids"], text
    assert (ours.eos_id, ours.vocab_size) == (50256, 50257)
    ours.save(str(tmp_path))
    saved = AutoTokenizer.from_pretrained(str(tmp_path))
    assert [saved(text, add_special_tokens=False)["input_ids"] for text in NASTY] == [
        x.tolist() for x in ours.encode(NASTY)
    ]
    assert load_tokenizer(str(tmp_path)).identity == ours.identity


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, EOS_TOKEN),
        ({"tokenizer_config.json": {"eos_token": "a"}}, "a"),
        ({"tokenizer_config.json": {"eos_token": {"__type": "AddedToken", "content": "b"}}}, "b"),
        ({"special_tokens_map.json": {"eos_token": {"content": "c"}}}, "c"),
        ({"tokenizer_config.json": {"eos_token": "a"}, "special_tokens_map.json": {"eos_token": "c"}}, "a"),
        ({"config.json": {"eos_token_id": 5}}, 5),
        ({"config.json": {"eos_token_id": [6, 7]}}, 6),
        ({"config.json": {"eos_token_id": 10**6}}, EOS_TOKEN),
        ({"tokenizer_config.json": {"eos_token": "a"}, "config.json": {"eos_token_id": 5}}, "a"),
        ({"tokenizer_config.json": {"eos_token": "not in the vocabulary"}}, EOS_TOKEN),
        ({"tokenizer_config.json": {"eos_token": None}}, EOS_TOKEN),
    ],
)
def test_end_of_text_in_a_directory(small, tmp_path, files, expected):
    small.save(str(tmp_path))
    (tmp_path / "tokenizer_config.json").unlink()
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    vocabulary = json.loads((tmp_path / "tokenizer.json").read_text())["model"]["vocab"]
    assert load_tokenizer(str(tmp_path)).eos_id == (expected if isinstance(expected, int) else vocabulary[expected])


def test_no_end_of_text():
    from tokenizers import Tokenizer, models

    tokenizer = TextTokenizer(Tokenizer(models.WordLevel({"a": 0, "[UNK]": 7}, "[UNK]")).to_str(), source="here")
    assert tokenizer.eos_id is None
    assert tokenizer.vocab_size == 8  # the largest id plus one, although there are two tokens


def test_identity_is_of_what_decides_the_ids(small, tmp_path):
    small.save(str(tmp_path))
    path = tmp_path / "tokenizer.json"
    plain = json.loads(path.read_text())

    def changed(**values):
        path.write_text(json.dumps({**plain, **values}))
        return load_tokenizer(str(path))

    ids = small.encode(["The quick brown fox"])[0]
    truncation = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    padding = {"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
               "pad_type_id": 0, "pad_token": EOS_TOKEN}  # fmt: skip
    cut = changed(truncation=truncation, padding=padding)
    np.testing.assert_array_equal(cut.encode(["The quick brown fox"])[0], ids)
    assert len(ids) > 2
    assert cut.identity == small.identity == load_tokenizer(str(tmp_path)).identity
    template = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": EOS_TOKEN, "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}}], "pair": [], "special_tokens":
                {EOS_TOKEN: {"id": EOS_TOKEN, "ids": [0], "tokens": [EOS_TOKEN]}}}  # fmt: skip
    assert changed(post_processor=template).identity == small.identity
    assert changed(normalizer={"type": "Lowercase"}).identity != small.identity
    fewer = {**plain["model"], "merges": plain["model"]["merges"][:-1]}
    assert changed(model=fewer).identity != small.identity


def test_dropout_is_switched_off(small, tmp_path):
    small.save(str(tmp_path))
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["model"]["dropout"] = 0.5
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    noisy = load_tokenizer(str(tmp_path))
    assert noisy.identity == small.identity
    for expected, got in zip(small.encode(CORPUS * 20), noisy.encode(CORPUS * 20), strict=True):
        np.testing.assert_array_equal(got, expected)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
@example(text="\x00")
@example(text="  \u2028 " * 50)
@example(text=f"a{EOS_TOKEN}b")
def test_a_trained_tokenizer_knows_every_text(small, text):
    ids = small.encode([text])[0]
    assert small.decode(ids) == text
    assert (ids < small.vocab_size).all()


def test_training_does_not_depend_on_the_process(small):
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); from test_tokenizer import CORPUS, train_byte_level_bpe as train;"
        "print(train(iter(CORPUS), 320).identity)"
    )
    for seed, parallel in (("1", "true"), ("2", "false")):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "TOKENIZERS_PARALLELISM": parallel}
        here = os.path.dirname(__file__)
        answer = subprocess.run([sys.executable, "-c", program, here], capture_output=True, text=True, env=environment)
        assert answer.stdout.strip() == small.identity, answer.stderr


def test_trained_vocabulary_is_bytes_end_of_text_and_merges():
    smallest = train_byte_level_bpe(["abc abc"], 257)
    assert (smallest.vocab_size, smallest.eos_id) == (257, 0)
    assert len(smallest.encode(["abc"])[0]) == 3
    # By hand: the most frequent pair of a word list is merged first; "ab" stands in all five words.
    one = train_byte_level_bpe(["ab abab ab ab"], 258)
    assert [len(ids) for ids in one.encode(["ab", "abab", "ba"])] == [1, 2, 2]


@pytest.mark.parametrize(
    ("texts", "message"),
    [(["fine", "bad \ud800"], "text 1 is not valid Unicode.*D800 at 4"), (["fine", None], "text 1 is a NoneType")],
)
def test_what_is_not_text_is_named(small, texts, message):
    with pytest.raises(ValueError, match=message):
        small.encode(texts)


def test_nothing_to_encode(small):
    assert small.encode([]) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not valid JSON"),
        ("[1]", "no model"),
        ("{}", "no model"),
        ('{"model": {"type": "x"}}', "not a tokenizer.json"),
    ],
)
def test_a_broken_file_is_named(tmp_path, content, message):
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    for place in (path, tmp_path):
        with pytest.raises(UserError, match=f"tokenizer.json|{tmp_path}") as caught:
            load_tokenizer(str(place))
        assert message in str(caught.value)


def test_where_there_is_no_tokenizer(tmp_path):
    with pytest.raises(UserError, match="no tokenizer there"):
        load_tokenizer(str(tmp_path))
    for missing in ("./nowhere", "runs/a/b/c", "/nowhere/at/all", "missing/tokenizer.json"):
        with pytest.raises(UserError, match="no such path"):
            load_tokenizer(missing)


@pytest.mark.torch
def test_a_directory_that_cannot_be_converted(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"not sentencepiece")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    with pytest.raises(UserError, match="could not be converted"):
        load_tokenizer(str(tmp_path))


def test_code_of_a_repository_is_neither_run_nor_saved(small, tmp_path):
    small.save(str(tmp_path / "source"))
    config = {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}, "eos_token": EOS_TOKEN, "chat_template": "{{ x }}",
              "tokenizer_class": "Evil", "pad_token": "not there"}  # fmt: skip
    (tmp_path / "source" / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "source" / "evil.py").write_text("raise SystemExit('ran')")
    loaded = load_tokenizer(str(tmp_path / "source"))
    loaded.save(str(tmp_path / "copy"))
    assert sorted(os.listdir(tmp_path / "copy")) == ["tokenizer.json", "tokenizer_config.json"]
    assert json.loads((tmp_path / "copy" / "tokenizer_config.json").read_text()) == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": EOS_TOKEN,
        "chat_template": "{{ x }}",
    }


def test_an_unfinished_stage_output_is_refused(small, tmp_path):
    output = str(tmp_path)
    run = manifest.begin(output, stage="train-tokenizer", config={}, identity={}, inputs={}, overwrite=False)
    small.save(output)
    with pytest.raises(UserError, match="unfinished output of `qurating train-tokenizer`"):
        load_tokenizer(output)
    manifest.finish(run, {})
    assert load_tokenizer(output).identity == small.identity


COMMIT = "0123456789" * 4


@contextlib.contextmanager
def hub(files):
    """A hub on the loopback with one repository, `owner/name`; yields its address and the list of paths asked for."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            path = urllib.parse.urlsplit(self.path).path
            name = path.rsplit("/", 1)[-1]
            asked.append(path)
            if path.startswith("/api/models/owner/name/revision/"):
                listed = [{"rfilename": name} for name in files]
                self.answer(json.dumps({"id": "owner/name", "sha": COMMIT, "siblings": listed}).encode())
            elif path.startswith("/api/models/owner/name/tree/"):
                tree = [{"type": "file", "path": name, "size": len(data), "oid": name} for name, data in files.items()]
                self.answer(json.dumps(tree).encode())
            elif path.startswith(f"/owner/name/resolve/{COMMIT}/") and name in files:
                self.answer(files[name], ETag=f'"{name}"', **{"X-Repo-Commit": COMMIT})
            else:
                self.answer(b"{}", status=404, **{"X-Error-Code": "RepoNotFound"})

        do_HEAD = do_GET

        def answer(self, body, status=200, **headers):
            self.send_response(status)
            for key, value in {"Content-Type": "application/json", "Content-Length": len(body), **headers}.items():
                self.send_header(key, str(value))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()
        thread.join()


def test_hub(small, tmp_path):
    small.save(str(tmp_path / "saved"))
    files = {name: (tmp_path / "saved" / name).read_bytes() for name in os.listdir(tmp_path / "saved")}
    files |= {"model.safetensors": b"weights", "evil.py": b"raise SystemExit('ran')"}
    # A process of its own: the hub's address and offline mode are read when its client is imported.
    program = (
        "import sys\n"
        "from qurating_jax.data.tokenizer import load_tokenizer\n"
        "from qurating_jax.runtime.errors import UserError\n"
        "for name in sys.argv[1:]:\n"
        "    try:\n"
        "        loaded = load_tokenizer(name, revision='main')\n"
        "        print(loaded.source, loaded.identity)\n"
        "    except UserError as error:\n"
        "        print('UserError', error)\n"
    )

    def ask(*names, **environment):
        environment = {**os.environ, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_TELEMETRY": "1", **environment}
        command = [sys.executable, "-c", program, *names]
        answer = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
        assert answer.returncode == 0, answer.stderr
        return answer.stdout.splitlines()

    with hub(files) as (address, asked):
        found, missing = ask("owner/name", "owner/missing", HF_ENDPOINT=address, HF_HUB_OFFLINE="0")
        assert found == f"owner/name@{COMMIT} {small.identity}"
        assert missing.startswith("UserError owner/missing@main: neither a path here nor a repository")
        assert not any("safetensors" in path or "evil" in path for path in asked)
        num_asked = len(asked)
        cached, missing = ask("owner/name", "owner/missing", HF_ENDPOINT=address, HF_HUB_OFFLINE="1")
        assert cached == found
        assert "HF_HUB_OFFLINE is set" in missing
        assert len(asked) == num_asked


@pytest.mark.torch
def test_what_auto_tokenizer_does_beside_a_qwen2_model_is_known(real_data, tmp_path, caplog):
    """It rebuilds whatever stands there: right for a tokenizer that splits as Qwen2's, else said on export."""
    import jax
    from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer

    from qurating_jax.models import llama
    from qurating_jax.models.config import DecoderConfig
    from qurating_jax.training.fit import export

    gpt2 = real_data / "tokenizers" / "gpt2"
    Qwen2Tokenizer.from_pretrained(str(gpt2)).save_pretrained(str(tmp_path / "qwen2"))
    config = DecoderConfig(vocab_size=50304, embed_dim=16, num_layers=1, family="qwen2", qkv_bias=True)
    params = jax.jit(lambda key: llama.init(config, key))(jax.random.key(0))
    for name, source, rebuilt in (("one", tmp_path / "qwen2", True), ("other", gpt2, False)):
        ours = load_tokenizer(str(source))
        assert ours.is_qwen2 == rebuilt
        caplog.clear()
        export(str(tmp_path / name), params, config, ours)
        assert ("PreTrainedTokenizerFast.from_pretrained" in caplog.text) != rebuilt
        texts = [*NASTY, "in 1815", "e\u0301"]
        want = [ids.tolist() for ids in ours.encode(texts)]
        auto = AutoTokenizer.from_pretrained(str(tmp_path / name))
        assert ([auto(text, add_special_tokens=False)["input_ids"] for text in texts] == want) == rebuilt
        plain = PreTrainedTokenizerFast.from_pretrained(str(tmp_path / name))
        assert [plain(text, add_special_tokens=False)["input_ids"] for text in texts] == want
