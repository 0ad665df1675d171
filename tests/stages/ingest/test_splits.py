"""Splits by property: disjoint, seeded, blind to order, stable when photos come, and never through
a group."""

from __future__ import annotations

import sqlite3
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.ingest.manifest_db import PHOTOS
from stages.ingest.splits import KNOWN, SplitSettings, assign_splits, draw


class Photo(NamedTuple):
    photo_id: str
    sha256: str
    person: str | None
    given: str | None


RANDOM: dict[str, Any] = {
    "assign": "random",
    "group_by": "picture",
    "val_fraction": 0.2,
    "test_fraction": 0.3,
}
RANDOM |= {"num_folds": 5, "fold": 0, "seed": 0}


def settings(**changes: Any) -> SplitSettings:
    return SplitSettings(**{**RANDOM, **changes})


def split(photos: Sequence[Photo], chosen: SplitSettings) -> dict[str, str]:
    """photo_id -> split."""
    database = sqlite3.connect(":memory:", isolation_level=None)
    database.execute(PHOTOS)
    database.executemany(
        "INSERT INTO photos (photo_id, sha256, person, given) VALUES (?, ?, ?, ?)", photos
    )
    try:
        assign_splits(database, chosen)
        return dict(database.execute("SELECT photo_id, split FROM photos"))
    finally:
        database.close()


def splits_of(photos: Sequence[Photo], found: dict[str, str], column: str) -> dict[str, set[str]]:
    """Each group of `column` -> the splits that its photos are in."""
    groups = defaultdict(set)
    for photo in photos:
        groups[getattr(photo, column)].add(found[photo.photo_id])
    return groups


MANY = [
    Photo(f"{index:05}", f"sha{index % 4000}", f"person{index % 150}", None)
    for index in range(5000)
]

photo_lists = st.lists(
    st.tuples(st.integers(0, 12), st.integers(0, 5), st.sampled_from(KNOWN[::2])),
    min_size=1,
    max_size=30,
).map(
    lambda rows: [
        Photo(f"p{i}", f"sha{sha}", f"person{who}", how) for i, (sha, who, how) in enumerate(rows)
    ]
)
seeds = st.integers(0, 5)


def test_draws_are_uniform_and_independent_of_each_other() -> None:
    numbers = [draw(0, "test", f"sha{index}") for index in range(4000)]
    assert all(0 <= number < 1 for number in numbers)
    assert abs(sum(numbers) / 4000 - 0.5) < 0.02
    others = [draw(0, "val", f"sha{index}") for index in range(4000)]
    both_low = sum(a < 0.5 and b < 0.5 for a, b in zip(numbers, others, strict=True)) / 4000
    assert abs(both_low - 0.25) < 0.03
    assert draw(0, "test", "a") != draw(1, "test", "a")


def test_the_draw_is_pinned_for_good() -> None:
    """Published splits must not move: sha256('7:val:abc') begins with these eight bytes."""
    assert draw(7, "val", "abc") == 0x040F975902E3363D / 2**64


def test_fractions_hold_and_val_is_a_share_of_the_rest() -> None:
    counts = Counter(split(MANY, settings()).values())
    assert counts["test"] / 5000 == pytest.approx(0.3, abs=0.03)
    assert counts["val"] / (5000 - counts["test"]) == pytest.approx(0.2, abs=0.03)


def test_folds_are_disjoint_and_together_everything() -> None:
    tests = [
        {p for p, s in split(MANY, settings(assign="folds", fold=fold)).items() if s == "test"}
        for fold in range(5)
    ]
    assert sum(map(len, tests)) == len(set.union(*tests)) == 5000
    assert all(len(test) == pytest.approx(1000, abs=120) for test in tests)


@pytest.mark.parametrize("seed", [0, 1])
def test_leaving_one_person_out_tests_everybody_once_in_order(seed: int) -> None:
    """12 people with 5 photos each, of whom 03 and 07 share a picture and so are one."""
    photos = [
        Photo(f"{who:02}-{n}", f"sha{who}-{n}", f"{who:02}", None)
        for who in range(12)
        for n in range(5)
    ]
    photos[7 * 5] = photos[7 * 5]._replace(sha256="sha3-0")
    chosen = {"assign": "leave_person_out", "group_by": "person", "num_folds": 11, "seed": seed}
    tests, vals = [], set()
    for fold in range(11):
        found = split(photos, settings(**chosen, fold=fold))
        for column in ("person", "sha256"):
            assert all(len(splits) == 1 for splits in splits_of(photos, found, column).values())
        tests.append(sorted({photo.person for photo in photos if found[photo.photo_id] == "test"}))
        vals |= {photo.person for photo in photos if found[photo.photo_id] == "val"}
    one_each = [[f"{who:02}"] for who in (0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11)]
    assert tests == [["03", "07"] if test == ["03"] else test for test in one_each]
    assert 0 < len(vals) < 12, "val is the same people in every fold, less the one who tests"
    with pytest.raises(ValueError, match="the set has 11 persons"):
        split(photos, settings(**chosen | {"num_folds": 12}))


