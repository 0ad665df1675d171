"""Batches cover their items, and a pool's results come in order, bounded, with errors in place."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import pytest
from hypothesis import given
from hypothesis import strategies as st

from visage.parallel import batched, map_ordered


@given(items=st.lists(st.integers(), max_size=40), size=st.integers(1, 12))
def test_batches_are_full_but_the_last_and_hold_every_item(items: list[int], size: int) -> None:
    batches = list(batched(iter(items), size))
    assert [item for batch in batches for item in batch] == items
    assert all(len(batch) == size for batch in batches[:-1])
    assert all(0 < len(batch) <= size for batch in batches)


@pytest.mark.parametrize("size", [0, -1])
def test_batches_without_items_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        list(batched([1, 2], size))
    with pytest.raises(ValueError, match="at least 1"):
        list(map_ordered(str, [1, 2], ThreadPoolExecutor(1), size))


def threads() -> Executor:
    return ThreadPoolExecutor(3)


def processes() -> Executor:
    return ProcessPoolExecutor(2, get_context("spawn"))


def one_over(number: int) -> float:
    # The earlier, the slower: results come back in another order than they were submitted in.
    time.sleep(0.02 / (number + 1) if number >= 0 else 0.0)
    return 1 / number if number < 100 else os.getpid()


@pytest.mark.parametrize("pool", [threads, processes])
@pytest.mark.parametrize("num_ahead", [1, 2, 50])
def test_results_come_in_the_items_order(pool: Callable[[], Executor], num_ahead: int) -> None:
    numbers = list(range(1, 20))
    assert list(map_ordered(one_over, numbers, pool(), num_ahead)) == [1 / n for n in numbers]


def test_no_items_give_no_results() -> None:
    assert list(map_ordered(one_over, [], threads(), 3)) == []


@pytest.mark.parametrize("pool", [threads, processes])
def test_an_error_is_raised_at_its_item(pool: Callable[[], Executor]) -> None:
    results = map_ordered(one_over, [4, 2, 0, 5, 1], pool(), 5)
    assert [next(results), next(results)] == [0.25, 0.5]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert list(results) == []


def test_an_error_of_the_items_is_raised_after_the_results_before_it() -> None:
    def items() -> Iterator[int]:
        yield 4
        yield 2
        raise OSError("the list cannot be read")

    results = map_ordered(one_over, items(), threads(), 5)
    assert [next(results), next(results)] == [0.25, 0.5]
    with pytest.raises(OSError, match="the list cannot be read"):
        next(results)


@pytest.mark.parametrize("num_ahead", [1, 2, 7])
def test_items_are_taken_as_their_results_are(num_ahead: int) -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for number in range(1, 30):
            taken += 1
            yield number

    for num_used, _ in enumerate(map_ordered(one_over, items(), threads(), num_ahead), start=1):
        assert taken <= num_used + num_ahead
    assert taken == 29


@pytest.mark.parametrize("ends", ["by an error", "by its caller"])
def test_what_has_not_begun_is_cancelled(ends: str) -> None:
    begun: list[int] = []
    may_end = threading.Event()

    def work(number: int) -> int:
        begun.append(number)
        if number == 0:
            if ends == "by an error":
                raise KeyError(number)
            return number
        may_end.wait(5)
        return number

    pool = ThreadPoolExecutor(1)
    results = map_ordered(work, range(100), pool, 20)
    threading.Timer(0.2, may_end.set).start()
    if ends == "by an error":
        with pytest.raises(KeyError):
            next(results)
    else:
        assert next(results) == 0
        results.close()
    assert len(begun) <= 3
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.submit(work, 0)
