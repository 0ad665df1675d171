"""Worker processes that do not outlive the run that started them."""

from __future__ import annotations

import os
from multiprocessing import parent_process
from threading import Thread


def die_with_parent() -> None:
    """In a worker: ends it when the run that started it is killed; it would wait for work forever
    otherwise."""

    def watch() -> None:
        parent = parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    Thread(target=watch, daemon=True).start()
