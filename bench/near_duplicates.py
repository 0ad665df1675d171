"""Processor time and memory of finding near duplicates (visage/dedup/near_duplicates.py).

    python -m bench.near_duplicates                    # a million hashes: a quarter of a minute
    python -m bench.near_duplicates --count 100000

Two cases. Random hashes, of which a tenth are copies of others with up to 5 bits changed, as in a
folder from the web. The same with a twentieth in dense clusters: 1000 hashes that differ from one
centre in up to 5 bits, as when one picture is everywhere. Each case runs in its own process. The
peak memory is that of the process, of which Python, numpy and scipy take 60 MB. One thread;
processor time depends little on other load.
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
    """`count` hashes in random order, as the module's docstring describes."""
    rng = np.random.default_rng(0)
    num_copies = int(COPIES * count)
    num_clustered = int(CLUSTERED * count) if is_clustered else 0

    own_N = rng.integers(0, 1 << 64, count - num_copies - num_clustered, dtype=np.uint64)
    centres = rng.integers(0, 1 << 64, -(-num_clustered // CLUSTER), dtype=np.uint64)
    copies_N = near(rng.choice(own_N, num_copies), rng)
    clustered_N = near(np.resize(centres, num_clustered), rng)

    return rng.permutation(np.concatenate([own_N, copies_N, clustered_N]))


def measured(count: int, is_clustered: bool) -> tuple[int, float, float]:
    """Number of groups, processor seconds, peak memory of the process in MB."""
    hashes_N = hashes(count, is_clustered)

    start = time.process_time()
    groups_N = near_groups(hashes_N)
    seconds = time.process_time() - start

    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return int(groups_N.max()) + 1, seconds, peak_mb


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.near_duplicates", description=__doc__)
    parser.add_argument("--count", type=int, default=1_000_000)
    arguments = parser.parse_args()

    print(f"{arguments.count:,} hashes\n")
    print("| hashes | groups | processor, s | peak, MB |\n|---|---|---|---|")
    for name, is_clustered in (("random, copies", False), ("random, copies, clusters", True)):
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            running = pool.submit(measured, arguments.count, is_clustered)
            num_groups, seconds, megabytes = running.result()
        print(f"| {name} | {num_groups:,} | {seconds:.1f} | {megabytes:.0f} |", flush=True)


if __name__ == "__main__":
    main()
