"""train-lm from a model of the hub: it is compared with the tokens by its own tokenizer, where it has one."""

import functools
import http.server
import json
import os
import subprocess
import sys
import threading
import urllib.parse

import lm_runs

from qurating_jax.data.tokenizer import load_tokenizer, train_byte_level_bpe

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 384, "hidden_size": 16,
    "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2,
    "max_position_embeddings": 16, "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": False,
}  # fmt: skip
# The hub's address and offline mode are read when its client is imported: hence a process of its own.
PROGRAM = """
import sys
from qurating_jax.data.token_sets import open_token_sets
from qurating_jax.runtime.errors import UserError
from qurating_jax.training.lm_fit import base_model
from qurating_jax.training.lm_options import LmOptions
tokens, *models = sys.argv[1:]
for model in models:
    try:
        base_model(LmOptions(tokens=(tokens,), model=model), open_token_sets([tokens]))
        print("accepted")
    except UserError as error:
        print("error:", error)
"""


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub's protocol as a snapshot download needs; `root/NAME` is the repository `owner/NAME`."""

    def __init__(self, *arguments, root):
        self.root = root
        super().__init__(*arguments)

    def do_GET(self):
        words = urllib.parse.urlsplit(self.path).path.strip("/").split("/")
        api = words[:2] == ["api", "models"]
        directory = self.root / words[3 if api else 1]
        files = sorted(path.name for path in directory.iterdir())
        if api and words[4] == "revision":
            listed = [{"rfilename": name} for name in files]
            self.reply(json.dumps({"id": f"owner/{directory.name}", "sha": COMMIT, "siblings": listed}).encode())
        elif api:
            tree = [{"type": "file", "path": name, "size": (directory / name).stat().st_size, "oid": name}
                    for name in files]  # fmt: skip
            self.reply(json.dumps(tree).encode())
        elif words[-1] not in files:
            self.send_error(404)
        else:
            self.reply((directory / words[-1]).read_bytes(), ETag=f'"{directory.name}-{words[-1]}"')

    do_HEAD = do_GET

    def reply(self, content, **headers):
        self.send_response(200)
        for key, value in ({"Content-Length": str(len(content)), "X-Repo-Commit": COMMIT} | headers).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


def test_a_hub_model_s_own_tokenizer_is_compared_where_it_has_one(tmp_path):
    lm_runs.make_tokens(tmp_path, num_documents=30)
    root = tmp_path / "hub"
    for name in ("same", "none", "other"):
        (root / name).mkdir(parents=True)
        (root / name / "config.json").write_text(json.dumps(CONFIG))
    load_tokenizer(str(tmp_path / "tokenizer")).save(str(root / "same"))
    train_byte_level_bpe(["kittens sleep and sleep"] * 3, 280).save(str(root / "other"))
    handler = functools.partial(Hub, root=root)
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "http", "HTTP"))}
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        clean |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "home")}
        clean |= {"PYTHONPATH": str(lm_runs.REPOSITORY)}
        names = ["owner/same", "owner/none", "owner/other"]
        found = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(tmp_path / "tokens"), *names],
            env=clean, capture_output=True, text=True, check=False,
        )  # fmt: skip
        server.shutdown()
        thread.join()
    assert found.returncode == 0, found.stderr
    lines = found.stdout.splitlines()
    assert lines[:2] == ["accepted", "accepted"], found.stdout
    refused = f"error: owner/other: its tokenizer is not the one of {tmp_path / 'tokens'}; tokenize with --tokenizer"
    assert lines[2:] == [f"{refused} owner/other"]
