"""A manifest becomes numbers that a rule can bound: one row a photo, one column a measure.

Everything is computed column by column over integer codes, so that five million photos fit in
memory and a million take seconds. Legend: N photos, G groups (pictures or people), S = 3 splits.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from visage.data.schemas import MANIFEST_SCHEMA

# In the order of how firmly a photo is held out
SPLITS = ("train", "val", "test")
NEVER_NULL = ("photo_id", "sha256", "num_bytes", "width", "height", "split")
GROUPS = ("sex", "ethnicity")
NUM_LABEL_BINS = 10
BATCH_ROWS = 1 << 17
EMPTY = np.empty((0, 2), np.uint64)


def schema_faults(manifest: Path) -> list[str]:
    """What keeps `manifest` from being one: columns, types, nulls, unknown splits, photo_ids not
    strictly ascending."""
    found = {field.name: field.type for field in pq.read_schema(manifest)}
    wanted = {field.name: field.type for field in MANIFEST_SCHEMA}
    faults = [f"column {name} is missing" for name in wanted if name not in found]
    faults += [f"column {name} is unknown" for name in found if name not in wanted]

    for name, kind in wanted.items():
        allowed = (kind, pa.large_string()) if kind == pa.string() else (kind,)
        if name in found and found[name] not in allowed:
            faults.append(f"column {name} is {found[name]}, not {kind}")
    return faults or _value_faults(manifest)


def _value_faults(manifest: Path) -> list[str]:
    faults = []
    for name in NEVER_NULL:
        count = sum(batch.null_count for batch in _batches(manifest, name))
        if count:
            faults.append(f"column {name} has {count} nulls")

    malformed = 0
    for batch in _batches(manifest, "sha256"):
        is_digest = pc.match_substring_regex(batch, "^[0-9a-f]{64}$")
        malformed += pc.sum(pc.invert(is_digest)).as_py() or 0
    if malformed:
        faults.append(f"sha256 is not 64 lower-case hexadecimal digits at {malformed} rows")

    splits = pc.unique(_column(manifest, "split")).to_pylist()
    unknown = {str(value) for value in splits if value is not None} - set(SPLITS)
    known = ", ".join(SPLITS)
    faults += [f"split {value!r} is none of {known}" for value in sorted(unknown)]

    photo_id = _column(manifest, "photo_id")
    if len(photo_id) > 1:
        disorder = pc.sum(pc.greater_equal(photo_id[:-1], photo_id[1:])).as_py()
        if disorder:
            faults.append(f"photo_id is not unique and ascending at {disorder} rows")
    return faults


def measure(manifest: Path) -> pd.DataFrame:
    """A sound manifest (no `schema_faults`) -> N rows of measures, in its order; NaN where a
    measure means nothing.

    photo_id, unreadable, label, sigma, sex, ethnicity as they are; split as its place in SPLITS;
    has_label, readable (0 or 1); shorter_px, longer_px, aspect_ratio (>= 1), bytes_per_px of the
    readable; and per group of identical pictures (same sha256) and of the same person, the columns
    of `_pictures` and `_people`. What rules bound has 64 bits: any other width Great Expectations
    compares one by one in Python, a hundred times slower.
    """
    split = _column(manifest, "split").dictionary_encode().combine_chunks()
    places = [SPLITS.index(name) for name in split.dictionary.to_pylist()]
    split_N = np.array(places or [0], np.int8)[split.indices.to_numpy()]

    columns = {"photo_id": _column(manifest, "photo_id").to_pandas(), "split": split_N}
    for name in ("label", "sigma"):
        columns[name] = _column(manifest, name).to_numpy().astype(np.float64)
    columns["has_label"] = np.isfinite(columns["label"]).astype(np.int64)
    columns["unreadable"] = _column(manifest, "unreadable").to_pandas()
    columns |= _sizes(manifest)
    columns |= _pictures(_picture_codes(manifest), split_N, columns["label"])
    columns |= _people(_person_codes(manifest), split_N)
    for name in GROUPS:
        columns[name] = pd.Categorical(_column(manifest, name).to_pandas())
    return pd.DataFrame(columns, copy=False)


def _column(manifest: Path, name: str) -> pa.ChunkedArray:
    return pq.read_table(manifest, columns=[name])[name]


def _batches(manifest: Path, name: str) -> Iterator[pa.Array]:
    """A column in pieces, where all of it would be hundreds of megabytes."""
    file = pq.ParquetFile(manifest)
    return (batch[name] for batch in file.iter_batches(BATCH_ROWS, columns=[name]))


def _picture_codes(manifest: Path) -> np.ndarray:
    """Equal sha256 -> equal numbers from 0, int64 (N,). Half of its bits identify a picture, at
    half the memory."""
    halves = [EMPTY]
    for batch in _batches(manifest, "sha256"):
        digests = bytes.fromhex("".join(batch.to_pylist()))
        halves.append(np.frombuffer(digests, np.uint64).reshape(-1, 4)[:, :2])
    halves_N2 = np.concatenate(halves)

    order = np.lexsort((halves_N2[:, 1], halves_N2[:, 0]))
    ranked_N2 = halves_N2[order]
    is_new_N = np.ones(len(order), bool)
    is_new_N[1:] = (ranked_N2[1:] != ranked_N2[:-1]).any(1)

    codes_N = np.empty(len(order), np.int64)
    codes_N[order] = np.cumsum(is_new_N) - 1
    return codes_N


def _person_codes(manifest: Path) -> np.ndarray:
    """Equal names -> equal numbers from 0, unnamed -> -1, int64 (N,)."""
    names = _column(manifest, "person").cast(pa.large_string())
    encoded = names.combine_chunks().dictionary_encode()
    codes_N: np.ndarray = encoded.indices.fill_null(-1).to_numpy().astype(np.int64)
    return codes_N


def _sizes(manifest: Path) -> dict[str, np.ndarray]:
    readable = _column(manifest, "unreadable").is_null().to_numpy()
    width = _column(manifest, "width").to_numpy().astype(np.float64)
    height = _column(manifest, "height").to_numpy().astype(np.float64)
    num_bytes = _column(manifest, "num_bytes").to_numpy().astype(np.float64)
    shorter = np.minimum(width, height)
    longer = np.maximum(width, height)
    sized = readable & (shorter > 0)

    sizes = {
        "shorter_px": np.where(readable, shorter, np.nan),
        "longer_px": np.where(readable, longer, np.nan),
    }
    with np.errstate(divide="ignore", invalid="ignore"):
        sizes["aspect_ratio"] = np.where(sized, longer / shorter, np.nan)
        sizes["bytes_per_px"] = np.where(sized, num_bytes / (width * height), np.nan)
    return {"readable": readable.astype(np.int64)} | sizes


def _pictures(
    picture_N: np.ndarray, split_N: np.ndarray, label_N: np.ndarray
) -> dict[str, np.ndarray]:
    """Measures of identical pictures.

    picture: the group's code; copies_in_split: its photos within this photo's split;
    first_in_split: row of the first of those; splits_of_picture: number of splits that it is in;
    firmest_split, firmest_copy: the most firmly held out of them, and the row of its first copy
    there; label_gap: largest minus smallest label, in label units.
    """
    counts_GS = _counts(picture_N, split_N)
    first_GS = np.zeros(counts_GS.size, np.int32)
    cells = picture_N * len(SPLITS) + split_N
    rows = np.arange(len(cells), dtype=np.int32)
    # Backwards: the last one written is the first row
    first_GS[cells[::-1]] = rows[::-1]
    firmest_N = _firmest(counts_GS)[picture_N]

    return {
        "picture": picture_N.astype(np.int32),
        "copies_in_split": counts_GS.reshape(-1)[cells],
        "first_in_split": first_GS[cells],
        "splits_of_picture": (counts_GS > 0).sum(1)[picture_N],
        "firmest_split": firmest_N,
        "firmest_copy": first_GS[picture_N * len(SPLITS) + firmest_N],
        "label_gap": _gaps(picture_N, counts_GS.sum(1)[picture_N] > 1, label_N),
    }


def _people(person_N: np.ndarray, split_N: np.ndarray) -> dict[str, np.ndarray]:
    """Measures of people: named (0 or 1), person (its code, -1 if unnamed), photos_of_person (NaN
    if unnamed), splits_of_person (0 if unnamed), firmest_split_of_person."""
    unnamed = person_N < 0
    # The unnamed share a last, ignored group
    code_N = np.where(unnamed, person_N.max(initial=-1) + 1, person_N)
    counts_GS = _counts(code_N, split_N)
    return {
        "named": (~unnamed).astype(np.int64),
        "person": person_N.astype(np.int32),
        "photos_of_person": np.where(unnamed, np.nan, counts_GS.sum(1)[code_N]),
        "splits_of_person": np.where(unnamed, 0, (counts_GS > 0).sum(1)[code_N]),
        "firmest_split_of_person": _firmest(counts_GS)[code_N],
    }


def _counts(group_N: np.ndarray, split_N: np.ndarray) -> np.ndarray:
    """Photos of every group in every split, int64 (G,S)."""
    cells = group_N * len(SPLITS) + split_N
    num_cells = len(SPLITS) * (group_N.max(initial=-1) + 1)
    return np.bincount(cells, minlength=num_cells).reshape(-1, len(SPLITS))


def _firmest(counts_GS: np.ndarray) -> np.ndarray:
    """The last split of SPLITS in which a group has a photo, int8 (G,)."""
    firmest_G: np.ndarray = len(SPLITS) - 1 - np.argmax(counts_GS[:, ::-1] > 0, axis=1)
    return firmest_G.astype(np.int8)


def _gaps(picture_N: np.ndarray, is_copied_N: np.ndarray, label_N: np.ndarray) -> np.ndarray:
    copied = pd.Series(label_N[is_copied_N]).groupby(picture_N[is_copied_N])
    gaps_N = np.zeros(len(label_N))
    gaps_N[is_copied_N] = (copied.transform("max") - copied.transform("min")).to_numpy()
    return gaps_N


def histogram(
    photos: pd.DataFrame, name: str, edges: np.ndarray | None = None
) -> dict[str, dict[str, int]]:
    """split -> value -> photos: `name` is a group's column, or `label` cut at `edges`. Unknown
    values are left out."""
    if edges is None:
        names = [str(value) for value in photos[name].cat.categories]
        value_N = photos[name].cat.codes.to_numpy()
    else:
        names = bin_names(edges)
        value_N = _bins(photos[name].to_numpy(), edges)

    is_known_N = value_N >= 0
    split_N = photos["split"].to_numpy()[is_known_N].astype(np.int64)
    cells = split_N * len(names) + value_N[is_known_N]
    counts = np.bincount(cells, minlength=len(SPLITS) * len(names))
    counts_SB = counts.reshape(len(SPLITS), len(names))

    histograms = {}
    for split, row in zip(SPLITS, counts_SB, strict=True):
        histograms[split] = dict(zip(names, row.tolist(), strict=True))
    return histograms


def _bins(label_N: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """The bin of every label, each open above but the last; -1 outside the range or without a
    label."""
    bin_N = np.minimum(np.searchsorted(edges, label_N, side="right") - 1, len(edges) - 2)
    return np.where((label_N >= edges[0]) & (label_N <= edges[-1]), bin_N, -1)


def label_edges(minimum: float, maximum: float) -> np.ndarray:
    """The NUM_LABEL_BINS + 1 edges of equal bins over the label range."""
    return np.linspace(minimum, maximum, NUM_LABEL_BINS + 1)


def bin_names(edges: np.ndarray) -> list[str]:
    return [f"{low:g} to {high:g}" for low, high in pairwise(edges)]


def divergence(split: dict[str, int], train: dict[str, int]) -> float | None:
    """KL(split || train) in nats between two histograms of the same values, one photo added to each
    bin so that it stays finite; None where either is empty. By chance alone it is about (bins - 1)
    / (2 * photos of the split)."""
    if not sum(split.values()) or not sum(train.values()):
        return None
    p = np.array([float(split[value]) + 1 for value in train])
    q = np.array([float(train[value]) + 1 for value in train])
    p /= p.sum()
    q /= q.sum()
    return float((p * np.log(p / q)).sum())
