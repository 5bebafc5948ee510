"""What is checked of every request before it is answered: the host it names, its key, and the size of its body."""

import hmac
import re
from typing import Any

from dialogkit.services.serving.protocol import ApiError

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
OPEN = frozenset({"/", "/health"})
"""Paths that need no key: the page asks for it."""


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches an address."""
    return host in LOOPBACK or re.fullmatch(r"127\.\d{1,3}\.\d{1,3}\.\d{1,3}", host) is not None


def host_in(header: str) -> str:
    """Return the host of a Host header, without its port."""
    found = re.fullmatch(r"\[([0-9a-fA-F:]+)\](?::\d+)?|([^:\[\]]*)(?::\d+)?", header.strip())
    return (found[1] or found[2] or "").lower() if found else ""


class Guard:
    """An ASGI application around another one that refuses what must not reach it.

    Without a key, a request has to name a loopback host: a page of another site whose name was rebound to this
    machine names its own. A browser sends such a page's POST only with a type of content that is no JSON, which is
    refused as well.
    """

    def __init__(self, app: Any, *, api_key: str | None, most_requests: int) -> None:
        self._app, self._key, self._most = app, api_key, most_requests
        self._open = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        from dialogkit.services.serving.app import error_response

        self._open += 1
        try:
            self._check(scope)
        except ApiError as error:
            await error_response(error)(scope, receive, send)
        else:
            await self._app(scope, receive, send)
        finally:
            self._open -= 1

    def _check(self, scope: Any) -> None:
        """Raise ApiError for a request that is refused."""
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if self._open > self._most:
            text = f"{self._most} requests are open already; try again later"
            raise ApiError(503, text, code="too_many_requests", headers={"Retry-After": "1"})
        if self._key is None and not is_loopback(host := host_in(headers.get("host", ""))):
            raise ApiError(403, f"the host {host!r} is not this machine's loopback", code="host_refused")
        if scope["method"] == "POST":
            kind = headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != "application/json":
                raise ApiError(415, f"the content type is {kind!r}, not 'application/json'", code="not_json")
        if self._key is not None and scope["path"] not in OPEN:
            scheme, _, given = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(
                given.strip().encode("latin-1"), self._key.encode()
            ):
                raise ApiError(
                    401,
                    "the API key is missing or wrong",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
