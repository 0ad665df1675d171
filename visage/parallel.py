"""Work on many items: cut into batches, spread over a pool, and back in order.

Worker processes do not outlive the run that started them.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future
from itertools import islice
from multiprocessing import parent_process
from threading import Thread
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Items -> lists of `size` of them, in order; the last may be shorter, none is empty."""
    if size < 1:
        raise ValueError(f"batches of {size} items: give at least 1")

    # itertools.batched came with Python 3.12, and 3.11 is supported.
    remaining = iter(items)
    while batch := list(islice(remaining, size)):
        yield batch


def map_ordered(
    function: Callable[[Item], Result], items: Iterable[Item], pool: Executor, num_ahead: int
) -> Generator[Result, None, None]:
    """`function` of each item, in the items' order, from a pool of threads or processes.

    At most `num_ahead` items are taken before their result is wanted, so memory stays flat. An
    error, of the function or of the items themselves, is raised where its result would have come.
    The pool belongs to this call: at the end, after an error, or when the caller stops early it is
    shut down, and tasks that have not begun are cancelled.
    """
    if num_ahead < 1:
        raise ValueError(f"{num_ahead} items ahead: give at least 1")

    submitted = _submitted(function, iter(items), pool)
    try:
        running = deque(islice(submitted, num_ahead))
        while running:
            result = running.popleft().result()
            # Before the result is used, so that the pool is busy in the meantime.
            running.extend(islice(submitted, 1))
            yield result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _submitted(
    function: Callable[[Item], Result], items: Iterator[Item], pool: Executor
) -> Iterator[Future[Result]]:
    """Each item as a future; an error of the items themselves is the result of the last future."""
    while True:
        try:
            item = next(items)
        except StopIteration:
            return
        except Exception as error:
            failed: Future[Result] = Future()
            failed.set_exception(error)
            yield failed
            return

        yield pool.submit(function, item)


def die_with_parent() -> None:
    """Call in a worker: it then exits when the run that started it is killed. Otherwise it would
    wait for work forever."""

    def watch() -> None:
        parent = parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    Thread(target=watch, daemon=True).start()
