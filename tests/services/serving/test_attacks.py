"""Strangers at the door: damaged requests, tricks with paths and headers, clients that take their time."""

import json
import random
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

import dialogkit
from dialogkit.services.serving import connections
from tests.conftest import Trained
from tests.forks import command_line_into, start_forked

SECRET = "not-for-strangers"
HEAD = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
BODIES = [
    {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 2, "seed": 1},
    {"messages": [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}], "stream": True, "n": 2},
    {
        "model": "shared-run",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "z"}]}],
        "stop": "a",
    },
]
VALUES: list[Any] = [
    *(None, True, -1, 0, 1e308, float("nan"), 2**80, "", "\x00", "../../secret.txt", [], {}, [[]], "x" * 5000),
    *({"role": "user"}, "\ud800", {"$ref": "file:///etc/passwd"}, "\x1b[2J\x9b\u202e", "{{ 7 * 7 }}", "%s%n"),
]
PATHS = [
    *("/../secret.txt", "/..%2fsecret.txt", "/%2e%2e/secret.txt", "//etc/passwd", "/v1/models/../../secret.txt"),
    *("/v1/models/%2e%2e%2fsecret.txt", "/v1/models//etc/passwd", "/v1/models/..\\secret.txt", "/%00", "/\xff"),
    *("file:///etc/passwd", "http://127.0.0.1/secret.txt", "*", "/?page=/etc/passwd", "/secret.txt", "/page.html"),
]
HEADERS = [
    *("Content-Length: 5\r\nContent-Length: 6", "Content-Length: -1", "Content-Length: 9" + "9" * 30),
    *("Transfer-Encoding: chunked\r\nContent-Length: 3", "Transfer-Encoding: x", "Host: evil.example", "Host: "),
    *(
        "X: " + "y" * 70_000,
        "Upgrade: websocket\r\nConnection: Upgrade",
        "Expect: 100-continue",
        "X\r\n folded: 1",
    ),
    *("X-Forwarded-For: 127.0.0.1", "X-HTTP-Method-Override: DELETE", "Content-Encoding: gzip", "X: \x00", ": x"),
    *("Authorization: Bearer \xff\xfe", "Content-Type: application/json; charset=utf-7", "Range: bytes=0-99999"),
]


def serve_and_note(words: list[str], said: str, opened: str) -> None:
    """Run `dialogkit WORDS`, and note each file that the server opens for a request."""
    from dialogkit.services.serve import Server

    run = Server.run

    def noting(self: Server) -> int | None:
        notes = open(opened, "ab", buffering=0)  # noqa: SIM115 (open as long as the process is)

        def note(event: str, args: tuple[object, ...]) -> None:
            if event == "open":
                notes.write(f"{args[0]}\n".encode(errors="replace"))

        sys.addaudithook(note)
        return run(self)

    Server.run = noting  # type: ignore[method-assign]
    command_line_into(words, said)


def changed(chance: random.Random) -> bytes:
    """Return a request that is damaged, or asks for what it should not."""
    body = json.loads(json.dumps(chance.choice(BODIES)))
    head, kind = HEAD, chance.randrange(6)
    if kind == 0:
        body[chance.choice([*body, "x", "model", "temperature"])] = chance.choice(VALUES)
    elif kind == 1:
        body["messages"][-1][chance.choice(["role", "content", "x"])] = chance.choice(VALUES)
    elif kind == 2:
        head = head.replace("/v1/chat/completions", chance.choice(PATHS))
        head = head.replace("POST", chance.choice(["GET", "POST", "PUT", "BREW", "\x00"]))
    elif kind == 3:
        head += chance.choice(HEADERS) + "\r\n"
    text = json.dumps(body).encode()
    if "Content-Length" not in head:
        head += f"Content-Length: {len(text)}\r\n"
    whole = bytearray(head.encode("latin-1", "replace") + b"\r\n" + text)
    if kind >= 4:
        for _ in range(chance.randrange(1, 12)):
            at = chance.randrange(len(whole))
            change = chance.randrange(3)
            if change == 0:
                whole[at] = chance.randrange(256)
            elif change == 1:
                del whole[at : at + chance.randrange(40)]
            else:
                whole[at:at] = bytes(chance.choices(range(256), k=chance.randrange(1, 9)))
            whole = whole or bytearray(b"\r\n")
    return bytes(whole)


