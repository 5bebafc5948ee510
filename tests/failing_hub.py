"""A hub on loopback that serves a repository, or fails in the ways in which servers fail."""

import hashlib
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.hub import COMMIT

WHOLE = ("silent", "drip", "500", "503", "429", "closed", "circle", "html")
"""Ways in which every request fails: no answer; one byte per second; a status (429 asks to wait an hour); the
connection closed; a redirect to itself; a page of HTML in place of everything."""
LATER = ("silent-after-root", "503-after-root")
"""The address itself answers, and nothing else does."""
GOOD = ("good", "slow-file", "slow-answers", "503-once")
"""What is answered in the end: at once; a file of 50 kB in two seconds; each after 0.4 s; after a first 503."""
FILES = ("stalled-file", "drip-file", "cut-file", "huge-file")
"""All is answered but the files: nothing after the headers; one byte per second; closed in the middle; a length of
ten gigabytes, of which one part comes."""
WAYS = WHOLE + LATER + FILES


class FailingHub:
    """Serves the files of `repository` as the hub would, as far as its libraries ask, and fails in `way`.

    Attributes:
        url: what HF_ENDPOINT is to be.
        asked: method and path of every request.
        first: when the first came, by `time.monotonic`.
    """

    def __init__(
        self, way: str, repository: str = "someone/thing", files: Mapping[str, bytes] | None = None
    ) -> None:
        self.way = way
        self.asked: list[str] = []
        self.first: float | None = None
        self._repository, self._files = repository, dict(files or {})
        self._over = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.first = outer.first or time.monotonic()
                outer.asked.append(f"{self.command} {self.path}")
                with suppress(OSError):
                    outer._answer(self)

            do_HEAD = do_POST = do_PUT = do_GET

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

            def handle_error(self, *_: object) -> None:
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        """Stop listening, and let every request that hangs end."""
        self._over.set()
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path.partition("?")[0]
        way = self.way
        if way in LATER:
            way = "good" if path == "/" else way.partition("-")[0]
        if way == "503-once":
            way = "503" if len(self.asked) == 2 else "good"
        if way == "slow-answers":
            self._over.wait(0.4)
        if way == "silent":
            self._end(request)
        elif way == "drip":
            self._drip(request, b"HTTP/1.1 200 OK\r\nX-Filler: " + b"a" * 10_000)
        elif way.isdigit():
            wait = {"Retry-After": "3600"} if way == "429" else {}
            self._send(request, b'{"error": "not now"}', int(way), **wait)
        elif way == "closed":
            request.close_connection = True
        elif way == "circle":
            self._send(request, b"", 302, Location=request.path)
        elif way == "html":
            page = b"<html><body>Sign in to the network</body></html>"
            self._head(request, 200, {"Content-Length": str(len(page)), "Content-Type": "text/html"})
            if request.command != "HEAD":
                request.wfile.write(page)
        else:
            self._serve(request, path)

    def _serve(self, request: BaseHTTPRequestHandler, path: str) -> None:
        root, name = path.removeprefix("/datasets"), ""
        if root.startswith(f"/{self._repository}/resolve/"):
            name = root.removeprefix(f"/{self._repository}/resolve/").partition("/")[2]
        if path == "/":
            self._send(request, b"ok")
        elif f"/{self._repository}/tree/" in path:
            folder = path.partition("/tree/")[2].partition("/")[2]
            self._send(request, json.dumps(self._entries(folder)).encode())
        elif path.startswith(("/api/datasets/", "/api/models/")) and self._repository in path:
            siblings = [{"rfilename": file} for file in self._files]
            facts = {"id": self._repository, "sha": COMMIT, "private": False, "tags": [], "siblings": siblings}
            self._send(request, json.dumps({"_id": "1", "downloads": 0, "likes": 0, **facts}).encode())
        elif name in self._files:
            self._send_file(request, self._files[name])
        else:
            self._send(request, b"{}", 404, **{"X-Error-Code": "EntryNotFound"})

    def _entries(self, folder: str) -> list[dict[str, Any]]:
        start = f"{folder}/" if folder else ""
        inside = [file.removeprefix(start) for file in self._files if file.startswith(start)]
        entries: list[dict[str, Any]] = []
        for name in sorted({file.partition("/")[0] for file in inside}):
            content = self._files.get(start + name)
            kind = {"type": "directory"} if content is None else {"type": "file", "size": len(content)}
            entries.append({"path": start + name, "oid": "0" * 40, **kind})
        return entries

    def _send_file(self, request: BaseHTTPRequestHandler, content: bytes) -> None:
        tag = f'"{hashlib.sha1(content).hexdigest()}"'
        if self.way == "slow-file" and request.command != "HEAD":
            self._head(request, 200, {"Content-Length": str(len(content)), "X-Repo-Commit": COMMIT, "ETag": tag})
            for start in range(0, len(content), 2_500):
                self._over.wait(0.1)
                request.wfile.write(content[start : start + 2_500])
            return
        if self.way not in FILES or request.command == "HEAD":
            headers = {"ETag": tag}
            if self.way == "huge-file":
                headers["Content-Length"] = str(10**10)
            self._send(request, content, 200, **headers)
            return
        begin = len(content) // 2
        if (asked := request.headers.get("Range", "")).startswith("bytes="):
            begin = int(asked[6:].partition("-")[0])
        length = 10**10 if self.way == "huge-file" else max(len(content), 10_000)
        self._head(request, 200, {"Content-Length": str(length), "X-Repo-Commit": COMMIT, "ETag": tag})
        if self.way == "stalled-file":
            self._end(request)
        elif self.way == "drip-file":
            self._drip(request, content.ljust(10_000))
        elif self.way == "cut-file":
            request.wfile.write(content[:begin])
            request.close_connection = True
        else:
            request.wfile.write(content)
            self._end(request)

    def _send(self, request: BaseHTTPRequestHandler, body: bytes, status: int = 200, **headers: str) -> None:
        size = str(len(body))
        self._head(request, status, {"Content-Length": size, "X-Repo-Commit": COMMIT, **headers})
        if request.command != "HEAD":
            request.wfile.write(body)

    @staticmethod
    def _head(request: BaseHTTPRequestHandler, status: int, headers: Mapping[str, str]) -> None:
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        request.end_headers()

    def _drip(self, request: BaseHTTPRequestHandler, content: bytes) -> None:
        for byte in content:
            if self._over.wait(1):
                break
            request.wfile.write(bytes([byte]))
            request.wfile.flush()
        request.close_connection = True

    def _end(self, request: BaseHTTPRequestHandler) -> None:
        self._over.wait()
        request.close_connection = True


@contextmanager
def failing_hub(
    way: str, repository: str = "someone/thing", files: Mapping[str, bytes] | None = None
) -> Iterator[FailingHub]:
    """Give a hub that fails in `way`, and close it afterwards."""
    hub = FailingHub(way, repository, files)
    try:
        yield hub
    finally:
        hub.close()