@given(photo_lists, seeds, st.sampled_from(["random", "folds"]))
def test_identical_pictures_never_straddle_a_new_split(
    photos: list[Photo], seed: int, assign: str
) -> None:
    found = _split_or_none(photos, settings(assign=assign, seed=seed))
    if found is not None:
        assert all(len(splits) == 1 for splits in splits_of(photos, found, "sha256").values())


@given(photo_lists, seeds, st.sampled_from(["random", "folds"]))
def test_persons_and_their_pictures_never_straddle(
    photos: list[Photo], seed: int, assign: str
) -> None:
    found = _split_or_none(photos, settings(assign=assign, seed=seed, group_by="person"))
    if found is not None:
        for column in ("person", "sha256"):
            assert all(len(splits) == 1 for splits in splits_of(photos, found, column).values())


def _split_or_none(photos: Sequence[Photo], chosen: SplitSettings) -> dict[str, str] | None:
    try:
        return split(photos, chosen)
    except ValueError as error:
        if "no photo is left for train" not in str(error):
            raise
        return None


@given(photo_lists, seeds)
def test_every_person_trains_who_is_not_in_test_alone(photos: list[Photo], seed: int) -> None:
    chosen = settings(seed=seed, val_fraction=0.6, test_fraction=0.3)
    found = _split_or_none(photos, chosen)
    if found is not None:
        assert all(
            "train" in splits
            for splits in splits_of(photos, found, "person").values()
            if splits != {"test"}
        )
        assert all(len(splits) == 1 for splits in splits_of(photos, found, "sha256").values())


@given(photo_lists, seeds)
def test_who_is_shown_changes_no_test_set(photos: list[Photo], seed: int) -> None:
    found = _split_or_none(photos, settings(seed=seed))
    nameless = _split_or_none(
        [photo._replace(person=None) for photo in photos], settings(seed=seed)
    )
    if found is not None and nameless is not None:
        assert {name for name in found if found[name] == "test"} == {
            name for name in nameless if nameless[name] == "test"
        }


def test_every_person_trains_without_costing_the_fractions() -> None:
    found = split(MANY, settings(test_fraction=0.0, val_fraction=0.1))
    assert Counter(found.values())["val"] / 5000 == pytest.approx(0.1, abs=0.02)


@given(photo_lists, seeds, st.randoms(use_true_random=False))
def test_the_order_of_photos_does_not_matter(photos: list[Photo], seed: int, random: Any) -> None:
    shuffled = list(photos)
    random.shuffle(shuffled)
    assert _split_or_none(photos, settings(seed=seed)) == _split_or_none(
        shuffled, settings(seed=seed)
    )


def test_photos_that_come_later_move_no_other() -> None:
    nameless = [photo._replace(person=None) for photo in MANY]
    before, after = split(nameless[:3000], settings()), split(nameless, settings())
    assert before == {photo_id: after[photo_id] for photo_id in before}
    assert split(nameless, settings(seed=1)) != after


@given(photo_lists, seeds)
def test_given_splits_are_left_and_val_is_carved_from_train(photos: list[Photo], seed: int) -> None:
    found = _split_or_none(photos, settings(assign="given", seed=seed))
    if found is None:
        assert all(photo.given == "test" for photo in photos)
        return
    for photo in photos:
        assert found[photo.photo_id] in (("test",) if photo.given == "test" else ("train", "val"))
    given_train = [photo for photo in photos if photo.given == "train"]
    assert all(len(splits) == 1 for splits in splits_of(given_train, found, "sha256").values())
    assert all("train" in splits for splits in splits_of(given_train, found, "person").values())


def test_a_given_val_is_kept_and_nothing_is_carved_beside_it() -> None:
    photos = [Photo(f"{i}", f"{i}", None, KNOWN[i % 3]) for i in range(30)]
    assert split(photos, settings(assign="given", val_fraction=0.0)) == {
        p.photo_id: p.given for p in photos
    }
    with pytest.raises(ValueError, match="its own val"):
        split(photos, settings(assign="given"))


def test_what_a_set_cannot_give_is_refused() -> None:
    with pytest.raises(ValueError, match="use random or folds"):
        split(MANY, settings(assign="given"))
    with pytest.raises(ValueError, match="has no person; use picture"):
        split([Photo("a", "a", None, None)], settings(group_by="person"))
    with pytest.raises(ValueError, match="no photo is left for train"):
        split([Photo("a", "a", "x", "test")], settings(assign="given"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"val_fraction": 1.0},
        {"test_fraction": -0.1},
        {"assign": "folds", "num_folds": 1},
        {"assign": "folds", "fold": 5},
        {"assign": "leave_person_out", "group_by": "person", "fold": 5},
        {"assign": "leave_person_out", "group_by": "picture"},
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=list(wrong)[-1]):
        settings(**wrong)
