"""Files of a hub and of a mirror: revisions, ranges, cuts, checksums, refusals; against a hub on loopback."""

import hashlib
import json
import os
import shutil
import threading

import fake_hub
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qurating_jax.runtime import downloads, hub, mirrors
from qurating_jax.runtime.downloads import Place, RemoteFile
from qurating_jax.runtime.errors import UserError
from qurating_jax.runtime.hub import Repository

MODEL, DATA = Repository("owner/model", "model"), Repository("owner/data", "dataset")
BIG = bytes(range(256)) * 12_000  # three pieces
FILES = {"config.json": b"{}", "model.safetensors": BIG, "sub/a b.txt": b"text\n", "empty.txt": b""}


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(hub, "_FIRST_WAIT_SECONDS", 0.01)
    with fake_hub.serve() as running:
        running.connect(monkeypatch)
        yield running


@pytest.fixture
def commit(server):
    server.add("datasets", "owner/data", {"data/train-00000-of-00001.parquet": b"rows"})
    return server.add("models", "owner/model", FILES, lfs={"model.safetensors"})


@pytest.fixture
def repo(server, commit):
    return server.repositories["models", "owner/model"]


def place(tmp_path):
    return Place(str(tmp_path / "whole"), str(tmp_path / "partial"))


def fetch(tmp_path, commit, **options):
    listing = hub.list_files(MODEL, commit)
    downloads.check_names(listing.files, "here")

    def read(file, offset):
        return hub.read(MODEL, commit, file, offset)

    downloads.download(listing.files, read, place(tmp_path), **({"num_workers": 2, "title": "test"} | options))


