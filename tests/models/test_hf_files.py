"""Hugging Face directories that are wrong, foreign or far away; new heads on old trunks."""

import dataclasses
import functools
import http.server
import json
import os
import subprocess
import sys
import threading
import urllib.parse

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_models import LM, QWEN2, QWEN3, RATER, assert_trees_equal, one_device, random_params

from qurating_jax.models import hf
from qurating_jax.models.hf_config import from_hf, to_hf
from qurating_jax.parallel.mesh import make_mesh
from qurating_jax.parallel.options import MeshShape
from qurating_jax.runtime.errors import UserError

LABELS = ("writing_style", "facts_and_trivia", "required_expertise")


@pytest.fixture
def lm_directory(tmp_path):
    hf.save(str(tmp_path / "lm"), random_params(LM), LM)
    return tmp_path / "lm"


@pytest.fixture
def sharded_directory(tmp_path):
    hf.save(str(tmp_path / "sharded"), random_params(LM), LM, max_file_bytes=10_000)
    return tmp_path / "sharded"


def load(directory, **options):
    return hf.load(str(directory), one_device(), **options)


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(path, **changes):
    """Replaces tensors; None removes one."""
    tensors = load_file(path) | {name.replace("__", "."): tensor for name, tensor in changes.items()}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)


def one_line(caught):
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- weights that do not fit ------------------------------------------------------------------------------------------


def test_missing_and_unexpected_tensors_are_listed_together(lm_directory):
    edit_tensors(lm_directory / hf.WEIGHTS, model__norm__weight=None, extra__weight=np.zeros(3, np.float32))
    with pytest.raises(UserError, match=r"missing: model\.norm\.weight; unexpected: extra\.weight$") as caught:
        load(lm_directory)
    assert str(lm_directory) in one_line(caught)


def test_a_long_list_of_missing_tensors_is_shortened(lm_directory):
    edit_json(lm_directory / hf.CONFIG, num_hidden_layers=4)
    with pytest.raises(
        UserError, match=r"missing: (model\.layers\.\d\.[a-z_.]+, ){7}\S+ and 10 more; unexpected: none$"
    ):
        load(lm_directory)


def test_wrong_shape(lm_directory):
    edit_tensors(lm_directory / hf.WEIGHTS, model__norm__weight=np.ones(31, np.float32))
    with pytest.raises(UserError, match=r"model\.norm\.weight has shape \(31,\), expected \(32,\)"):
        load(lm_directory)


def test_transposed_matrix(lm_directory):
    name = "model.layers.1.mlp.gate_proj.weight"
    tensors = load_file(lm_directory / hf.WEIGHTS)
    save_file(tensors | {name: np.ascontiguousarray(tensors[name].T)}, lm_directory / hf.WEIGHTS)
    with pytest.raises(UserError, match=r"layers\.1\.mlp\.gate_proj\.weight has shape \(32, 48\), expected \(48, 32\)"):
        load(lm_directory)


@pytest.mark.parametrize("kept", [0, 5, 2_000, -100], ids=["empty", "header-size", "header", "data"])
def test_truncated_safetensors(lm_directory, kept):
    path = lm_directory / hf.WEIGHTS
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"model\.safetensors: broken safetensors file") as caught:
        load(lm_directory)
    one_line(caught)


@pytest.mark.parametrize("name", ["../evil.safetensors", "/etc/evil.safetensors", "model.bin", "..", "", 7])
def test_index_may_only_name_safetensors_files_beside_it(sharded_directory, name):
    index = json.loads((sharded_directory / hf.INDEX).read_text())
    index["weight_map"]["lm_head.weight"] = name
    (sharded_directory / hf.INDEX).write_text(json.dumps(index))
    with pytest.raises(UserError, match="is not a safetensors file beside the index"):
        load(sharded_directory)


