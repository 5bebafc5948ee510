"""The HTTP application: OpenAI's chat API, and the page to chat on."""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from dialogkit.config.generate import GenerateConfig
from dialogkit.services.serving.chat_page import chat_page
from dialogkit.services.serving.engine import Begun, Ended, Engine, Event, Job, deliver_all
from dialogkit.services.serving.guard import Guard
from dialogkit.services.serving.protocol import Answer, ApiError, ChatRequest, Usage, read_request


@dataclass(frozen=True)
class Limits:
    """What one request may take."""

    body_bytes: int = 1_000_000
    body_s: float = 30.0
    """Seconds in which a body has to arrive."""
    reply_s: float = 300.0
    """Seconds from a request to the end of its reply, waiting included."""
    requests: int = 256
    """Most requests that are open at once."""


@dataclass(frozen=True)
class Offered:
    """A model that requests may name."""

    name: str
    config: GenerateConfig
    """Its sampling settings where a request gives none."""
    is_seeded: bool
    """Whether the seed of `config` is used; else each request without a seed gets one at random."""
    aliases: tuple[str, ...] = ()
    created: int = 0


def error_response(error: ApiError) -> Response:
    """Return an error as the API writes it."""
    return JSONResponse(error.body, status_code=error.status, headers=error.headers)


def make_app(engine: Engine, models: Sequence[Offered], *, limits: Limits, api_key: str | None) -> Guard:
    """Return the application that answers requests with an engine's replies."""
    api = _Api(engine, models, limits)
    page, policy = _page()

    async def show(request: Request) -> Response:
        return HTMLResponse(page, headers={"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff"})

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        known = {
            404: f"there is no {request.url.path!r}; replies come from '/v1/chat/completions'",
            405: f"{request.method} is not answered here",
        }
        text = known.get(error.status_code, str(error.detail))
        return error_response(
            ApiError(error.status_code, text, code="not_found", headers=dict(error.headers or {}))
        )

    async def failed(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return error_response(error)

    routes = [
        Route("/", show),
        Route("/health", api.health),
        Route("/v1/models", api.list_models),
        Route("/v1/models/{name:path}", api.show_model),
        Route("/v1/chat/completions", api.chat, methods=["POST"]),
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: refused, ApiError: failed})
    return Guard(app, api_key=api_key, most_requests=limits.requests)


def _page() -> tuple[str, str]:
    """Return the chat page, and the policy that lets it run its own script and reach nothing but this server."""
    page = chat_page()
    policy = (
        f"default-src 'none'; script-src {page.digest}; style-src 'unsafe-inline'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return page.html, policy


class _Api:
    """The endpoints."""

    def __init__(self, engine: Engine, models: Sequence[Offered], limits: Limits) -> None:
        self._engine, self._limits = engine, limits
        engine.hand_over = self._hand_over
        self._models = {model.name: model for model in models}
        self._known: Mapping[str, Offered] = {
            **{alias: model for model in models for alias in model.aliases},
            **self._models,
        }

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok", "running": self._engine.running, "waiting": self._engine.waiting})

    async def list_models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [_described(model) for model in self._models.values()]})

    async def show_model(self, request: Request) -> Response:
        return JSONResponse(_described(self._model(request.path_params["name"])))

    def _model(self, name: str | None) -> Offered:
        if name is None and len(self._models) == 1:
            return next(iter(self._models.values()))
        if name is None:
            raise ApiError(
                400, "the parameter 'model' is missing", code="missing_required_parameter", param="model"
            )
        if name not in self._known:
            served = ", ".join(self._models)
            text = f"there is no model {name[:100]!r} here; served are {served}"
            raise ApiError(404, text, code="model_not_found", param="model")
        return self._known[name]

    def _hand_over(self, events: Sequence[tuple[Job, Event]]) -> None:
        """Pass events from the engine's thread to that of the requests."""
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(deliver_all, events)

    async def chat(self, request: Request) -> Response:
        self._loop = asyncio.get_running_loop()
        asked = read_request(await self._json(request))
        model = self._model(asked.model)
        given = asked.sampling()
        if "seed" not in given and not model.is_seeded:
            given["seed"] = secrets.randbits(32)
        config = model.config.model_copy(update=given)
        asking = _Asking(self._engine, model, asked, config, self._limits)
        answer = await asking.begin()
        if asked.stream:
            return _EventStream(asking, asking.stream(answer), seconds=self._limits.reply_s + 60)
        whole = asyncio.ensure_future(asking.whole(answer))
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait({whole, gone}, return_when=asyncio.FIRST_COMPLETED)
            return JSONResponse(await whole) if whole.done() else Response(status_code=499)
        finally:
            whole.cancel()
            gone.cancel()
            asking.cancel()

    async def _json(self, request: Request) -> object:
        """Return the body. Raises: ApiError if it is too long, too slow or not JSON."""
        most, body = self._limits.body_bytes, b""
        too_long = ApiError(413, f"the body has more than {most:,} bytes", code="body_too_large")
        if int(request.headers.get("content-length", "0")) > most:
            raise too_long
        try:
            async with asyncio.timeout(self._limits.body_s):
                async for part in request.stream():
                    body += part
                    if len(body) > most:
                        raise too_long
        except TimeoutError:
            raise ApiError(408, "the body did not arrive in time", code="timeout") from None
        except ClientDisconnect:
            raise ApiError(400, "the body is not complete", code="invalid_json") from None
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as error:
            text = f"the body is not JSON: {error}" if isinstance(error, ValueError) else "the body is too deep"
            raise ApiError(400, text, code="invalid_json") from None