def content(tmp_path):
    root = tmp_path / "whole"
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def error_of(function, *arguments):
    with pytest.raises(UserError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    assert "Signature" not in str(caught.value)
    return str(caught.value)


# --- what there is ----------------------------------------------------------------------------------------------------


def test_a_listing_of_several_pages_states_size_and_checksum_of_every_file(commit):
    assert hub.resolve(MODEL, "main") == hub.resolve(MODEL, commit) == commit
    files = {file.name: file for file in hub.list_files(MODEL, commit).files}
    assert list(files) == sorted(FILES)
    assert {name: file.size for name, file in files.items()} == {name: len(value) for name, value in FILES.items()}
    assert files["model.safetensors"].sha256 == hashlib.sha256(BIG).hexdigest()
    # `git hash-object` of an empty file and of "{}" without a newline
    assert files["empty.txt"].git_sha1 == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"
    assert files["config.json"].git_sha1 == "9e26dfeeb6e641a33dae4961196235bdb965b21b"


def test_a_data_set_has_addresses_of_its_own(server, commit, tmp_path):
    commit = hub.resolve(DATA, "main")
    (file,) = hub.list_files(DATA, commit).files
    assert b"".join(hub.read(DATA, commit, file, 0)) == b"rows"
    assert b"".join(hub.read(DATA, commit, file, 2)) == b"ws"


def test_what_is_not_there_is_named(commit, server):
    assert error_of(hub.resolve, Repository("owner/none", "model"), "main").startswith(
        f"owner/none@main: no such model repository on {server.url}, or a private one"
    )
    assert error_of(hub.resolve, MODEL, "v2") == f"owner/model: has no revision v2 on {server.url}"
    gone = RemoteFile("gone.json", 3, None, "0" * 40)
    assert error_of(list, hub.read(MODEL, commit, gone, 0)) == f"owner/model@{commit}: {server.url} answers 404"


def test_offline_and_unreachable_are_one_line(commit, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert error_of(hub.resolve, MODEL, "main").startswith("owner/model: http://127.0.0.1:9 does not answer (")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in error_of(hub.resolve, MODEL, "main")


@pytest.mark.parametrize("token", [None, "another"])
def test_a_gated_repository_says_what_to_do_and_no_token(commit, repo, server, token, monkeypatch, tmp_path):
    repo.token = "hf_right"
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    message = error_of(fetch, tmp_path, commit)
    wanted = f"accept its terms at {server.url}/owner/model and set HF_TOKEN to a token of that account"
    assert message == f"owner/model: access is refused; {wanted}"
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    fetch(tmp_path, commit)
    assert content(tmp_path) == FILES


def test_the_token_goes_to_the_hub_alone(commit, repo, server, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    fetch(tmp_path, commit)
    for is_cdn, _, headers in server.requests:
        assert ("Authorization" in headers) is not is_cdn
    assert any(is_cdn for is_cdn, _, _ in server.requests)


# --- bytes ------------------------------------------------------------------------------------------------------------


def test_all_files_come_and_a_second_time_none_is_asked_for(commit, server, tmp_path):
    fetch(tmp_path, commit)
    assert content(tmp_path) == FILES
    before = dict(server.served)
    fetch(tmp_path, commit)
    assert server.served == before == {name: len(value) for name, value in FILES.items() if value}


def test_a_cut_connection_is_taken_up_where_it_broke(commit, repo, server, tmp_path):
    repo.cuts = {"model.safetensors": [1_500_000, 700_000, 0], "config.json": [1]}
    fetch(tmp_path, commit)
    assert content(tmp_path) == FILES
    assert server.served["model.safetensors"] == len(BIG)  # no byte twice
    assert server.served["config.json"] == 2


def test_a_server_without_ranges_still_gives_the_rest(commit, repo, server, tmp_path):
    repo.ranges, repo.cuts = False, {"model.safetensors": [1_500_000]}
    fetch(tmp_path, commit)
    assert content(tmp_path) == FILES
    assert server.served["model.safetensors"] == 1_500_000 + len(BIG)  # put together right at once


def test_a_busy_hub_is_asked_again_and_a_dead_one_given_up_with_what_has_come(commit, repo, tmp_path):
    repo.busy = {"config.json": [429, 503]}
    repo.cuts = {"model.safetensors": [1_100_000, *[0] * 6]}
    message = error_of(fetch, tmp_path, commit)
    assert "model.safetensors: stopped at byte 1100000 of 3072000" in message
    assert (tmp_path / "partial" / "model.safetensors").stat().st_size == 1_100_000
    fetch(tmp_path, commit)
    assert content(tmp_path) == FILES


def test_a_busy_hub_is_asked_again_what_there_is(commit, repo, server):
    repo.busy = {fake_hub.API: [429, 503]}
    assert hub.resolve(MODEL, "main") == commit
    repo.busy = {fake_hub.API: [429, 500]}
    assert len(hub.list_files(MODEL, commit).files) == len(FILES)
    repo.busy = {fake_hub.API: [429] * 6}
    assert error_of(hub.resolve, MODEL, "main") == f"owner/model@main: {server.url} is busy: it answers 429"
    assert repo.busy == {fake_hub.API: []}


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7),
        ({"RateLimit": '"resolvers";r=0;t=55'}, 55),
        ({"Retry-After": "7", "RateLimit": '"api";r=0;t=55'}, 7),
        ({"Retry-After": "Sat, 28 Nov 2026 05:40:00 GMT", "RateLimit": "x"}, 0),
        ({}, 0),
    ],
)
def test_how_long_a_busy_hub_wants_to_be_left_alone(headers, seconds):
    assert hub._Busy(429, headers).seconds == seconds
    assert hub._seconds(3, 0) == 4 * hub._FIRST_WAIT_SECONDS
    assert hub._seconds(1, seconds) == max(seconds, hub._FIRST_WAIT_SECONDS)
    assert hub._seconds(1, 1e9) == 300


def test_a_proxy_that_is_no_address_is_one_line_without_its_password(commit, monkeypatch):
    from huggingface_hub.utils import close_session

    close_session()
    monkeypatch.setenv("HTTP_PROXY", "http://user:secr/et@127.0.0.1:1")
    try:
        message = error_of(hub.resolve, MODEL, "main")
    finally:
        close_session()
    assert message.startswith("owner/model: an address is not well formed; look at HF_ENDPOINT, HTTPS_PROXY")
    assert "secr" not in message


def test_a_partial_file_is_continued_by_the_next_process(commit, server, tmp_path):
    (tmp_path / "partial").mkdir()
    (tmp_path / "partial" / "model.safetensors").write_bytes(BIG[:2_000_000])
    assert place(tmp_path).num_bytes(hub.list_files(MODEL, commit).files) == 2_000_000
    fetch(tmp_path, commit)
    assert content(tmp_path) == FILES
    assert server.served["model.safetensors"] == len(BIG) - 2_000_000


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "sub/a b.txt"])
@pytest.mark.parametrize("change", ["flipped", "short", "long"])
def test_wrong_content_is_fetched_once_more(commit, repo, tmp_path, name, change):
    right = FILES[name]
    wrong = {"flipped": bytes([right[0] ^ 1]) + right[1:], "short": right[:-1], "long": right + b"!"}[change]
    repo.wrong = {name: [wrong]}
    fetch(tmp_path, commit)
    assert content(tmp_path) == FILES


