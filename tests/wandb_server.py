"""A server that answers W&B's client, or fails in the ways in which servers fail."""

import json
import socket
import threading
from base64 import b64decode
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

BUCKET = {
    "id": "QnVja2V0OjE=",
    "name": "run-id",
    "displayName": "a-run",
    "historyLineCount": 0,
    "config": "{}",
    "project": {"id": "P", "name": "p", "entity": {"id": "E", "name": "me"}},
}
ACCEPTED: dict[str, Any] = {
    "project": None,
    "upsertBucket": {"bucket": BUCKET, "inserted": True},
    "createArtifact": {
        "artifact": {
            "id": "A",
            "state": "COMMITTED",
            "artifactSequence": {"id": "S", "latestArtifact": {"id": "A", "versionIndex": 0}},
        }
    },
    "createRunFiles": {"runID": "run-id", "uploadHeaders": [], "files": []},
    "viewer": {"id": "U", "username": "me", "entity": "me", "flags": "{}", "teams": {"edges": []}},
}


class WandbServer:
    """Answers as `behaviour` says, from a run's start on as `then`.

    Behaviours: accept; hang (no answer), hang-api (the front page alone answers), drip (one byte per second),
    circle (redirects to itself), html, vanish, or a status code.
    """

    def __init__(self, behaviour: str, then: str | None = None) -> None:
        self.behaviour = behaviour
        self.then = then
        self.asked: list[str] = []
        self.keys: set[str] = set()
        """Keys and whatever else came as authorization."""
        self.history: list[dict[str, Any]] = []
        self._gone = threading.Event()
        self._connections: list[socket.socket] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                outer._answer(self)

            do_GET = do_HEAD = do_POST = do_PUT = answer

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def get_request(self) -> tuple[socket.socket, Any]:
                connection, address = super().get_request()
                outer._connections.append(connection)
                return connection, address

            def handle_error(self, *_: object) -> None:
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("content-length") or 0))
        self.asked.append(request.path)
        for said in filter(None, (request.headers.get(name) for name in ("authorization", "proxy-authorization"))):
            scheme, _, login = said.partition(" ")
            self.keys.add(b64decode(login).decode() if scheme == "Basic" else login)
        status, kind, content = 200, "application/json", json.dumps({"data": ACCEPTED}).encode()
        starts = b"UpsertBucket" in body
        if self.behaviour == "vanish":
            request.close_connection = True
            return
        if self.behaviour == "hang" or (self.behaviour == "hang-api" and request.path != "/"):
            self._gone.wait()
            return
        if self.behaviour == "drip":
            for byte in b"HTTP/1.1 200 OK\r\nX-Filler: " + b"a" * 10_000:
                request.wfile.write(bytes([byte]))
                request.wfile.flush()
                if self._gone.wait(1):
                    break
            request.close_connection = True
            return
        if self.behaviour == "html":
            kind, content = "text/html", b"<html><body>Sign in to the network</body></html>"
        elif self.behaviour == "circle":
            status, content = 302, b""
        elif self.behaviour.isdigit():
            status, content = int(self.behaviour), b"{}"
        elif request.path.endswith("file_stream"):
            lines = json.loads(body).get("files", {}).get("wandb-history.jsonl", {}).get("content", [])
            self.history += [json.loads(line) for line in lines]
        request.send_response(status)
        if status == 302:
            request.send_header("location", request.path)
        request.send_header("content-type", kind)
        request.send_header("content-length", str(len(content)))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(content)
        if starts and self.then is not None:
            self.behaviour = self.then

    def vanish(self) -> None:
        """Stop listening and break every connection."""
        self._gone.set()
        self._server.shutdown()
        self._server.server_close()
        for connection in self._connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