def test_index_that_names_an_absent_file(sharded_directory):
    first = min(sharded_directory.glob("*.safetensors"))
    first.unlink()
    with pytest.raises(UserError, match=rf"{first.name} is missing, but {hf.INDEX} lists it"):
        load(sharded_directory)


def test_index_that_promises_what_its_file_lacks(sharded_directory):
    first = min(sharded_directory.glob("*.safetensors"))
    edit_tensors(first, model__embed_tokens__weight=None, other=np.zeros(1, np.float32))
    with pytest.raises(UserError, match=rf"model\.embed_tokens\.weight in {first.name}, which lacks it"):
        load(sharded_directory)


@pytest.mark.parametrize("text", ["[]", "{}", '{"weight_map": []}', "{"])
def test_broken_index(sharded_directory, text):
    (sharded_directory / hf.INDEX).write_text(text)
    with pytest.raises(UserError, match=r"index\.json: (no `weight_map`|not valid JSON)"):
        load(sharded_directory)


def test_pickles_are_not_read(lm_directory):
    (lm_directory / hf.WEIGHTS).unlink()
    (lm_directory / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(UserError, match=r"no model\.safetensors and no .*pickle files are not read"):
        load(lm_directory)


def test_inverse_frequencies_of_old_checkpoints_are_passed_over(lm_directory):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    path = lm_directory / hf.WEIGHTS
    save_file(load_file(path) | {name: np.ones(4, np.float32)}, path)
    assert_trees_equal(load(lm_directory), random_params(LM))


# --- configs that cannot be honoured ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2' is not supported .known: llama, mistral, qwen2, qwen3"),
        ({"model_type": None}, "model_type None is not supported"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope scaling 'yarn' is not supported"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rope scaling 'dynamic' is not supported"),
        ({"rope_scaling": {"rope_type": "linear"}}, "key 'factor' is missing"),
        ({"attention_bias": True}, "attention_bias True is not supported"),
        ({"mlp_bias": True}, "mlp_bias True is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
        ({"quantization_config": {"bits": 4}}, "quantization_config .* is not supported"),
        ({"model_type": "qwen2", "use_sliding_window": True}, "use_sliding_window mixes two kinds of layers"),
        ({"architectures": ["LlamaForTokenClassification"]}, "neither ...ForCausalLM nor ...ForSequenceClassification"),
        ({"architectures": None}, "neither ...ForCausalLM nor ...ForSequenceClassification"),
        ({"num_key_value_heads": 3}, "num_heads .4. must be a multiple of num_kv_heads .3."),
    ],
)
def test_unsupported_configs_are_refused_by_name(lm_directory, changes, message):
    edit_json(lm_directory / hf.CONFIG, **changes)
    with pytest.raises(UserError, match=message) as caught:
        load(lm_directory)
    one_line(caught)


def test_missing_config_key_and_broken_config(lm_directory):
    path = lm_directory / hf.CONFIG
    document = json.loads(path.read_text())
    del document["vocab_size"]
    path.write_text(json.dumps(document))
    with pytest.raises(UserError, match=r"config\.json: key 'vocab_size' is missing"):
        hf.read_config(str(lm_directory))
    path.write_text("[]")
    with pytest.raises(UserError, match="not a JSON object"):
        hf.read_config(str(lm_directory))


@pytest.mark.parametrize("config", [LM, QWEN2, QWEN3, RATER], ids=["llama", "qwen2", "qwen3", "rater"])
def test_config_survives_the_round_trip(config):
    labels = LABELS[: config.num_criteria]
    document = to_hf(config, labels, dtype="float32", special_tokens={})
    assert from_hf(json.loads(json.dumps(document)), where="here") == (config, labels)


def test_rater_without_label_names_gets_transformers_own(lm_directory):
    edit_json(lm_directory / hf.CONFIG, architectures=["LlamaForSequenceClassification"])
    config, labels = hf.read_config(str(lm_directory))
    assert (config.num_criteria, labels) == (2, ("LABEL_0", "LABEL_1"))


