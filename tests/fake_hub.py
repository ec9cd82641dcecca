"""A Hugging Face Hub on loopback: as much of its protocol as listing and fetching files needs, with faults on demand.

As the real one does it: large files are LFS, which the listing gives with sha256, and their address redirects to
another server (the CDN), signed and without the token; small ones come from the hub itself. Listings have pages.
"""

import contextlib
import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

API = "/api"  # what is asked of a repository that is no file
_PAGE = 3  # small, so that listings of several pages occur


@dataclass
class Repo:
    """A repository: branch -> commit -> files, and how it misbehaves."""

    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    lfs: set[str] = field(default_factory=set)
    token: str | None = None  # gated: who brings another one, or none, gets 401 or 403 for files
    cuts: dict[str, list[int]] = field(default_factory=dict)  # name -> bytes after which each coming answer is cut
    wrong: dict[str, list[bytes]] = field(default_factory=dict)  # name -> what the coming answers hold instead
    busy: dict[str, list[int]] = field(default_factory=dict)  # name, or API -> statuses of the coming answers
    hold: dict[str, tuple[int, threading.Event]] = field(default_factory=dict)  # name -> bytes, then wait
    names: dict[str, str] = field(default_factory=dict)  # listed under another name
    ranges: bool = True


class Hub(ThreadingHTTPServer):
    """`repositories`: ("models" or "datasets", "owner/name") -> Repo; `served`: name -> bytes sent."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.cdn = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self.cdn.daemon_threads, self.cdn.hub, self.hub = True, self, self
        self.cdn.handle_error = self.handle_error
        self.repositories, self.served, self.requests, self.lock = {}, {}, [], threading.Lock()

    def handle_error(self, request, client_address):
        """Clients that hang up are none."""

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def environment(self):
        return {"HF_ENDPOINT": self.url, "HF_HUB_OFFLINE": "0"}

    def add(self, kind, name, files, *, lfs=(), branch="main", **faults):
        """A commit of `files` on a branch; its name follows from them."""
        content = b"".join(part for item in sorted(files.items()) for part in (item[0].encode(), item[1]))
        commit = hashlib.sha1(content).hexdigest()
        repo = self.repositories.setdefault((kind, name), Repo())
        repo.branches[branch] = commit
        repo.commits[commit] = dict(files)
        repo.lfs |= set(lfs)
        for key, value in faults.items():
            setattr(repo, key, value)
        return commit

    def count(self, name, num_bytes):
        with self.lock:
            self.served[name] = self.served.get(name, 0) + num_bytes

    def connect(self, monkeypatch):
        """Sends the client in this process here (it reads its variables when it is imported)."""
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", self.url)
        template = self.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nonexistent/token")
        monkeypatch.delenv("HF_TOKEN", raising=False)


@contextlib.contextmanager
def serve():
    """A running hub and its CDN."""
    with Hub() as hub, hub.cdn:
        threads = [threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
                   for server in (hub, hub.cdn)]  # fmt: skip
        for thread in threads:
            thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            hub.cdn.shutdown()
            for thread in threads:
                thread.join()


def git_sha1(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        hub, url = self.server.hub, urlsplit(self.path)
        words = [unquote(word) for word in url.path.strip("/").split("/")]
        with hub.lock:
            hub.requests.append((self.server is hub.cdn, self.path, {key.title() for key in self.headers}))
        if self.server is hub.cdn:
            self._file(hub.repositories[words[0], "/".join(words[1:3])], words[3], "/".join(words[4:]))
            return
        if words[0] == "api":
            self._api(words[1:], parse_qs(url.query))
            return
        kind = "datasets" if words[0] == "datasets" else "models"
        words = words[words[0] == "datasets" :]
        name, commit, file = "/".join(words[:2]), words[3], "/".join(words[4:])
        repo = hub.repositories.get((kind, name))
        if repo is None:
            self._refuse(401, "RepoNotFound")
        elif repo.token is not None and self.headers.get("Authorization") != f"Bearer {repo.token}":
            self._refuse(403 if "Authorization" in self.headers else 401, "GatedRepo")
        elif file not in repo.commits.get(commit, {}):
            self._refuse(404, "EntryNotFound")
        elif file in repo.lfs:
            content = repo.commits[commit][file]
            place = f"http://127.0.0.1:{hub.cdn.server_port}/{kind}/{name}/{commit}/{file}?Signature=secret"
            linked = {"X-Linked-Size": str(len(content)), "X-Linked-ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
            self._answer(302, b"", Location=place, **{"X-Repo-Commit": commit}, **linked)
        else:
            self._file(repo, commit, file)

    do_HEAD = do_GET

    def _api(self, words, query):
        hub = self.server.hub
        repo = hub.repositories.get((words[0], "/".join(words[1:3])))
        if repo is None:
            self._refuse(401, "RepoNotFound")
            return
        with hub.lock:
            busy = repo.busy[API].pop(0) if repo.busy.get(API) else None
        if busy is not None:
            self._answer(busy, b"busy")
            return
        revision = "/".join(words[4:]) or "main"
        commit = repo.branches.get(revision, revision)
        if commit not in repo.commits:
            self._refuse(404, "RevisionNotFound")
            return
        if words[3:4] != ["tree"]:
            document = {"id": "/".join(words[1:3]), "sha": commit, "siblings": []}
            self._answer(200, json.dumps(document).encode())
            return
        entries = [{"type": "directory", "path": "data", "oid": "0" * 40, "size": 0}]
        for name, content in sorted(repo.commits[commit].items()):
            entry = {"type": "file", "path": repo.names.get(name, name), "size": len(content), "oid": git_sha1(content)}
            if name in repo.lfs:
                sha256 = hashlib.sha256(content).hexdigest()
                entry |= {
                    "oid": git_sha1(sha256.encode()),
                    "lfs": {"oid": sha256, "size": len(content), "pointerSize": 130},
                }
            entries.append(entry)
        start = int(query.get("cursor", ["0"])[0])
        more = {}
        if start + _PAGE < len(entries):
            more["Link"] = f'<{hub.url}{urlsplit(self.path).path}?recursive=True&cursor={start + _PAGE}>; rel="next"'
        self._answer(200, json.dumps(entries[start : start + _PAGE]).encode(), **more)

    def _file(self, repo, commit, name):
        hub = self.server.hub
        with hub.lock:
            busy, wrong, cuts = (pending[name].pop(0) if pending.get(name) else None
                                 for pending in (repo.busy, repo.wrong, repo.cuts))  # fmt: skip
        if busy is not None:
            self._answer(busy, b"busy")
            return
        content = repo.commits[commit][name] if wrong is None else wrong
        given = self.headers.get("Range")
        start = int(given.removeprefix("bytes=").removesuffix("-")) if given and repo.ranges else 0
        body = content[start:]
        self.send_response(206 if given and repo.ranges else 200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{git_sha1(content)}"')
        if given and repo.ranges:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        if cuts is not None:
            self._send(name, body[:cuts])
            self.close_connection = True
            return
        if name in repo.hold:
            first, gate = repo.hold[name]
            self._send(name, body[:first])
            gate.wait(30)
            body = body[first:]
        self._send(name, body)

    def _send(self, name, body):
        self.wfile.write(body)
        self.wfile.flush()
        self.server.hub.count(name, len(body))

    def _refuse(self, status, code):
        self._answer(status, b'{"error": "no"}', **{"X-Error-Code": code, "X-Error-Message": "no"})

    def _answer(self, status, content, **headers):
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(content)), "Content-Type": "application/json"} | headers).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_):
        pass
