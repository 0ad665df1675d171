"""Who may come in: requests that arrive, and requests that wait for their answer, each bounded, in
all and for each address.

A request that arrives holds no place of those that are answered: many slow senders cost the bytes
that they have sent, and nobody waits for them. Where too many arrive at once, those that are
furthest behind go first, from the address that has most of them.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from visage.server.refusals import Refusal

# Of a request that is too large, this many times the limit is read and thrown away. A client that
# is cut off while it still sends would never see the 413.
DISCARDED = 8
# Bytes a second that a sender is expected to keep to; a phone on a bad network has more
EXPECTED_RATE = 20_000
# Seconds behind EXPECTED_RATE from which a request may lose its place to another
MIN_ARREARS = 1.0


@dataclass(frozen=True, kw_only=True)
class AdmissionSettings:
    """Requests that may arrive at once and the bytes that they may hold together; seconds for one
    to arrive; requests that run or wait, in all and of one address."""

    max_arriving: int
    max_arriving_bytes: int
    arrival_seconds: float
    max_inside: int
    max_inside_of_address: int


class _Arrival:
    def __init__(self, address: str, limit: asyncio.Timeout, now: float) -> None:
        self.address = address
        self.limit = limit
        self.start = now
        self.received = 0
        self.held = 0
        self.pushed_out = False

    def arrears(self, now: float) -> float:
        """Seconds by which it is behind EXPECTED_RATE."""
        return now - self.start - self.received / EXPECTED_RATE


class Arrivals:
    """The requests whose bodies are arriving. `clock` gives seconds."""

    def __init__(
        self, settings: AdmissionSettings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._inside: list[_Arrival] = []

    def __len__(self) -> int:
        return sum(not arrival.pushed_out for arrival in self._inside)

    async def body(self, parts: AsyncIterator[bytes], address: str, limit: int) -> bytes:
        """The complete body of `parts`; at most `limit` bytes of it are held. The length is
        counted, because the header that gives it may be wrong. Refuses what is too large, takes
        too long, or has to leave for others."""
        self._make_room()
        try:
            async with asyncio.timeout(self._settings.arrival_seconds) as time_limit:
                arrival = _Arrival(address, time_limit, self._clock())
                self._inside.append(arrival)
                try:
                    return await self._received(parts, arrival, limit)
                finally:
                    self._inside.remove(arrival)
        except TimeoutError as error:
            if arrival.pushed_out:
                raise Refusal("pushed_out") from error
            raise Refusal("late", seconds=self._settings.arrival_seconds) from error

    async def _received(self, parts: AsyncIterator[bytes], arrival: _Arrival, limit: int) -> bytes:
        kept: list[bytes] = []
        async for part in parts:
            arrival.received += len(part)
            if arrival.received <= limit:
                kept.append(part)
                arrival.held += len(part)
                self._make_room_for_bytes(arrival)
            else:
                kept.clear()
                arrival.held = 0
            if arrival.received > DISCARDED * limit:
                break

        if arrival.received > limit:
            raise Refusal("request_bytes", limit=limit)
        return b"".join(kept)

    def _make_room(self) -> None:
        """Room for one more, or 503."""
        if len(self) >= self._settings.max_arriving and not self._push_out():
            raise Refusal("busy")

    def _make_room_for_bytes(self, arrival: _Arrival) -> None:
        held = sum(each.held for each in self._inside if not each.pushed_out)
        if held > self._settings.max_arriving_bytes and not self._push_out(but=arrival):
            raise Refusal("busy")

    def _push_out(self, but: _Arrival | None = None) -> bool:
        """Ends the request that is furthest behind, of the address with most of those that are
        behind; False where none is."""
        now = self._clock()
        others = [each for each in self._inside if each is not but and not each.pushed_out]
        late = [each for each in others if each.arrears(now) > MIN_ARREARS]
        if not late:
            return False

        counts = Counter(arrival.address for arrival in late)
        last = max(late, key=lambda each: (counts[each.address], each.arrears(now)))
        last.pushed_out = True
        last.limit.reschedule(asyncio.get_running_loop().time())
        return True


class Places:
    """The requests that run or wait to be answered."""

    def __init__(self, settings: AdmissionSettings) -> None:
        self._settings = settings
        self._of_address: Counter[str] = Counter()

    def __len__(self) -> int:
        return self._of_address.total()

    def check(self, address: str) -> None:
        """429 or 503 where no place is free for one more of an address."""
        if len(self) >= self._settings.max_inside:
            raise Refusal("busy")
        if self._of_address[address] >= self._settings.max_inside_of_address:
            raise Refusal("one_address")

    def take(self, address: str) -> None:
        """One place for a request of an address; 429 or 503 where there is none."""
        self.check(address)
        self._of_address[address] += 1

    def leave(self, address: str) -> None:
        """Gives the place back."""
        self._of_address[address] -= 1
        if not self._of_address[address]:
            del self._of_address[address]
