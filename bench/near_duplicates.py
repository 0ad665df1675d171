"""What near duplicates among many photos cost: processor time and memory of
visage/dedup/near_duplicates.py.

    python -m bench.near_duplicates                    # a million hashes: a quarter of a minute
    python -m bench.near_duplicates --count 100000

Random hashes, a tenth of them copies of others with up to 5 bits changed, as in a folder from the
web; and the same with a twentieth in dense clusters, 1000 that differ from one middle in up to 5
bits, as when one picture is everywhere. Each in a process of its own, whose peak memory is told
whole: Python, numpy and scipy are 60 MB of it. One thread; processor time does not care for other
load.
"""

from __future__ import annotations

import argparse
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np

from visage.dedup.near_duplicates import MAX_DISTANCE, Hashes, near_groups

COPIES, CLUSTERED, CLUSTER = 0.1, 0.05, 1000  # shares of all hashes; hashes of a cluster


def near(hashes_N: Hashes, rng: np.random.Generator) -> Hashes:
    """Each hash with up to MAX_DISTANCE random bits changed."""
    changed_N = hashes_N.copy()
    for _ in range(MAX_DISTANCE):
        bit_N = rng.integers(0, 64, len(hashes_N), dtype=np.uint64)
        changed_N ^= rng.integers(0, 2, len(hashes_N), dtype=np.uint64) << bit_N
    return changed_N


def hashes(count: int, is_clustered: bool) -> Hashes:
    """`count` hashes in random order, see the module's docstring."""
    rng = np.random.default_rng(0)
    num_copies, num_clustered = int(COPIES * count), int(CLUSTERED * count) if is_clustered else 0
    own_N = rng.integers(0, 1 << 64, count - num_copies - num_clustered, dtype=np.uint64)
    middles = np.resize(
        rng.integers(0, 1 << 64, -(-num_clustered // CLUSTER), dtype=np.uint64), num_clustered
    )
    return rng.permutation(
        np.concatenate([own_N, near(rng.choice(own_N, num_copies), rng), near(middles, rng)])
    )


def measured(count: int, is_clustered: bool) -> tuple[int, float, float]:
    """Groups, seconds of processor, peak memory of the process in MB."""
    hashes_N = hashes(count, is_clustered)
    start = time.process_time()
    groups_N = near_groups(hashes_N)
    seconds = time.process_time() - start
    return (
        int(groups_N.max()) + 1,
        seconds,
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.near_duplicates", description=__doc__)
    parser.add_argument("--count", type=int, default=1_000_000)
    arguments = parser.parse_args()
    print(
        f"{arguments.count:,} hashes\n\n| hashes | groups | processor, s | peak, MB "
        f"|\n|---|---|---|---|"
    )
    for name, is_clustered in (("random, copies", False), ("random, copies, clusters", True)):
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            num_groups, seconds, megabytes = pool.submit(
                measured, arguments.count, is_clustered
            ).result()
        print(f"| {name} | {num_groups:,} | {seconds:.1f} | {megabytes:.0f} |", flush=True)


if __name__ == "__main__":
    main()
