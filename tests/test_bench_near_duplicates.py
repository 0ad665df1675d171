"""The bench of near duplicates: its hashes have the copies and clusters that it says, and both
stand in its table."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from bench import near_duplicates as bench
from visage.dedup.near_duplicates import near_groups


@pytest.mark.parametrize(("is_clustered", "num_groups"), [(False, 36_000), (True, 34_002)])
def test_hashes_are_copies_and_clusters_of_others(is_clustered: bool, num_groups: int) -> None:
    hashes_N = bench.hashes(40_000, is_clustered)
    sizes_G = np.bincount(near_groups(hashes_N))
    assert (len(hashes_N), len(sizes_G)) == (40_000, num_groups)
    assert (sizes_G >= bench.CLUSTER).sum() == (2 if is_clustered else 0)


def test_a_copy_is_as_far_as_it_may_be() -> None:
    hashes_N = np.zeros(1000, np.uint64)
    distances = np.bitwise_count(bench.near(hashes_N, np.random.default_rng(0)))
    assert set(distances.tolist()) == set(range(6))


def test_both_kinds_stand_in_the_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["near_duplicates", "--count", "1000"])
    bench.main()
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in capsys.readouterr().out.splitlines()[4:]
    ]
    assert [row[:2] for row in rows] == [
        ["random, copies", "900"],
        ["random, copies, clusters", "851"],
    ]
    # The peak is that of the process.
    assert all(float(row[2]) >= 0 and float(row[3]) > 20 for row in rows)
