"""Who may come in: slow senders take nobody's place, one address cannot take all of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.visage.server.requests import ADMISSION
from visage.server.admission import DISCARDED, Arrivals, Places
from visage.server.refusals import Refusal

LIMIT = 1000


async def of(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def stalled(first: bytes = b"{") -> AsyncIterator[bytes]:
    yield first
    await asyncio.sleep(600)


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


async def started(arrivals: Arrivals, senders: list[tuple[str, Any]]) -> list[asyncio.Task[bytes]]:
    """Senders whose first part has come."""
    tasks = []
    for address, parts in senders:
        tasks.append(asyncio.create_task(arrivals.body(parts, address, LIMIT)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    return tasks


def outcome(task: asyncio.Task[bytes]) -> str:
    """`waits`, `arrived`, or the kind of its refusal."""
    if not task.done():
        return "waits"
    error = task.exception()
    assert error is None or isinstance(error, Refusal)
    return error.name if error else "arrived"


def test_a_body_is_as_large_as_allowed_and_not_larger() -> None:
    arrivals = Arrivals(ADMISSION)
    assert asyncio.run(arrivals.body(of(b"a" * 600, b"b" * 400), "x", LIMIT)) == (
        b"a" * 600 + b"b" * 400
    )
    with pytest.raises(Refusal, match="larger than the 1000 bytes"):
        asyncio.run(arrivals.body(of(b"a" * 600, b"b" * 401), "x", LIMIT))
    assert len(arrivals) == 0


def test_an_endless_body_is_given_up_after_as_much_as_its_sender_needs_to_see_why() -> None:
    taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        while True:
            taken += 100
            yield b"a" * 100

    with pytest.raises(Refusal) as caught:
        asyncio.run(Arrivals(ADMISSION).body(endless(), "x", LIMIT))
    assert caught.value.status == 413
    assert taken <= (DISCARDED + 1) * LIMIT


def test_a_body_that_never_ends_is_a_408() -> None:
    arrivals = Arrivals(replace(ADMISSION, arrival_seconds=0.05))
    with pytest.raises(Refusal, match=r"longer than 0\.05 s") as caught:
        asyncio.run(arrivals.body(stalled(), "x", LIMIT))
    assert caught.value.status == 408


def run_with(clock: Clock, scenario: Callable[[Arrivals], Any], **changes: Any) -> Any:
    async def main() -> Any:
        return await scenario(Arrivals(replace(ADMISSION, **changes), clock))

    return asyncio.run(main())


def test_whoever_is_furthest_behind_leaves_for_the_next() -> None:
    """Four places, all of slow senders, three of them of one address: the oldest of these goes."""
    clock = Clock()

    async def scenario(arrivals: Arrivals) -> None:
        tasks = await started(arrivals, [("b", stalled()), ("a", stalled()), ("a", stalled())])
        clock.seconds = 1.0
        tasks += await started(arrivals, [("a", stalled())])
        clock.seconds = 5.0
        assert await arrivals.body(of(b"photo"), "c", LIMIT) == b"photo"
        await asyncio.wait([tasks[1]], timeout=10)
        assert [outcome(task) for task in tasks] == ["waits", "pushed_out", "waits", "waits"]
        for task in tasks:
            task.cancel()

    run_with(clock, scenario)


def test_whoever_sends_fast_enough_is_left_alone() -> None:
    clock = Clock()

    async def scenario(arrivals: Arrivals) -> None:
        tasks = await started(arrivals, [(name, stalled()) for name in "abcd"])
        clock.seconds = 0.5
        with pytest.raises(Refusal) as caught:
            await arrivals.body(of(b"photo"), "e", LIMIT)
        assert caught.value.status == 503
        assert [outcome(task) for task in tasks] == ["waits"] * 4
        for task in tasks:
            task.cancel()

    run_with(clock, scenario)


def test_many_slow_senders_keep_nobody_out() -> None:
    """A hundred of one address, and one photo of the same address after each."""
    clock = Clock()

    async def scenario(arrivals: Arrivals) -> None:
        tasks = []
        for second in range(100):
            clock.seconds = 2.0 * second
            tasks += await started(arrivals, [("a", stalled())])
            assert await arrivals.body(of(b"photo"), "a", LIMIT) == b"photo"
        await asyncio.sleep(0)
        assert len(arrivals) <= ADMISSION.max_arriving
        for task in tasks:
            task.cancel()

    run_with(clock, scenario)


def test_the_bytes_of_all_that_arrive_are_bounded() -> None:
    clock = Clock()

    async def scenario(arrivals: Arrivals) -> None:
        tasks = await started(arrivals, [("a", stalled(b"a" * 900)), ("b", stalled(b"b" * 900))])
        clock.seconds = 3.0
        assert await arrivals.body(of(b"c" * 900), "c", LIMIT) == b"c" * 900
        await asyncio.wait(tasks, timeout=1, return_when=asyncio.FIRST_COMPLETED)
        assert sorted(outcome(task) for task in tasks) == ["pushed_out", "waits"]
        for task in tasks:
            task.cancel()

    run_with(clock, scenario, max_arriving_bytes=2000)


def test_one_address_cannot_take_all_places() -> None:
    places = Places(ADMISSION)
    for _ in range(ADMISSION.max_inside_of_address):
        places.take("a")
    with pytest.raises(Refusal) as caught:
        places.take("a")
    assert caught.value.status == 429

    places.take("b")
    places.take("c")
    with pytest.raises(Refusal) as caught:
        places.take("d")
    assert caught.value.status == 503
    assert caught.value.headers["retry-after"] == "1"

    places.leave("a")
    places.take("a")
    assert len(places) == ADMISSION.max_inside