def answer_to(port: int, sent: bytes) -> bytes:
    """Return what comes back within a moment."""
    heard = b""
    with closing(socket.create_connection(("127.0.0.1", port), timeout=20)) as connection:
        try:
            connection.sendall(sent)
            connection.settimeout(0.4)
            while part := connection.recv(65_536):
                heard += part
        except OSError:  # nothing more, or the server has closed the connection
            pass
    return heard


@contextmanager
def served(trained: Trained, folder: Path) -> Iterator[tuple[int, Path, Path]]:
    """Run a server in a process of its own; yield its port, what it says and what it opens, and end it."""
    said, opened = folder / "said.txt", folder / "opened.txt"
    (folder / "secret.txt").write_text(SECRET)
    words = ["serve", "shared-run", "--port", "0", "--no-cuda", "--max-new-tokens", "2"]
    words += ["--output-dir", str(trained.output)]
    process = start_forked(serve_and_note, words, str(said), str(opened), folder=folder)
    try:
        end = time.monotonic() + 120
        while not (found := re.search(r"127\.0\.0\.1:(\d+)", said.read_text() if said.exists() else "")):
            assert time.monotonic() < end
            assert process.is_alive()
            time.sleep(0.05)
        yield int(found[1]), said, opened
        assert process.is_alive()
        process.terminate()
        process.join(60)
        assert process.exitcode == 128 + signal.SIGTERM
    finally:
        process.kill()


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.faults)])
@pytest.mark.timeout(600)
def test_damaged_requests_are_refused_and_the_next_one_is_answered(
    count: int, trained: Trained, tmp_path: Path
) -> None:
    chance = random.Random(count)
    requests = [changed(chance) for _ in range(count)]
    hello = HEAD + f"Content-Length: {len(json.dumps(BODIES[0]))}\r\n\r\n" + json.dumps(BODIES[0])
    with served(trained, tmp_path) as (port, said, opened), ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda request: answer_to(port, request), requests))
        last = answer_to(port, hello.encode())
        assert b"200 OK" in last
        assert httpx.get(f"http://127.0.0.1:{port}/health").json() == {"status": "ok", "running": 0, "waiting": 0}
    statuses = {int(answer.split(b" ", 2)[1]) for answer in answers if answer}
    assert {200, 400, 404} <= statuses
    assert not {status for status in statuses if status >= 500}
    for answer in answers:
        assert not answer or answer.startswith(b"HTTP/1.1 ")
        assert b"Traceback" not in answer
        assert b'File "' not in answer
        assert SECRET.encode() not in answer
        assert b"root:" not in answer
    assert "Traceback" not in said.read_text()
    files = opened.read_text().splitlines()
    strange = [each for each in files if each.startswith(("/etc", str(tmp_path), "secret", ".."))]
    assert strange == []
    assert "/proc/meminfo" in files  # what is opened was noted


def test_what_is_typed_with_control_characters_is_answered(trained: Trained) -> None:
    content = "\x00\x07\x1b]0;owned\x07\x1b[2J\x9b\u202e\ufeff\ud800<|end_of_turn|>"
    with dialogkit.serve("shared-run", port=0, output=trained.output, device="cpu") as server:
        body = json.dumps({"messages": [{"role": "user", "content": content}], "max_tokens": 2})
        answer = httpx.post(
            f"{server.url}/v1/chat/completions", content=body, headers={"Content-Type": "application/json"}
        )
    assert answer.status_code == 200


def test_clients_that_ask_for_nothing_keep_nobody_out(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MOST_CONNECTIONS", 6)
    with dialogkit.serve("shared-run", port=0, output=trained.output, device="cpu") as server:
        address = ("127.0.0.1", int(server.url.rpartition(":")[2]))
        silent = [socket.create_connection(address, timeout=30) for _ in range(10)]
        for each in silent[5:]:
            each.sendall(b"GET /health HT")
        assert [closed(each) for each in silent[:4]] == [True] * 4  # the first ones made room for the last ones
        assert httpx.get(f"{server.url}/health").status_code == 200
        monkeypatch.setattr(connections, "HEAD_S", 0.2)
        slow = socket.create_connection(address, timeout=30)
        for letter in b"GET /hea":
            slow.sendall(bytes([letter]))
        assert closed(slow)
        for each in [*silent, slow]:
            each.close()


def closed(connection: socket.socket) -> bool:
    """Return whether the server ends a connection without an answer."""
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True
