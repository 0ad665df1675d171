"""Connections that send the head of a request slowly, or not at all."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import uvicorn

from visage.server import connections
from visage.server.connections import PromptProtocol

HEAD = b"GET / HTTP/1.1\r\nHost: x\r\n"


async def answer(scope: Any, receive: Any, send: Any) -> None:  # noqa: ARG001
    await asyncio.sleep(0.2)  # longer than a head may take here
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})


async def with_server(scenario: Any) -> Any:
    config = uvicorn.Config(
        answer, port=0, http=PromptProtocol, ws="none", lifespan="off", log_config=None
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        return await asyncio.wait_for(scenario(port), 30)
    finally:
        server.should_exit = True
        await serving


@pytest.mark.parametrize("sent", [b"", b"G", HEAD])
def test_half_a_head_is_given_up(monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.1)

    async def scenario(port: int) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        try:
            return await reader.read()
        finally:
            writer.close()

    assert asyncio.run(with_server(scenario)) == b""


def test_a_request_may_take_longer_than_its_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a second one on the same connection too; half of a third is given up."""
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.1)

    async def scenario(port: int) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(2):
            writer.write(HEAD + b"\r\n")
            assert b"200" in await reader.readuntil(b"ok\r\n0\r\n\r\n")
        writer.write(HEAD)
        try:
            return await reader.read()
        finally:
            writer.close()

    assert asyncio.run(with_server(scenario)) == b""
