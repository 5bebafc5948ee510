"""A server on loopback: OpenAI's client as it is, many requests at once, and what is refused."""

import inspect
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

import dialogkit
from dialogkit.config.generate import GenerateConfig
from dialogkit.errors import ConfigError, OutOfMemoryError, UnavailableError
from dialogkit.services.generate import generate
from dialogkit.services.serve import Server
from tests.conftest import Finished, Trained, typed

HELLO = [{"role": "user", "content": "Hello!"}]
BODY = {"messages": HELLO, "max_tokens": 4}
JSON = {"Content-Type": "application/json"}
COMPLETIONS = "/v1/chat/completions"


@pytest.fixture(scope="module")
def server(trained: Trained) -> Iterator[Server]:
    """A server of a model and of its last checkpoint, which has room for two replies at once."""
    checkpoint = sorted(trained.output.glob("runs/shared-run/checkpoint-*"))[-1]
    models = ["shared-run", str(checkpoint)]
    with dialogkit.serve(models, port=0, output=trained.output, device="cpu", at_once=2, queue=12) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0)


@pytest.fixture
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as made:
        yield made


class Pace:
    """How fast tokens come."""

    def __init__(self) -> None:
        self.seconds, self.steps, self.go = 0.02, 0, threading.Event()


@pytest.fixture
def pace(monkeypatch: pytest.MonkeyPatch) -> Pace:
    """Let replies go on until the context is full, and each token wait."""
    from dialogkit.inference.batching import ReplyBatch
    from dialogkit.services.runs import loading

    made, step, load = Pace(), ReplyBatch.step, loading.load_for_inference

    def waiting(batch: ReplyBatch) -> None:
        made.steps += 1
        made.go.wait(made.seconds)
        step(batch)

    def endless(*args: Any, **settings: Any) -> Any:
        loaded = load(*args, **settings)
        loaded.tokenizer.reply_stop_ids = frozenset()
        return loaded

    monkeypatch.setattr(ReplyBatch, "step", waiting)
    monkeypatch.setattr(loading, "load_for_inference", endless)
    return made


def ask(client: openai.OpenAI, text: str = "Hello!", **settings: Any) -> Any:
    given = {"model": "shared-run", "messages": [{"role": "user", "content": text}], **settings}
    return client.chat.completions.create(**given)


