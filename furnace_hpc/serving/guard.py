"""Refuse requests of other sites and requests that are too large, before anything reads them."""

import json
from collections.abc import Iterable
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from furnace_hpc.config.parsing.text_safety import printable
from furnace_hpc.serving.hosts import Hosts, is_same_origin

# The page has no inline script and no inline style. It loads nothing from other servers.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; media-src blob:; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
# A browser shows an answer only after it has sent the body. Larger bodies are cut off.
MAX_DRAINED_BYTES = 512 * 2**20


class TooLarge(Exception):
    """The body of a request is larger than allowed."""


class Guard:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, hosts: Hosts, max_bytes: int) -> None:
        self._app, self._hosts, self._max_bytes = app, hosts, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a refused request here, and pass on all others."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = Body(receive, self._max_bytes)
        answer = Answer(send)
        if refusal := self._refusal(scope):
            await answer.refuse(*refusal)
            return
        if _length(scope["headers"]) > self._max_bytes:
            await body.drain()
            await answer.refuse(413, too_large(self._max_bytes))
            return
        await self._app(scope, body.receive, answer.send)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Return status and reason if a request must not be answered."""
        hosts = _values(scope["headers"], b"host")
        if len(hosts) != 1 or not self._hosts.knows(hosts[0]):
            named = printable(hosts[0][:80]) if hosts else ""
            return 403, f"Host {named!r} is not a name of this server. Open it as localhost"
        for origin in _values(scope["headers"], b"origin"):
            if scope["method"] != "GET" and not is_same_origin(origin, hosts[0]):
                named = printable(origin[:80])
                return 403, f"the request is from a page of {named!r}. Use this server's page"
        return None


def too_large(max_bytes: int) -> str:
    """Return the error for a request that is too large."""
    return (
        f"the request has more than {max_bytes / 2**20:g} MiB. Send a smaller file, or start "
        "`furnace serve` with a larger --max-mib"
    )


class Body:
    """The body of a request, up to a number of bytes."""

    def __init__(self, receive: Receive, max_bytes: int) -> None:
        self._receive, self._max_bytes = receive, max_bytes
        self._num_bytes, self._more = 0, True

    async def receive(self) -> Message:
        """Return the next part.

        Raises:
            TooLarge: the parts have more bytes than allowed.
        """
        message = await self._next()
        if self._num_bytes > self._max_bytes:
            await self.drain()
            raise TooLarge
        return message

    async def drain(self) -> None:
        """Read and forget the rest."""
        while self._more and self._num_bytes <= MAX_DRAINED_BYTES:
            await self._next()

    async def _next(self) -> Message:
        message = await self._receive()
        self._more = message["type"] == "http.request" and message.get("more_body", False)
        self._num_bytes += len(message.get("body", b""))
        return message


class Answer:
    """The response of a request. All have the same safety headers."""

    def __init__(self, send: Send) -> None:
        self._send = send

    async def send(self, message: Message) -> None:
        """Send a part."""
        if message["type"] == "http.response.start":
            own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
            message = {**message, "headers": [*message.get("headers", []), *own]}
        await self._send(message)

    async def refuse(self, status: int, reason: str) -> None:
        """Answer with an error."""
        content = json.dumps({"error": reason}).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(content)).encode()),
        ]
        await self.send({"type": "http.response.start", "status": status, "headers": headers})
        await self.send({"type": "http.response.body", "body": content})


def _values(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in headers if key == name]


def _length(headers: Any) -> int:
    found = _values(headers, b"content-length")
    return int(found[0]) if found and found[0].isdigit() else 0
