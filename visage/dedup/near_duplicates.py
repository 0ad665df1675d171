"""Pictures that look the same, among a million: pairs of 64-bit hashes that differ in few bits, and
groups of them.

DHAA (section 3.1) counts two pictures as one when their perceptual hashes (pHash) differ in fewer
than 6 of 64 bits. Comparing all pairs is quadratic. But 5 differing bits touch at most 5 of 8
bytes, so three bytes are equal. The hashes are sorted by three of their bytes, once for each of the
56 choices: near hashes become neighbours, and only those that share all 24 bits are compared.
Legend: N hashes, P pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm import tqdm

Hashes = npt.NDArray[np.uint64]
Indices = npt.NDArray[np.int64]

# DHAA: smaller than 6.
MAX_DISTANCE = 5

# 5 bits touch at most 5 of 8 bytes.
NUM_BYTES = 8
NUM_EQUAL = 3

# Of a batch.
MAX_PAIRS = 1 << 22


def near_pairs(
    hashes_N: Hashes, max_distance: int = MAX_DISTANCE
) -> Iterator[tuple[Indices, Indices]]:
    """All pairs (i, j), i < j, of hashes that differ in at most `max_distance` bits, each pair
    once, in batches.

    Raises ValueError for a distance above 5, which 24 equal bits do not cover.
    """
    if not 0 <= max_distance <= MAX_DISTANCE:
        raise ValueError(f"max_distance {max_distance}: from 0 to {MAX_DISTANCE}")

    bytes_N8 = np.ascontiguousarray(hashes_N).view(np.uint8).reshape(-1, NUM_BYTES)
    choices = list(combinations(range(NUM_BYTES), NUM_EQUAL))
    for chosen in tqdm(choices, desc="near duplicates", unit=" sortings", delay=2):
        order_N, keys_N = _sorted_by(bytes_N8, chosen)
        for left_P, right_P in _neighbours(order_N, keys_N):
            differing_P = hashes_N[left_P] ^ hashes_N[right_P]
            is_near_P = np.bitwise_count(differing_P) <= max_distance
            is_near_P[is_near_P] = _is_first_choice(differing_P[is_near_P], chosen)

            one_P = left_P[is_near_P]
            other_P = right_P[is_near_P]
            if len(one_P):
                yield np.minimum(one_P, other_P), np.maximum(one_P, other_P)


def _sorted_by(
    bytes_N8: npt.NDArray[np.uint8], chosen: tuple[int, ...]
) -> tuple[Indices, npt.NDArray[np.uint64]]:
    """The order of the hashes by the chosen bytes, and those bytes as one number, in that order."""
    keys_N = np.zeros(len(bytes_N8), np.uint64)
    for place in chosen:
        keys_N = (keys_N << np.uint64(8)) | bytes_N8[:, place]

    # The fastest argsort: the place of each hash is in the low bits of its key.
    keys_N = (keys_N << np.uint64(32)) | np.arange(len(bytes_N8), dtype=np.uint64)
    keys_N.sort()
    return (keys_N & np.uint64(0xFFFFFFFF)).astype(np.int64), keys_N >> np.uint64(32)


def _neighbours(
    order_N: Indices, keys_N: npt.NDArray[np.uint64]
) -> Iterator[tuple[Indices, Indices]]:
    """All pairs with equal keys: those one place apart in the order, then two, until no equal keys
    are so far apart."""
    [starts] = np.nonzero(keys_N[:-1] == keys_N[1:])
    apart = 1
    while len(starts):
        for begin in range(0, len(starts), MAX_PAIRS):
            part = starts[begin : begin + MAX_PAIRS]
            yield order_N[part], order_N[part + apart]
        apart += 1
        starts = starts[starts + apart < len(keys_N)]
        starts = starts[keys_N[starts] == keys_N[starts + apart]]


def _is_first_choice(differing_P: Hashes, chosen: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """Whether `chosen` are the first equal bytes of a pair: of all the choices that show a pair,
    one gives it."""
    bytes_P8 = differing_P.view(np.uint8).reshape(-1, NUM_BYTES)
    earlier = [place for place in range(chosen[-1]) if place not in chosen]
    is_first: npt.NDArray[np.bool_] = (bytes_P8[:, earlier] != 0).all(axis=1)
    return is_first


def near_groups(hashes_N: Hashes, max_distance: int = MAX_DISTANCE) -> Indices:
    """The group of each hash, numbered from 0: near hashes share one, and so does what is linked by
    a chain of them."""
    unique_U, unique_of_N = np.unique(hashes_N, return_inverse=True)
    group_U = np.arange(len(unique_U))
    for left_P, right_P in near_pairs(unique_U, max_distance):
        one_P = group_U[left_P]
        other_P = group_U[right_P]
        if (one_P != other_P).any():
            size = int(group_U.max()) + 1
            links = coo_array((np.ones(len(one_P), bool), (one_P, other_P)), shape=(size, size))
            group_U = connected_components(links, directed=False)[1][group_U].astype(np.int64)

    groups_N: Indices = group_U[unique_of_N]
    return groups_N


def kept_of_groups(groups_N: Indices, num_pixels_N: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """One picture of each group: the largest; of equally large ones the first, so sort the pictures
    by name."""
    order_N = np.lexsort((np.arange(len(groups_N)), -num_pixels_N, groups_N))
    is_first_N = np.ones(len(groups_N), bool)
    is_first_N[1:] = groups_N[order_N][1:] != groups_N[order_N][:-1]
    is_kept_N = np.zeros(len(groups_N), bool)
    is_kept_N[order_N[is_first_N]] = True
    return is_kept_N