def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_models_are_listed_and_described(server: Server, client: openai.OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert names == server.models
    assert names[0] == "shared-run"
    assert names[1].startswith("shared-run/checkpoint-")
    assert [client.models.retrieve(name).id for name in names] == names
    assert ask(client, model=names[1], max_tokens=2).model == names[1]


@pytest.mark.parametrize(
    "settings", [{"seed": 3}, {"seed": 3, "temperature": 1.5, "top_p": 0.8}, {"temperature": 0}]
)
def test_a_reply_is_that_of_generate(client: openai.OpenAI, trained: Trained, settings: dict[str, Any]) -> None:
    reply = ask(client, **settings, max_completion_tokens=12)
    config = GenerateConfig(max_new_tokens=12, **settings)
    (expected,) = generate("shared-run", "Hello!", config=config, output=trained.output, device="cpu").replies
    (choice,) = reply.choices
    assert (choice.message.role, choice.message.content) == ("assistant", expected.reply)
    assert choice.finish_reason == {"end of turn": "stop", "length": "length"}[expected.stop_reason]
    assert reply.usage.completion_tokens == expected.tokens
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + expected.tokens


def test_the_pieces_of_a_stream_are_the_whole(client: openai.OpenAI) -> None:
    settings: dict[str, Any] = {"seed": 5, "temperature": 1.5, "n": 2, "max_tokens": 20}
    whole = ask(client, **settings)
    texts, reasons, usage = ["", ""], ["", ""], None
    for chunk in ask(client, **settings, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == [choice.message.content for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert usage is not None
    assert usage.model_copy(update={"prompt_tokens_details": whole.usage.prompt_tokens_details}) == whole.usage
    assert usage.prompt_tokens_details.cached_tokens == usage.prompt_tokens - 1  # read for the reply before
    assert texts[0] != texts[1]
    assert ask(client, **(settings | {"seed": 6, "n": 1})).choices[0].message.content == texts[1]


def test_a_stop_string_ends_a_reply_before_itself(client: openai.OpenAI) -> None:
    settings: dict[str, Any] = {"seed": 5, "temperature": 1.5, "max_tokens": 20}
    whole = ask(client, **settings).choices[0].message.content
    stop = whole[len(whole) // 2 :][:3]
    cut = ask(client, **settings, stop=["never said", stop]).choices[0]
    assert (cut.message.content, cut.finish_reason) == (whole[: whole.index(stop)], "stop")
    streamed = ask(client, **settings, stop=stop, stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in streamed) == whole[: whole.index(stop)]


def test_a_reply_is_the_same_alone_and_among_others(client: openai.OpenAI) -> None:
    texts = ["Hello!", "What is the capital of France?", "a", "One two three four. " * 5, "Bye", "Who are you?"]

    def reply(number: int) -> str:
        settings: dict[str, Any] = {"seed": number, "temperature": 1.5, "max_tokens": 5 + 4 * number}
        return str(ask(client, texts[number], **settings).choices[0].message.content)

    alone = [reply(number) for number in range(len(texts))]
    with ThreadPoolExecutor(len(texts)) as pool:
        assert list(pool.map(reply, range(len(texts)))) == alone


def test_without_a_seed_replies_differ_and_say_how_to_get_them_again(http: httpx.Client) -> None:
    body = {"messages": HELLO, "temperature": 2, "max_tokens": 12, "model": "shared-run"}
    first, second = (http.post(COMPLETIONS, json=body).json() for _ in range(2))
    assert first["seed"] != second["seed"]
    again = http.post(COMPLETIONS, json={**body, "seed": first["seed"]}).json()
    assert again["choices"] == first["choices"]


def test_parts_of_text_and_a_developers_message_are_taken(client: openai.OpenAI) -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo!"}]
    said = [{"role": "developer", "content": "Be kind."}, {"role": "user", "content": parts}]
    plain = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello!"}]
    replies = [ask(client, messages=messages, seed=1, max_tokens=8) for messages in (said, plain)]
    assert replies[0].choices[0].message.content == replies[1].choices[0].message.content
    answer = replies[0].choices[0].message.model_dump()
    following = [*plain, answer, {"role": "user", "content": "And?"}]
    assert ask(client, messages=following, max_tokens=1).usage.prompt_tokens > replies[0].usage.prompt_tokens


def test_a_dialog_that_is_too_long_is_refused_or_loses_its_oldest_turns(
    client: openai.OpenAI, http: httpx.Client
) -> None:
    turn = [{"role": "user", "content": "Hello, hello! " * 4}, {"role": "assistant", "content": "Hello!"}]
    long = [{"role": "system", "content": "Be kind."}, *turn * 12, *HELLO]
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, messages=long)
    assert refused.value.code == "context_length_exceeded"
    body = {"model": "shared-run", "messages": long, "max_tokens": 2, "truncation": "auto"}
    shortened = http.post(COMPLETIONS, json=body).json()
    assert shortened["left_out"] in range(2, 24, 2)
    assert shortened["usage"]["prompt_tokens"] <= 254


@pytest.mark.parametrize(
    ("change", "status", "code", "param"),
    [
        ({"model": "no-such"}, 404, "model_not_found", "model"),
        ({"model": None}, 400, "missing_required_parameter", "model"),
        ({"messages": []}, 400, "invalid_value", "messages"),
        ({"messages": None}, 400, "missing_required_parameter", "messages"),
        ({"messages": [{"role": "assistant", "content": "Hi"}]}, 400, "invalid_value", "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "invalid_value", "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, 400, "invalid_value", "messages"),
        ({"temperature": 2.1}, 400, "invalid_value", "temperature"),
        ({"top_p": "x"}, 400, "invalid_value", "top_p"),
        ({"n": 99}, 400, "invalid_value", "n"),
        ({"stop": ["a"] * 5}, 400, "invalid_value", "stop"),
        ({"frequency_penalty": 0.5}, 400, "invalid_value", "frequency_penalty"),
        ({"tools": [{"type": "function"}]}, 400, "unsupported_parameter", "tools"),
        ({"max_token": 3}, 400, "unsupported_parameter", "max_token"),
    ],
)
def test_what_is_wrong_is_named(
    change: dict[str, Any], status: int, code: str, param: str, http: httpx.Client
) -> None:
    answer = http.post(COMPLETIONS, json={**BODY, "model": "shared-run", **change})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (status, code, param)
    assert error["message"]


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        ({"content": b"{", "headers": JSON}, 400, "invalid_json"),
        ({"content": b"[" * 100_000, "headers": JSON}, 400, "invalid_json"),
        ({"json": [1]}, 400, "invalid_json"),
        ({"json": "x" * 1_000_001}, 413, "body_too_large"),
        ({"content": iter([b"x" * 600_000] * 2), "headers": JSON}, 413, "body_too_large"),
        ({"content": json.dumps(BODY).encode(), "headers": {"Content-Type": "text/plain"}}, 415, "not_json"),
        ({"json": BODY, "headers": {"Host": "evil.example:8000"}}, 403, "host_refused"),
        ({"json": BODY, "headers": {"Host": "127.0.0.1.evil.example"}}, 403, "host_refused"),
    ],
)  # fmt: skip
def test_a_request_that_must_not_reach_a_model_is_refused(
    request_: dict[str, Any], status: int, code: str, http: httpx.Client
) -> None:
    answer = http.post(COMPLETIONS, **request_)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert "access-control-allow-origin" not in answer.headers


def client_of(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0)


def test_more_than_the_queue_holds_is_refused_and_the_rest_is_answered(pace: Pace, trained: Trained) -> None:
    pace.seconds = 60
    with (
        dialogkit.serve("shared-run", port=0, output=trained.output, device="cpu", at_once=2, queue=8) as server,
        ThreadPoolExecutor(4) as pool,
    ):
        asked = [pool.submit(ask, client_of(server), n=4, max_tokens=4, seed=1) for _ in range(4)]
        until(lambda: any(each.done() for each in asked))
        refused = [each for each in asked if each.done()]
        pace.go.set()
        assert {type(each.exception()) for each in refused} == {openai.RateLimitError}
        answered = {str(each.result().choices) for each in asked if not each.exception()}
        assert len(answered) == 1


def test_a_client_that_leaves_frees_its_place(pace: Pace, trained: Trained) -> None:
    body = {"model": "shared-run", "messages": HELLO, "max_tokens": 250, "temperature": 0}
    with dialogkit.serve("shared-run", port=0, output=trained.output, device="cpu") as server:

        def running() -> int:
            return int(httpx.get(f"{server.url}/health").json()["running"])

        with httpx.stream("POST", server.url + COMPLETIONS, json={**body, "stream": True}) as stream:
            lines = stream.iter_lines()  # once it is forgotten, the connection is closed
            next(lines)
            until(lambda: running() == 1)
        until(lambda: running() == 0)
        with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as whole:
            text = json.dumps(body)
            head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            whole.sendall(f"{head}Content-Length: {len(text)}\r\n\r\n{text}".encode())
            until(lambda: running() == 1)
        until(lambda: running() == 0)
    assert pace.steps < 250


def test_a_reply_over_its_time_is_an_error(pace: Pace, trained: Trained) -> None:
    with dialogkit.serve("shared-run", port=0, output=trained.output, device="cpu", time_limit_s=0.5) as server:
        client = client_of(server)
        with pytest.raises(openai.APIStatusError) as late:
            ask(client, max_tokens=200, temperature=0)
        assert (late.value.status_code, late.value.code) == (504, "timeout")
        with pytest.raises(openai.APIError, match="longer than the server allows"):
            list(ask(client, max_tokens=200, temperature=0, stream=True))


def test_a_failure_while_replying_is_an_error_and_the_next_reply_is_none(
    client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dialogkit.inference.batching import ReplyBatch

    def broken(_: ReplyBatch) -> None:
        raise RuntimeError("a kernel failed")

    with monkeypatch.context() as patch:
        patch.setattr(ReplyBatch, "step", broken)
        with pytest.raises(openai.InternalServerError):
            ask(client, max_tokens=20, temperature=0)  # whose first token does not end the reply
    assert ask(client, max_tokens=2).choices


def test_what_ended_replies_have_read_makes_room_for_others(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([None, OutOfMemoryError("it takes more than is free"), None, None])

    def room(*args: Any) -> int:
        if answer := next(answers):
            raise answer
        return 1

    monkeypatch.setattr("dialogkit.services.serving.engine.replies_at_once", room)
    with dialogkit.serve("shared-run", port=0, output=trained.output, device="cpu") as server:
        replies = [ask(client_of(server), seed=1, max_tokens=4) for _ in range(3)]
    reused = [reply.usage.prompt_tokens_details.cached_tokens for reply in replies]
    assert reused == [0, 0, replies[0].usage.prompt_tokens - 1]
    assert len({reply.choices[0].message.content for reply in replies}) == 1


def test_the_page_reaches_nothing_but_its_server(http: httpx.Client) -> None:
    page = http.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "innerHTML" not in page.text
    assert "https://" not in page.text


def test_a_key_is_asked_for_where_there_is_one(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIALOGKIT_API_KEY", "open sesame")
    with dialogkit.serve("shared-run", host="0.0.0.0", port=0, output=trained.output, device="cpu") as server:
        url = server.url.replace("0.0.0.0", "127.0.0.1")
        good, bad = (openai.OpenAI(base_url=f"{url}/v1", api_key=k, max_retries=0) for k in ("open sesame", "no"))
        assert ask(good, max_tokens=1).choices
        with pytest.raises(openai.AuthenticationError):
            ask(bad)
        assert httpx.get(url, headers={"Host": "my-server.example"}).status_code == 200


def test_the_command_says_where_it_serves_and_how_it_ended(
    trained: Trained, dialogkit: Callable[..., Finished], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Server.run

    def briefly(server: Server) -> int:
        server.stop()
        run(server)
        return int(signal.SIGTERM)

    monkeypatch.setattr(Server, "run", briefly)
    words = ["serve", "shared-run", "--port", "0", "--time-limit", "90s", "--no-cuda"]
    done = dialogkit(*words, "--output-dir", str(trained.output))
    assert (done.code, done.out) == (143, "")
    assert "serving shared-run at http://127.0.0.1:" in done.err


def test_a_host_that_others_reach_needs_a_key(trained: Trained) -> None:
    with pytest.raises(
        ConfigError, match=r"other machines reach the host '0\.0\.0\.0', and there is no API key"
    ) as error:
        Server("shared-run", host="0.0.0.0", output=trained.output)
    assert "--host 127.0.0.1" in str(typed(error.value, "serve", "shared-run"))


def test_a_model_that_is_given_twice_is_refused(trained: Trained) -> None:
    again = str(trained.output / "runs/shared-run")
    with pytest.raises(ConfigError, match="the model 'shared-run' is given twice") as error:
        Server(["shared-run", again], output=trained.output)
    assert typed(error.value, "serve") == "dialogkit serve shared-run"


def test_a_port_that_is_taken_is_refused_before_a_model_is_loaded(server: Server, trained: Trained) -> None:
    port = int(server.url.rpartition(":")[2])
    with pytest.raises(UnavailableError, match=f"port {port} of '127.0.0.1' cannot be used") as error:
        Server("shared-run", port=port, output=trained.output)
    assert typed(error.value, "serve", "shared-run") == f"--port {port + 1}"


def test_serve_takes_and_explains_what_a_server_takes() -> None:
    parameters = inspect.signature(dialogkit.serve).parameters
    assert parameters == inspect.signature(Server).parameters
    assert [name for name in parameters if f"        {name}: " not in str(dialogkit.serve.__doc__)] == []


def test_without_the_packages_the_command_that_installs_them_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "starlette", None)
    with pytest.raises(UnavailableError, match="needs the package starlette") as error:
        Server("shared-run")
    assert typed(error.value, "serve") == "pip install 'dialogkit[serve]'"


def test_a_signal_lets_replies_end(pace: Pace, trained: Trained) -> None:
    server = Server("shared-run", port=0, output=trained.output, device="cpu")
    reasons: list[str] = []

    def talk() -> None:
        for number, chunk in enumerate(ask(client_of(server), stream=True, max_tokens=12, temperature=0)):
            if number == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            reasons.extend(choice.finish_reason for choice in chunk.choices if choice.finish_reason)

    with ThreadPoolExecutor(1) as pool:
        talked = pool.submit(talk)
        assert server.run() == signal.SIGTERM
        talked.result()
    assert reasons == ["length"]
    with pytest.raises(openai.APIConnectionError):
        ask(client_of(server))
