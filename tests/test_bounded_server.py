"""The bound on what a client may send: 413 without keeping what comes, and everything else as it was."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import tasks.bounded_server
from tasks.bounded_server import BoundedBodies


def answer(parts: list[bytes], headers: dict[bytes, bytes], most_bytes: int = 10) -> tuple[int, bytes | None, int]:
    """Status, the body that the application saw (None: it saw none), and how many parts were read."""
    seen: list[bytes] = []
    sent: list[Any] = []
    waiting = list(parts)

    async def application(scope: Any, receive: Any, send: Any) -> None:
        seen.append((await receive())["body"])
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive() -> Any:
        return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting)}

    async def send(message: Any) -> None:
        sent.append(message)

    bounded = BoundedBodies(application, most_bytes)
    asyncio.run(bounded({"type": "http", "headers": list(headers.items())}, receive, send))
    return sent[0]["status"], seen[0] if seen else None, len(parts) - len(waiting)


@pytest.mark.parametrize("parts", [[b"1234567890"], [b"12345", b"67890"], [b""]])
def test_a_body_within_the_bound_arrives_whole(parts: list[bytes]) -> None:
    assert answer(parts, {}) == (200, b"".join(parts), len(parts))


def test_a_stated_length_beyond_it_is_refused_and_what_comes_thrown_away() -> None:
    assert answer([b"123456", b"78901"], {b"content-length": b"11"}) == (413, None, 2)


def test_a_client_that_asks_first_need_not_send() -> None:
    assert answer([b"12345678901"], {b"content-length": b"11", b"expect": b"100-continue"}) == (413, None, 0)


def test_a_client_that_never_ends_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks.bounded_server, "_SECONDS_TO_DRAIN", 0.01)
    sent: list[Any] = []

    async def receive() -> Any:
        await asyncio.sleep(0.001)
        return {"type": "http.request", "body": b"more", "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(BoundedBodies(lambda *_: receive(), 10)({"type": "http", "headers": []}, receive, send))
    assert [message.get("status") for message in sent] == [413, None]


def test_an_unstated_length_is_refused_when_it_is_passed() -> None:
    assert answer([b"123456", b"123456", b"123456"], {}) == (413, None, 3)


def test_a_length_that_is_no_number_counts_as_unstated() -> None:
    assert answer([b"1"], {b"content-length": b"many"}) == (200, b"1", 1)
