"""Sends a flow's result to people, through their own Prefect Webhook block (its address may be a
secret)."""

from __future__ import annotations

from typing import Any

from prefect import get_run_logger
from prefect.blocks.webhook import Webhook
from prefect.utilities.asyncutils import run_coro_as_sync


def notify(block: str | None, text: str) -> None:
    """Posts {"text": ...} to the block's address; does nothing if `block` is None.

    A message that does not arrive is a warning in the log: it must not undo the work that it
    reports. The warning shows neither the address nor the text of the response.
    """
    if block is None:
        return

    try:
        status: Any = run_coro_as_sync(_post(block, text))
        problem = f"it answered with status {status}" if status >= 400 else None
    except Exception as error:
        # Anything can fail here: a foreign server, a missing block. The error's text may hold the
        # address or a header, so that only its type is shown.
        problem = type(error).__name__

    if problem:
        get_run_logger().warning(
            "webhook block %r got no message (%s); check in Prefect's pages that it exists and "
            "where it posts to: %s",
            block,
            problem,
            text,
        )


async def _post(block: str, text: str) -> int:
    webhook: Any = await Webhook.aload(block)
    response = await webhook.call({"text": text})

    return int(response.status_code)
