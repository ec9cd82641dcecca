"""An object store on loopback: as much of Google Cloud Storage's JSON API as gcsfs, its client and TensorStore ask for.

Objects are held in memory; a write stands whole or not at all, preconditions on generations are kept.
"""

import base64
import contextlib
import itertools
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import google_crc32c

_OBJECT = re.compile(r"(?:/download)?/storage/v1/b/([^/]+)/o/([^/]+)")
_LISTING = re.compile(r"/storage/v1/b/([^/]+)/o")
_BUCKET = re.compile(r"/storage/v1/b/([^/]+)(?:/storageLayout)?")
_PAGE = 100  # small, so that listings of several pages occur


class Store(ThreadingHTTPServer):
    """A server of the bucket `bucket`; `objects`: name -> (content, generation)."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects, self.uploads, self.lock = {}, {}, threading.Lock()
        self.generations = itertools.count(1)
        self.refuse_writes_of = None  # pattern of names, as of a bucket without the permission
        self.written = []  # names in the order of their writes

    def handle_error(self, request, client_address):
        """Clients that hang up before the answer are none."""

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def environment(self):
        """Variables by which all three clients find it, and look for no credentials elsewhere."""
        return {
            "STORAGE_EMULATOR_HOST": self.url,
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "GCE_METADATA_ROOT": "127.0.0.1:9",
            "NO_GCE_CHECK": "true",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }

    def names(self, prefix=""):
        with self.lock:
            return sorted(name.removeprefix(prefix) for name in self.objects if name.startswith(prefix))

    def content(self, name):
        with self.lock:
            return self.objects[name][0]

    def put(self, name, content):
        with self.lock:
            self.objects[name] = (bytes(content), next(self.generations))
            self.written.append(name)
            return self.resource(name)

    def resource(self, name):
        content, generation = self.objects[name]
        crc = base64.b64encode(google_crc32c.Checksum(content).digest()).decode()
        times = dict.fromkeys(("timeCreated", "updated"), "2026-01-01T00:00:00.000000Z")
        return {"kind": "storage#object", "name": name, "bucket": "bucket", "size": str(len(content)), "crc32c": crc,
                "generation": str(generation), "metageneration": "1", "etag": str(generation), **times}  # fmt: skip


@contextlib.contextmanager
def serve():
    """A running store."""
    with Store() as store:
        thread = threading.Thread(target=store.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield store
        finally:
            store.shutdown()
            thread.join()


class _Refused(Exception):
    pass


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Store

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        self._answer_errors(self._get)

    def do_POST(self):
        self._answer_errors(self._upload)

    def do_PUT(self):
        self._answer_errors(self._upload)

    def do_DELETE(self):
        self._answer_errors(self._delete)

    def _answer_errors(self, act):
        self.place = urlsplit(self.path)
        self.query = {name: values[0] for name, values in parse_qs(self.place.query).items()}
        try:
            act()
        except KeyError:
            self._json({"error": {"code": 404, "message": "No such object"}}, 404)
        except _Refused as refused:
            self._json({"error": {"code": refused.args[0], "message": "refused"}}, refused.args[0])

    def _get(self):
        if found := _OBJECT.fullmatch(self.place.path):
            self._get_object(unquote(found[2]))
        elif _LISTING.fullmatch(self.place.path):
            self._list()
        elif found := _BUCKET.fullmatch(self.place.path):
            self._json({"kind": "storage#bucket", "name": found[1], "locationType": "region"})
        else:
            raise KeyError

    def _get_object(self, name):
        with self.server.lock:
            content, generation = self.server.objects[name]
            resource = self.server.resource(name)
        if self.query.get("ifGenerationNotMatch") == str(generation):
            raise _Refused(304)
        self._require_generation(generation)
        if self.query.get("alt") != "media":
            return self._json(resource)
        headers = {"X-Goog-Generation": generation, "X-Goog-Hash": f"crc32c={resource['crc32c']}"}
        span = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not span:
            return self._send(200, content, headers)
        first, last = span.groups()
        start = int(first) if first else max(len(content) - int(last), 0)
        stop = min(int(last) + 1, len(content)) if first and last else len(content)
        if start >= len(content):
            raise _Refused(416)
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
        return self._send(206, content[start:stop], headers)

    def _list(self):
        prefix, delimiter = self.query.get("prefix", ""), self.query.get("delimiter")
        entries = {}
        for name in self.server.names():
            if not name.startswith(prefix) or not self._in_span(name):
                continue
            rest = name[len(prefix) :]
            if delimiter and delimiter in rest:
                entries[prefix + rest.split(delimiter)[0] + delimiter] = "prefixes"
            else:
                entries[name] = "items"
        after = self.query.get("pageToken", "")
        left = [entry for entry in sorted(entries) if entry > after]
        page = left[: min(int(self.query.get("maxResults", _PAGE)), _PAGE)]
        with self.server.lock:
            items = [self.server.resource(name) for name in page if entries[name] == "items"
                     and name in self.server.objects]  # fmt: skip
        answer = {"kind": "storage#objects", "items": items}
        answer["prefixes"] = [entry for entry in page if entries[entry] == "prefixes"]
        if len(page) < len(left):
            answer["nextPageToken"] = page[-1]
        self._json(answer)

    def _in_span(self, name):
        return self.query.get("startOffset", "") <= name and ("endOffset" not in self.query
                                                              or name < self.query["endOffset"])  # fmt: skip

    def _upload(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = self._chunks()
        if number := self.query.get("upload_id"):
            return self._continue(number, body)
        kind, name = self.query.get("uploadType"), self.query.get("name")
        if kind == "multipart":
            meta, body = _parts(body, self.headers["Content-Type"])
            name = name or json.loads(meta)["name"]
        elif kind == "resumable":
            name = name or json.loads(body)["name"]
        elif kind != "media":
            raise _Refused(400)
        self._require_allowed(name)
        if kind == "resumable":
            number = str(next(self.server.generations))
            self.server.uploads[number] = (name, bytearray())
            location = f"{self.server.url}{self.place.path}?uploadType=resumable&upload_id={number}"
            return self._send(200, b"", {"Location": location})
        return self._json(self.server.put(name, body))

    def _continue(self, number, body):
        name, content = self.server.uploads[number]
        content += body
        size = self.headers.get("Content-Range", "*/*").rpartition("/")[2]
        if size != "*" and len(content) == int(size):
            del self.server.uploads[number]
            return self._json(self.server.put(name, content))
        return self._send(308, b"", {"Range": f"bytes=0-{len(content) - 1}"} if content else {})

    def _chunks(self):
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def _delete(self):
        found = _OBJECT.fullmatch(self.place.path)
        if "upload_id" in self.query or not found:
            return self._send(204, b"")
        with self.server.lock:
            name = unquote(found[2])
            self._require_generation(self.server.objects[name][1])
            del self.server.objects[name]
        return self._send(204, b"")

    def _require_allowed(self, name):
        pattern = self.server.refuse_writes_of
        if pattern and re.search(pattern, name):
            raise _Refused(403)
        with self.server.lock:
            self._require_generation(self.server.objects.get(name, (b"", 0))[1])

    def _require_generation(self, generation):
        if self.query.get("ifGenerationMatch", str(generation)) != str(generation):
            raise _Refused(412)

    def _json(self, document, status=200):
        self._send(status, json.dumps(document).encode(), {"Content-Type": "application/json"})

    def _send(self, status, content, headers=None):
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, str(value))
        if status not in (204, 304):
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if status not in (204, 304):
            self.wfile.write(content)


def _parts(body, content_type):
    """The two parts of a multipart upload: metadata and content."""
    boundary = re.search(r'boundary="?([^";]+)"?', content_type)[1].encode()
    _, meta, content, _ = body.split(b"--" + boundary)
    return [part.split(b"\r\n\r\n" if b"\r\n\r\n" in part else b"\n\n", 1)[1].removesuffix(b"\n").removesuffix(b"\r")
            for part in (meta, content)]  # fmt: skip
