"""Near duplicates: the same pairs and groups as comparing all with all; one picture of each group
stays."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from visage.dedup.near_duplicates import (
    Hashes,
    Indices,
    kept_of_groups,
    near_groups,
    near_pairs,
)


def clustered(seed: int, num_hashes: int, num_centres: int, flips: int) -> Hashes:
    """Hashes around a few centres, so that every distance occurs, the limit and the one above it
    included."""
    rng = np.random.default_rng(seed)
    hashes = rng.choice(rng.integers(0, 2**64, num_centres, dtype=np.uint64), num_hashes)
    for _ in range(flips):
        chosen = rng.random(num_hashes) < 0.5
        hashes[chosen] ^= np.uint64(1) << rng.integers(0, 64, int(chosen.sum()), dtype=np.uint64)
    return hashes


def all_with_all(hashes: Hashes, max_distance: int) -> list[tuple[int, int]]:
    numbers = hashes.tolist()
    pairs = combinations(range(len(numbers)), 2)
    return [(i, j) for i, j in pairs if (numbers[i] ^ numbers[j]).bit_count() <= max_distance]


def chained(pairs: list[tuple[int, int]], count: int) -> list[set[int]]:
    groups = {i: {i} for i in range(count)}
    for i, j in pairs:
        groups[i] |= groups[j]
        for member in groups[i]:
            groups[member] = groups[i]
    return [groups[i] for i in range(count)]


def members(groups: Indices) -> list[set[int]]:
    """The hashes in each hash's group."""
    return [set(np.flatnonzero(groups == group).tolist()) for group in groups]


@given(
    st.integers(0, 2**32),
    st.integers(0, 60),
    st.integers(1, 8),
    st.integers(0, 14),
    st.integers(0, 5),
)
def test_the_same_as_comparing_all_with_all(
    seed: int, count: int, centres: int, flips: int, distance: int
) -> None:
    hashes = clustered(seed, count, centres, flips)
    found: list[tuple[int, int]] = []
    for left, right in near_pairs(hashes, distance):
        found += zip(left.tolist(), right.tolist(), strict=True)
    assert len(set(found)) == len(found), "each pair once"
    wanted = all_with_all(hashes, distance)
    assert sorted(found) == wanted

    assert members(near_groups(hashes, distance)) == chained(wanted, count)


def test_the_limit_is_five_bits_wherever_they_are() -> None:
    for places in combinations(range(0, 64, 7), 6):
        six = sum(1 << place for place in places)
        five = six & (six - 1)
        hashes = np.array([0, five, six], np.uint64)
        assert near_groups(hashes[:2]).tolist() == [0, 0]
        assert len(set(near_groups(hashes[[0, 2]]).tolist())) == 2
    with pytest.raises(ValueError, match="from 0 to 5"):
        next(near_pairs(np.zeros(2, np.uint64), 6))


def test_batches_join_one_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("visage.dedup.near_duplicates.MAX_PAIRS", 3)
    hashes = clustered(0, 200, 3, 4)
    wanted = chained(all_with_all(hashes, 5), 200)
    assert members(near_groups(hashes)) == wanted


def test_a_hundred_thousand_with_planted_copies() -> None:
    rng = np.random.default_rng(1)
    hashes = rng.integers(0, 2**64, 100_000, dtype=np.uint64)
    hashes[50_000:50_500] = hashes[:500] ^ np.uint64(0b1000_0001 << 20)
    hashes[60_000:60_500] = hashes[:500]
    groups = near_groups(hashes)
    assert groups.max() + 1 == 99_000
    assert (groups[:500] == groups[50_000:50_500]).all()
    assert (groups[:500] == groups[60_000:60_500]).all()


def test_the_largest_picture_stays_then_the_first() -> None:
    groups = np.array([1, 0, 1, 2, 1, 0])
    num_pixels = np.array([10, 5, 30, 1, 30, 5])
    assert kept_of_groups(groups, num_pixels).tolist() == [False, True, True, True, False, False]
    assert kept_of_groups(groups[:0], num_pixels[:0]).tolist() == []
