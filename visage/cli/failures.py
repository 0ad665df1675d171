"""How a command ends that cannot do its work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

FAILED, REFUSED, INTERRUPTED = 1, 2, 130


class CommandFailed(Exception):
    """Ends a command with one line on stderr and an exit status."""

    def __init__(self, message: str, status: int = REFUSED) -> None:
        super().__init__(message)
        self.status = status


@contextmanager
def needs(extras: str) -> Iterator[None]:
    """Around the imports of a command that needs optional packages; CommandFailed names the extras
    (`torch`, or several: `torch,plots`) where one is absent."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "visage":
            raise
        raise CommandFailed(
            f"{error.name} is not installed; install it with: pip install 'visage[{extras}]'"
        ) from error