def test_content_that_stays_wrong_is_an_error_with_both_checksums_and_leaves_nothing(commit, repo, tmp_path):
    wrong = BIG[:-1] + b"?"
    repo.wrong = {"model.safetensors": [wrong, wrong]}
    message = error_of(fetch, tmp_path, commit)
    expected, found = (hashlib.sha256(value).hexdigest() for value in (BIG, wrong))
    assert message.startswith(f"model.safetensors: expected sha256 {expected}, found {found}, 2 times in a row")
    assert not (tmp_path / "whole" / "model.safetensors").exists()
    assert not (tmp_path / "partial" / "model.safetensors").exists()


def test_a_spoilt_partial_file_is_found_out(commit, tmp_path):
    (tmp_path / "partial" / "sub").mkdir(parents=True)
    (tmp_path / "partial" / "model.safetensors").write_bytes(b"?" * 1000)
    (tmp_path / "partial" / "config.json").write_bytes(b"far too long")
    fetch(tmp_path, commit)
    assert content(tmp_path) == FILES


def test_the_first_error_ends_the_other_workers(server, tmp_path):
    gate = threading.Event()
    commit = server.add("models", "owner/model", FILES, wrong={"config.json": [b"??", b"??"]},
                        hold={"model.safetensors": (1_100_000, gate)})  # fmt: skip
    timer = threading.Timer(0.5, gate.set)
    timer.start()
    assert "config.json: expected git blob" in error_of(fetch, tmp_path, commit)
    timer.join()
    left = (tmp_path / "partial" / "model.safetensors").stat().st_size
    assert 0 < left < len(BIG)


def test_progress_counts_bytes_from_what_was_there(commit, repo, tmp_path, monkeypatch):
    shown = []

    class Progress:
        def __init__(self, title, total, unit, *, start):
            shown.append((total, unit, start))

        def __enter__(self):
            return shown.append

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(downloads, "progress", Progress)
    (tmp_path / "partial").mkdir()
    (tmp_path / "partial" / "model.safetensors").write_bytes(BIG[:1000])
    repo.wrong = {"config.json": [b"??"]}
    fetch(tmp_path, commit)
    total = sum(map(len, FILES.values()))
    assert shown[0] == (total, "bytes", 1000)
    assert sum(shown[1:]) == total - 1000


# --- untrusted listings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../x", "a//x", "./x", "a\\x", "", "a/", "x\ny", "x\0"])
def test_names_that_could_lead_elsewhere_are_refused(commit, repo, tmp_path, name):
    repo.names = {"config.json": name}
    message = error_of(fetch, tmp_path, commit)
    assert message == f"here: lists a file called {name!r}, which is no plain path; nothing was fetched"
    assert not (tmp_path / "whole").exists()


def test_a_name_twice_is_refused(commit, repo, tmp_path):
    repo.names = {"config.json": "empty.txt"}
    assert error_of(fetch, tmp_path, commit) == "here: lists empty.txt twice; nothing was fetched"


def test_a_name_that_is_a_folder_of_another_is_refused(commit, repo, tmp_path):
    repo.names = {"config.json": "empty.txt/config.json"}
    message = error_of(fetch, tmp_path, commit)
    assert message == "here: lists empty.txt as a file and as a folder; nothing was fetched"


def test_a_name_that_is_no_text_is_no_answer_of_a_hub(commit, repo):
    repo.names = {"config.json": ["config.json"]}
    assert error_of(hub.list_files, MODEL, commit).endswith("(a file called ['config.json'])")


@given(st.text(min_size=1, max_size=12, alphabet="a./\\b \n~"))
def test_no_accepted_name_leaves_a_directory(name):
    try:
        downloads.check_names([RemoteFile(name, 0)], "here")
    except UserError:
        return
    inside = os.path.normpath(os.path.join("/srv/of/all", name))
    assert inside == f"/srv/of/all/{name}"


def test_a_disk_without_room_is_refused_at_once(tmp_path, monkeypatch):
    free = shutil.disk_usage(tmp_path).free
    downloads.require_space(str(tmp_path), 0)
    message = error_of(downloads.require_space, str(tmp_path), free * 2)
    assert "bytes are still to come, and the disk has" in message


# --- mirrors ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def mirror(tmp_path):
    for name, value in FILES.items():
        path = tmp_path / "mirror" / "owner" / "model" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(value)
    return tmp_path / "mirror"


def copy(mirror, tmp_path):
    found = mirrors.find(str(mirror), MODEL)
    listing = mirrors.list_files(found, str(mirror))

    def read(file, offset):
        return mirrors.read(found, str(mirror), file, offset)

    downloads.download(listing.files, read, place(tmp_path), num_workers=2, title="copy")
    return listing


