"""A hub on loopback that speaks what huggingface_hub asks, truthfully or not."""

from __future__ import annotations

import functools
import hashlib
import json
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from safetensors.numpy import save

COMMIT = hashlib.sha1(b"one").hexdigest()
OTHER_COMMIT = hashlib.sha1(b"two").hexdigest()
REPO = "org/model"
LFS = (".safetensors", ".bin", ".h5", ".model")
_PIECE = 4096


def tensors(seed: int, numbers: int = 40_000) -> bytes:
    """A real safetensors file of about four bytes a number."""
    rng = np.random.default_rng(seed)
    half = numbers // 2
    return save({"a": rng.random(half, np.float32), "b": rng.random((half // 4, 4), np.float32)})


def model_files(seed: int = 0, numbers: int = 40_000) -> dict[str, bytes]:
    return {
        "config.json": json.dumps({"model_type": "bert", "seed": seed}).encode(),
        "tokenizer/vocab.txt": b"\n".join(b"word%d" % n for n in range(500)),
        "model-00001-of-00002.safetensors": tensors(2 * seed + 1, numbers),
        "model-00002-of-00002.safetensors": tensors(2 * seed + 2, numbers),
    }


@functools.lru_cache(64)
def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@functools.lru_cache(64)
def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Hub:
    """The server's state; ``modes`` says what goes wrong with which file, and how often."""

    def __init__(self) -> None:
        self.commits = {COMMIT: model_files(0), OTHER_COMMIT: model_files(1)}
        self.branches = {"main": COMMIT}
        self.modes: dict[str, str] = {}
        self.times: dict[str, int] = {}
        self.requests: list[tuple[str, str, str, dict[str, str]]] = []
        self.extra_entries: list[dict[str, object]] = []
        self.sent, self.piece = 0, _PIECE
        self.token: str | None = None
        self.on_sent: Callable[[int], None] = lambda _total: None
        self.lock = threading.Lock()
        self.url = self.cdn = ""

    def reset(self) -> None:
        url, cdn = self.url, self.cdn
        self.__init__()
        self.url, self.cdn = url, cdn

    def break_file(self, path: str, mode: str, times: int = 1_000_000) -> None:
        self.modes[path], self.times[path] = mode, times

    def takes(self, path: str, *modes: str) -> bool:
        """Whether the file goes wrong in this way now; each time counts."""
        with self.lock:
            if self.modes.get(path) not in modes or self.times[path] <= 0:
                return False
            self.times[path] -= 1
            return True


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    is_cdn = False

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        path = urllib.parse.unquote(self.path.partition("?")[0]).lstrip("/")
        host = "cdn" if self.is_cdn else "hub"
        with self.hub.lock:
            self.hub.requests.append((host, self.command, path, {k.lower(): v for k, v in self.headers.items()}))
        try:
            if self.is_cdn:
                commit, _, name = path.partition("/")
                self.file(commit, name, body)
            elif path.startswith("api/models/"):
                self.api(path.removeprefix("api/models/"))
            else:
                self.resolve(path, body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def say(self, found: object) -> None:
        data = json.dumps(found).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def commit_of(self, revision: str) -> str | None:
        found = self.hub.branches.get(revision, revision)
        return found if found in self.hub.commits else None

    def api(self, path: str) -> None:
        owner, name, verb, revision, *folder = path.split("/")
        repo = f"{owner}/{name}"
        if repo != REPO:
            return self.refuse(404, "RepoNotFound")
        commit = self.commit_of(revision)
        if commit is None:
            return self.refuse(404, "RevisionNotFound")
        if verb == "revision":
            siblings = [{"rfilename": name} for name in self.hub.commits[commit]]
            return self.say(
                {"id": repo, "modelId": repo, "sha": commit, "private": False, "siblings": siblings, "tags": []}
            )
        below = "".join(f"{part}/" for part in folder)
        found = {name: data for name, data in self.hub.commits[commit].items() if name.startswith(below)}
        if not found:
            return self.refuse(404, "EntryNotFound")
        listed = list(self.hub.extra_entries)
        for name, data in found.items():
            entry: dict[str, object] = {"type": "file", "path": name, "size": len(data), "oid": git_oid(data)}
            if name.endswith(LFS):
                entry["lfs"] = {"oid": sha256(data), "size": len(data), "pointerSize": 134}
            listed.append(entry)
        return self.say(listed)

    def resolve(self, path: str, body: bool) -> None:
        repo, _, rest = path.partition("/resolve/")
        revision, _, name = rest.partition("/")
        commit = self.commit_of(revision)
        if repo != REPO or commit is None or name not in self.hub.commits[commit]:
            return self.refuse(404, "EntryNotFound")
        if self.hub.token is not None and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            return self.refuse(403 if "Authorization" in self.headers else 401, "GatedRepo")
        data = self.hub.commits[commit][name]
        if self.hub.modes.get(name) == "redirect":
            self.send_response(302)
            self.describe(name, commit, data)
            self.send_header("Location", f"{self.hub.cdn}/{commit}/{name}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        return self.file(commit, name, body)

    def describe(self, name: str, commit: str, data: bytes) -> None:
        etag = sha256(data) if name.endswith(LFS) else git_oid(data)
        if self.hub.modes.get(name) == "wrong_etag":
            etag = "0" * len(etag)
        moved = self.hub.modes.get(name) == "moved"
        self.send_header("X-Repo-Commit", OTHER_COMMIT if moved else commit)
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Linked-Etag", f'"{etag}"')
        self.send_header("X-Linked-Size", str(len(data)))

    def file(self, commit: str, name: str, body: bool) -> None:
        data = whole = self.hub.commits[commit][name]
        asked = self.headers.get("Range", "")
        start = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
        cut: int | None = None
        if body:
            if self.hub.takes(name, "flip"):
                at = len(data) // 3
                data = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
            elif self.hub.takes(name, "swapped"):
                data = (b"x" + tensors(99))[: len(data)].ljust(len(data), b"x")
            elif self.hub.takes(name, "short"):
                data = data[: len(data) // 2]
            elif self.hub.takes(name, "long"):
                data += b"more" * 5000
            elif self.hub.takes(name, "breaks", "wrong_range"):
                cut = len(data) // 2
        if start >= len(data) and start:
            return self.refuse(416, "RangeNotSatisfiable")
        sent = data[start:]
        if start and self.hub.modes.get(name) == "wrong_range":
            sent = data[: len(sent)]
        self.send_response(206 if start else 200)
        self.describe(name, commit, whole)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(sent)))
        self.end_headers()
        if not body:
            return None
        for place in range(0, len(sent) if cut is None else cut, self.hub.piece):
            piece = memoryview(sent)[place : place + self.hub.piece]
            self.wfile.write(piece)
            with self.hub.lock:
                self.hub.sent += len(piece)
                total = self.hub.sent
            self.hub.on_sent(total)
        return None


@contextmanager
def running_hub() -> Iterator[Hub]:
    hub = Hub()
    servers = []
    for is_cdn in (False, True):
        handler = type("Handler", (_Handler,), {"hub": hub, "is_cdn": is_cdn})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        servers.append(server)
    hub.url, hub.cdn = (f"http://127.0.0.1:{server.server_address[1]}" for server in servers)
    try:
        yield hub
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
