"""How a command of the pipeline runs: in the clone's folder, its errors in one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from flows.pipeline.workspace import ROOT, Busy
from visage.cli.failures import CommandFailed


@contextlib.contextmanager
def in_clone(*refusals: type[Exception]) -> Iterator[Path]:
    """The clone's folder, which is the working directory meanwhile. Busy, and the errors named,
    become CommandFailed, which the command shows in one line."""
    with contextlib.chdir(ROOT):
        try:
            yield ROOT
        except Exception as error:
            if isinstance(error, (Busy, *refusals)):
                raise CommandFailed(str(error)) from error
            raise


def absolute(place: str) -> str:
    """A path as the clone's folder sees it; a URL as it is."""
    return place if "://" in place else str(Path(place).absolute())