def test_a_mirror_is_copied_without_hidden_files(mirror, tmp_path):
    (mirror / "owner" / "model" / ".gitattributes").write_text("hidden")
    assert copy(mirror, tmp_path).commit is None
    assert content(tmp_path) == FILES


def note(mirror, name, commit, etag):
    path = mirror / "owner/model/.cache/huggingface/download" / f"{name}.metadata"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{commit}\n{etag}\n1700000000.0\n")


def test_what_hf_download_noted_is_verified(mirror, tmp_path):
    for name, value in FILES.items():
        large = name == "model.safetensors"
        note(mirror, name, "a" * 40, hashlib.sha256(value).hexdigest() if large else fake_hub.git_sha1(value))
    assert copy(mirror, tmp_path).commit == "a" * 40
    shutil.rmtree(tmp_path / "whole")
    (mirror / "owner/model/model.safetensors").write_bytes(BIG[:-1] + b"?")
    assert "model.safetensors: expected sha256" in error_of(copy, mirror, tmp_path)
    (mirror / "owner/model/model.safetensors").write_bytes(BIG)
    note(mirror, "config.json", "b" * 40, fake_hub.git_sha1(b"{}"))
    assert copy(mirror, tmp_path).commit is None  # of two commits


def test_a_list_of_ours_is_verified_and_decides_what_there_is(mirror, tmp_path):
    files = tuple(RemoteFile(name, len(value), hashlib.sha256(value).hexdigest()) for name, value in FILES.items())
    mirrors.record(str(mirror / "owner/model/files.json"), MODEL, hub.Listing("c" * 40, files))
    (mirror / "owner/model/more.txt").write_text("not listed")
    assert copy(mirror, tmp_path).commit == "c" * 40
    assert content(tmp_path) == FILES
    shutil.rmtree(tmp_path / "whole")
    (mirror / "owner/model/config.json").write_text("{}!")
    assert "config.json: expected 2 bytes, found 3 or more" in error_of(copy, mirror, tmp_path)
    (mirror / "owner/model/config.json").unlink()
    assert "no such file" in error_of(copy, mirror, tmp_path)


@pytest.mark.parametrize(
    "document",
    [[], {}, {"schema_version": 2}, {"schema_version": 1, "commit": "x", "files": []},
     {"schema_version": 1, "commit": None, "files": [{"name": 1, "size": 2, "sha256": "a" * 64}]},
     {"schema_version": 1, "commit": None, "files": [{"name": "a", "size": -2, "sha256": "a" * 64}]},
     {"schema_version": 1, "commit": None, "files": [{"name": "a", "size": 2, "sha256": None}]}],
)  # fmt: skip
def test_a_list_that_is_not_ours_is_one_line(mirror, tmp_path, document):
    (mirror / "owner/model/files.json").write_text(json.dumps(document))
    assert "not the list of files that `qurating fetch` writes" in error_of(copy, mirror, tmp_path)


def test_links_are_followed_inside_the_mirror_alone(mirror, tmp_path):
    (mirror / "blobs").mkdir()
    (mirror / "owner/model/model.safetensors").rename(mirror / "blobs" / "one")
    (mirror / "owner/model/model.safetensors").symlink_to("../../blobs/one")
    copy(mirror, tmp_path)
    assert content(tmp_path) == FILES
    assert not (tmp_path / "whole" / "model.safetensors").is_symlink()
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    for target in (outside / "secret", outside):
        link = mirror / "owner/model/link"
        link.symlink_to(target)
        assert error_of(copy, mirror, tmp_path) == f"{link}: leads out of {mirror}, so it is not read"
        link.unlink()
    (mirror / "owner/model/link").symlink_to("sub")
    assert "a link to a folder, which is not followed" in error_of(copy, mirror, tmp_path)
    (mirror / "owner" / "other").symlink_to(outside)
    assert "leads out of" in error_of(mirrors.find, str(mirror), Repository("owner/other", "model"))


def test_a_mirror_without_the_repository_names_the_places(tmp_path):
    message = error_of(mirrors.find, str(tmp_path), DATA)
    assert message == (
        f"{tmp_path}: has no owner/data (looked for {tmp_path}/datasets/owner/data and {tmp_path}/owner/data)"
    )
    (tmp_path / "owner/data").mkdir(parents=True)
    assert mirrors.find(str(tmp_path), DATA) == f"{tmp_path}/owner/data"
    (tmp_path / "datasets/owner/data").mkdir(parents=True)
    assert mirrors.find(str(tmp_path), DATA) == f"{tmp_path}/datasets/owner/data"