def _described(model: Offered) -> dict[str, Any]:
    return {"id": model.name, "object": "model", "created": model.created, "owned_by": "dialogkit"}


async def _disconnected(request: Request) -> None:
    """Return when the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _Asking:
    """One request and the jobs of its choices."""

    def __init__(
        self, engine: Engine, model: Offered, asked: ChatRequest, config: GenerateConfig, limits: Limits
    ) -> None:
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._asked, self._model, self._config, self._engine = asked, model, config, engine
        deadline, dialog = time.monotonic() + limits.reply_s, asked.dialog()
        self._jobs = [
            Job(
                model.name,
                dialog,
                config.model_copy(update={"seed": (config.seed + index) % 2**32}),
                partial(self._receive, index),
                stops=asked.stop,
                streams=asked.stream,
                leaves_out=asked.truncation == "auto",
                deadline=deadline,
            )
            for index in range(asked.n)
        ]
        self._prompt_tokens = self._reused = 0

    async def begin(self) -> Answer:
        """Submit the jobs, and return the answer when the first has begun. Raises: ApiError."""
        self._engine.submit(self._jobs)
        try:
            while True:
                _, event = await self._events.get()
                if isinstance(event, ApiError):
                    raise event
                if isinstance(event, Begun):
                    self._prompt_tokens, self._reused = event.prompt_tokens, event.reused
                    return Answer(self._model.name, seed=self._config.seed, left_out=event.left_out)
        except BaseException:
            self.cancel()
            raise

    def _receive(self, index: int, event: Event) -> None:
        self._events.put_nowait((index, event))

    def cancel(self) -> None:
        """End the jobs that are not complete."""
        for job in self._jobs:
            job.is_cancelled = True

    async def whole(self, answer: Answer) -> dict[str, Any]:
        """Return the answer with all choices. Raises: ApiError."""
        ends: dict[int, Ended] = {}
        while len(ends) < len(self._jobs):
            index, event = await self._events.get()
            if isinstance(event, ApiError):
                raise event
            if isinstance(event, Ended):
                ends[index] = event
        chosen = [ends[index] for index in range(len(self._jobs))]
        usage = Usage(self._prompt_tokens, self._reused, sum(end.tokens for end in chosen))
        return answer.whole([end.text for end in chosen], [end.reason for end in chosen], usage)

    async def stream(self, answer: Answer) -> AsyncIterator[str]:
        """Yield the answer as server-sent events."""
        for index in range(len(self._jobs)):
            yield _event(answer.chunk(index, {"role": "assistant", "content": ""}))
        left, tokens = len(self._jobs), 0
        while left:
            index, event = await self._events.get()
            if isinstance(event, ApiError):
                yield _event(event.body)
                return
            if isinstance(event, str):
                yield _event(answer.chunk(index, {"content": event}))
            elif isinstance(event, Ended):
                left -= 1
                tokens += event.tokens
                yield _event(answer.chunk(index, {}, event.reason))
        if self._asked.stream_options.include_usage:
            yield _event(answer.usage_chunk(Usage(self._prompt_tokens, self._reused, tokens)))
        yield "data: [DONE]\n\n"


def _event(body: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


class _EventStream(StreamingResponse):
    """A stream whose jobs end when the client leaves, or reads too slowly."""

    def __init__(self, asking: _Asking, content: AsyncIterator[str], *, seconds: float) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(content, media_type="text/event-stream", headers=headers)
        self._asking, self._seconds = asking, seconds

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            async with asyncio.timeout(self._seconds):
                await super().__call__(scope, receive, send)
        except TimeoutError:
            pass
        finally:
            self._asking.cancel()
