"""A hub on loopback to which its own client writes: accounts, repositories, large files, and their failures."""

import base64
import hashlib
import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_" + "a1B2c3D4" * 4
LARGE = 1024
"""Bytes from which a file is kept outside git."""


@dataclass
class Repository:
    """A repository, with its files by name."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)


@dataclass
class WritableHub:
    """What the hub holds, what it was asked, and how it fails.

    Attributes:
        faults: by the beginning of a request, as in `POST /api/repos/create`, the answers that it gets first: a
            status, with the wait that it asks for; `cut`, which closes the connection in the middle of the body;
            `page`, a web page; `interrupt`, which is Ctrl-C at that moment, in this process.
        taken: large files that were taken whole, by their SHA-256.
        uploads: SHA-256 of each large file that was begun to be taken.
    """

    account: str = "ann"
    repositories: dict[str, Repository] = field(default_factory=dict)
    faults: dict[str, list[str]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    taken: dict[str, bytes] = field(default_factory=dict)
    uploads: list[str] = field(default_factory=list)
    url: str = ""

    def answer(self, request: "_Handler", body: bytes) -> tuple[int, Any]:
        """Return the status and the JSON of an answer."""
        path = request.path.partition("?")[0]
        if path.startswith("/storage/"):
            digest = path.rpartition("/")[2]
            assert hashlib.sha256(body).hexdigest() == digest
            self.taken[digest] = body
            return 200, {}
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid username or password."}
        content = json.loads(body) if body and "/commit/" not in path else {}
        if path == "/api/whoami-v2":
            return 200, {"type": "user", "name": self.account, "orgs": []}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            return self._create(content)
        name = "/".join(path.removeprefix("/api/models/").strip("/").split("/")[:2]).removesuffix(".git")
        repository = self.repositories.get(name)
        if repository is None:
            return 404, {"error": "Repository not found"}
        if "/preupload/" in path:
            return self._writable(name) or self._preupload(repository, content)
        if path.endswith("/info/lfs/objects/batch"):
            return 200, {"transfer": "basic", "objects": list(map(self._action, content["objects"]))}
        if "/commit/" in path:
            return self._writable(name) or self._commit(name, repository, body)
        return 200, self._described(name, repository)

    def _writable(self, name: str) -> tuple[int, Any] | None:
        if name.partition("/")[0] == self.account:
            return None
        return 403, {"error": f"Forbidden: you must have write access to {name}"}

    def _create(self, content: dict[str, Any]) -> tuple[int, Any]:
        name = f"{content.get('organization') or self.account}/{content['name']}"
        if (refused := self._writable(name)) is not None:
            return refused
        if name in self.repositories:
            return 409, {"error": "You already created this model repo", "url": f"{self.url}/{name}"}
        is_private = content.get("visibility") == "private" or content.get("private") is True
        self.repositories[name] = Repository(is_private, {".gitattributes": b""}, ["0" * 40])
        return 200, {"url": f"{self.url}/{name}"}

    def _described(self, name: str, repository: Repository) -> dict[str, Any]:
        siblings = [
            {
                "rfilename": file,
                "size": len(data),
                "blobId": git_hash(data),
                **(
                    {"lfs": {"size": len(data), "sha256": sha256(data), "pointerSize": 1}}
                    if is_large(data)
                    else {}
                ),
            }
            for file, data in repository.files.items()
        ]
        facts = {"private": repository.private, "sha": repository.commits[-1], "siblings": siblings}
        return {"_id": "1", "id": name, "modelId": name, "tags": [], "downloads": 0, "likes": 0, **facts}

    def _preupload(self, repository: Repository, content: dict[str, Any]) -> tuple[int, Any]:
        return 200, {
            "files": [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["size"] >= LARGE else "regular",
                    "shouldIgnore": False,
                }
                for file in content["files"]
            ]
        }

    def _action(self, asked: dict[str, Any]) -> dict[str, Any]:
        if asked["oid"] in self.taken:
            return asked
        return {**asked, "actions": {"upload": {"href": f"{self.url}/storage/{asked['oid']}"}}}

    def _commit(self, name: str, repository: Repository, body: bytes) -> tuple[int, Any]:
        lines = [json.loads(line) for line in body.decode().splitlines()]
        parent = lines[0]["value"].get("parentCommit")
        if parent not in (None, repository.commits[-1]):
            return 412, {"error": "A commit has happened since."}
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                repository.files[value["path"]] = self.taken[value["oid"]]
            elif line["key"] == "deletedFile":
                del repository.files[value["path"]]
        commit = hashlib.sha1(body).hexdigest()
        repository.commits.append(commit)
        return 200, {"commitUrl": f"{self.url}/{name}/commit/{commit}", "commitOid": commit}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: WritableHub

    def handle_one_request(self) -> None:
        with suppress(OSError):
            super().handle_one_request()

    def _serve(self) -> None:
        asked = f"{self.command} {self.path}"
        self.hub.asked.append(asked)
        self.hub.tokens.add(self.headers.get("Authorization", ""))
        if self.path.startswith("/storage/"):
            self.hub.uploads.append(self.path.rpartition("/")[2])
        fault = next((faults.pop(0) for begin, faults in self._faults(asked)), "")
        if fault == "interrupt":
            os.kill(os.getpid(), signal.SIGINT)
            fault = "cut"
        if fault == "cut":
            self.rfile.read(1)
            self.close_connection = True
            self.connection.shutdown(2)
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        is_page = fault == "page"
        status, _, wait = fault.removeprefix("page").partition(" ")
        code, content = (int(status), {"error": "not now"}) if status else self.hub.answer(self, body)
        answer = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(answer)))
        self.send_header("Content-Type", "text/html" if is_page else "application/json")
        if wait:
            self.send_header("Retry-After", wait)
        if code == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer)

    def _faults(self, asked: str) -> Iterator[tuple[str, list[str]]]:
        for begin, faults in self.hub.faults.items():
            if asked.startswith(begin) and faults:
                yield begin, faults

    do_GET = do_HEAD = do_POST = do_PUT = _serve

    def log_message(self, *_: Any) -> None:
        pass


def git_hash(data: bytes) -> str:
    """Return what git calls a file with this content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def sha256(data: bytes) -> str:
    """Return the SHA-256 of a content."""
    return hashlib.sha256(data).hexdigest()


def is_large(data: bytes) -> bool:
    """Return whether a content is kept outside git."""
    return len(data) >= LARGE


@contextmanager
def writable_hub() -> Iterator[WritableHub]:
    """Give a hub with the account `ann` and no repository."""
    hub = WritableHub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        server.block_on_close = False
        hub.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