def test_labels_are_ordered_by_number():
    document = to_hf(LM.with_head(11), [f"c{i}" for i in range(11)], dtype="float32", special_tokens={})
    document["id2label"] = dict(sorted(document["id2label"].items()))  # 0, 1, 10, 2 ...
    assert from_hf(document, where="here")[1] == tuple(f"c{i}" for i in range(11))


# --- heads ------------------------------------------------------------------------------------------------------------


def test_language_model_as_a_rater_keeps_the_trunk_and_gets_a_new_head(lm_directory):
    lm = load(lm_directory)
    rater = load(lm_directory, config=LM.with_head(4), seed=5)
    assert rater["head"]["kernel"].shape == (LM.embed_dim, 4)
    assert 0.01 < float(np.std(rater["head"]["kernel"])) < 0.03
    trunk = [key for key in lm if key != "head"]
    assert_trees_equal({key: rater[key] for key in trunk}, {key: lm[key] for key in trunk})
    other = load(lm_directory, config=LM.with_head(4), seed=6)
    assert not np.array_equal(other["head"]["kernel"], rater["head"]["kernel"])


def test_new_head_is_the_same_on_every_mesh(lm_directory):
    mesh = make_mesh(MeshShape(data=2, fsdp=2, tensor=2))
    split = hf.load(str(lm_directory), mesh, config=LM.with_head(4), seed=5)
    assert_trees_equal(split, load(lm_directory, config=LM.with_head(4), seed=5))


def test_tied_language_model_as_a_rater_and_back(tmp_path):
    params = random_params(QWEN3)
    hf.save(str(tmp_path / "lm"), params, QWEN3)
    rater = load(tmp_path / "lm", config=QWEN3.with_head(3), seed=0)
    assert set(rater) == {"embed", "blocks", "norm", "head"}
    hf.save(str(tmp_path / "rater"), rater, QWEN3.with_head(3), labels=LABELS)
    assert_trees_equal(load(tmp_path / "rater", config=QWEN3, seed=0), params)  # its head is its embedding


def test_another_number_of_criteria_needs_a_seed_and_gets_a_new_head(tmp_path):
    hf.save(str(tmp_path), random_params(RATER), RATER, labels=LABELS)
    assert load(tmp_path, config=LM.with_head(1), seed=0)["head"]["kernel"].shape == (LM.embed_dim, 1)
    with pytest.raises(UserError, match=r"has a rater's head of 3 score\(s\), but a language-model head is wanted"):
        load(tmp_path, config=LM)


def test_another_trunk_is_refused_with_the_difference(lm_directory):
    with pytest.raises(UserError, match=r"another architecture than asked for \(mlp_dim: 48 there, 50 asked\)"):
        load(lm_directory, config=dataclasses.replace(LM, mlp_dim=50))


# --- export -----------------------------------------------------------------------------------------------------------


def test_export_wants_one_label_per_criterion_and_the_config_s_parameters(tmp_path):
    with pytest.raises(ValueError, match="2 labels for 3 criteria"):
        hf.save(str(tmp_path), random_params(RATER), RATER, labels=LABELS[:2])
    with pytest.raises(ValueError, match="query_bias"):
        hf.save(str(tmp_path), random_params(QWEN2), LM)


@pytest.mark.parametrize("sizes", [(10_000, 10**9), (10**9, 10_000), (10_000, 20_000)])
def test_second_export_into_a_directory_leaves_nothing_of_the_first(tmp_path, sizes):
    for seed, size in enumerate(sizes):
        hf.save(str(tmp_path), random_params(LM, seed), LM, max_file_bytes=size)
    assert_trees_equal(load(tmp_path), random_params(LM, 1))
    index = tmp_path / hf.INDEX
    listed = set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else {hf.WEIGHTS}
    assert {path.name for path in tmp_path.glob("*safetensors*")} - {hf.INDEX} == listed


