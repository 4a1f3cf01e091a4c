"""MLflow's own scoring server behind a bound on the size of a request; it has none, and reads all into memory."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

VARIABLE = "TSV_SERVING_BODY_BYTES"
MOST_BYTES = 64 * 2**20
_SECONDS_TO_DRAIN = 5  # how long a refused body is read on and thrown away, for the client to see why

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]


class BoundedBodies:
    """Answers 413 to a body that is, or turns out to be, too large; the application never sees it."""

    def __init__(self, application: Application, most_bytes: int) -> None:
        self._application = application
        self._most_bytes = most_bytes

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._application(scope, receive, send)
        stated = dict(scope["headers"]).get(b"content-length", b"0")
        if stated.isdigit() and int(stated) > self._most_bytes:
            return await self._refuse(scope, receive, send)
        body = bytearray()
        while True:  # of a body without a stated length
            message = await receive()
            body += message.get("body", b"")
            if len(body) > self._most_bytes:
                body.clear()
                return await self._refuse(scope, receive, send)
            if not message.get("more_body"):
                break
        whole: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]
        await self._application(scope, lambda: _next(whole, receive), send)

    async def _refuse(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        told = {"error_code": "REQUEST_LIMIT_EXCEEDED", "message": f"a body of more than {self._most_bytes:,} bytes"}
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 413, "headers": headers})
        if b"expect" not in dict(scope["headers"]):  # a client that asks before it sends need not send
            await _drain(receive)
        await send({"type": "http.response.body", "body": json.dumps(told).encode()})


async def _drain(receive: Receive) -> None:
    """Read a body to its end: to hang up on a client that is sending yet would take the answer from it."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_SECONDS_TO_DRAIN):
            while (await receive()).get("more_body"):
                pass


async def _next(whole: list[Message], receive: Receive) -> Message:
    return whole.pop() if whole else await receive()


def create_application() -> Application:
    """What uvicorn runs: MLflow's application of the model that the environment names, behind the bound."""
    from mlflow.pyfunc.scoring_server.app import app

    return BoundedBodies(app, int(os.environ.get(VARIABLE, MOST_BYTES)))
