"""Tells people what a flow came to, through a Prefect Webhook block that they made (its address may
be a secret)."""

from __future__ import annotations

from typing import Any

from prefect import get_run_logger
from prefect.blocks.webhook import Webhook
from prefect.utilities.asyncutils import run_coro_as_sync


def notify(block: str | None, text: str) -> None:
    """Posts {"text": ...} to the block's address; None tells nobody. A message that does not arrive
    is a warning in the log: it must not undo the work that it tells of. The warning keeps the
    address and what was answered to itself."""
    if block is None:
        return
    try:
        status: Any = run_coro_as_sync(_post(block, text))
        problem = f"it answered with status {status}" if status >= 400 else None
    except Exception as error:  # whatever a stranger's server or a missing block comes up with
        problem = type(error).__name__  # the error's text may hold the address or a header
    if problem:
        get_run_logger().warning(
            "webhook block %r was not told (%s); see in Prefect's pages that it exists and where "
            "it posts to: %s",
            block,
            problem,
            text,
        )


async def _post(block: str, text: str) -> int:
    webhook: Any = await Webhook.aload(block)
    return int((await webhook.call({"text": text})).status_code)