def test_interrupted_export_is_not_a_model_directory(tmp_path, monkeypatch):
    hf.save(str(tmp_path), random_params(LM, 0), LM)
    monkeypatch.setattr(hf, "_host_tensors", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        hf.save(str(tmp_path), random_params(LM, 1), LM)
    with pytest.raises(UserError, match=r"no config\.json"):
        hf.resolve(str(tmp_path))


# --- the hub ----------------------------------------------------------------------------------------------------------

RESOLVE = """
import sys
from qurating_jax.models import hf
from qurating_jax.runtime.errors import UserError
for name in sys.argv[1:]:
    try:
        print(hf.resolve(name))
    except UserError as error:
        print("error:", error)
"""


def resolve_in_subprocess(home, *names, **environment):
    """`HF_*` variables are read when huggingface_hub is imported, hence the fresh interpreter."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "http", "HTTP"))}
    result = subprocess.run(
        [sys.executable, "-c", RESOLVE, *names],
        env=clean | {"HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1"} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout.splitlines()


def test_resolve_of_paths(lm_directory, tmp_path):
    assert hf.resolve(str(lm_directory)) == str(lm_directory)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no config\.json; not a Hugging Face model directory"):
        hf.resolve(str(tmp_path / "empty"))
    for name in ("./nowhere", str(tmp_path / "nowhere"), "~/nowhere", "a/b/c", "word"):
        with pytest.raises(UserError, match=r"no such directory, and not a hub id \(owner/name\)"):
            hf.resolve(name)


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub's protocol as a snapshot download needs."""

    COMMIT = "0123456789abcdef0123456789abcdef01234567"

    def __init__(self, *arguments, directory, served):
        self.directory, self.served = directory, served
        super().__init__(*arguments)

    def do_GET(self):
        path = urllib.parse.urlsplit(self.path).path
        files = sorted(path.name for path in self.directory.iterdir())
        name = path.rsplit("/", 1)[-1]
        if path.startswith("/api/models/owner/tiny/revision/") or path == "/api/models/owner/tiny":
            siblings = [{"rfilename": file} for file in files]
            self.reply(json.dumps({"id": "owner/tiny", "sha": self.COMMIT, "siblings": siblings}).encode(), {})
        elif path.startswith("/api/models/owner/tiny/tree/"):
            sizes = {file: (self.directory / file).stat().st_size for file in files}
            tree = [
                {"type": "file", "path": file, "size": sizes[file], "oid": f"{i:040x}"} for i, file in enumerate(files)
            ]
            self.reply(json.dumps(tree).encode(), {})
        elif path.startswith("/owner/tiny/resolve/") and name in files:
            if self.command == "GET":
                self.served.add(name)
            self.reply((self.directory / name).read_bytes(), {"X-Repo-Commit": self.COMMIT, "ETag": f'"{name}"'})
        else:
            self.send_error(404)

    do_HEAD = do_GET

    def reply(self, content, headers):
        self.send_response(200)
        for key, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


def test_hub_id_is_downloaded_then_found_offline_and_an_absent_one_is_one_line(lm_directory, tmp_path):
    (lm_directory / "pytorch_model.bin").write_bytes(b"never wanted")
    served = set()
    handler = functools.partial(Hub, directory=lm_directory, served=served)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        home = tmp_path / "home"
        online = resolve_in_subprocess(home, "owner/tiny", "owner/other", HF_ENDPOINT=endpoint, HF_HUB_OFFLINE="0")
        server.shutdown()
        thread.join()
    offline = resolve_in_subprocess(home, "owner/tiny", "owner/other", HF_HUB_OFFLINE="1")
    assert served == {hf.CONFIG, hf.WEIGHTS}
    assert len(online) == len(offline) == 2  # one line each, errors too
    assert online[0] == offline[0]
    for line in (online[1], offline[1]):
        assert line.startswith("error: owner/other: not a directory here, and the hub gave no snapshot (")
    assert "404" in online[1]
    assert "offline" in offline[1].lower()
    assert_trees_equal(load(online[0]), random_params(LM))
