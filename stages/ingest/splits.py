"""The split of every photo: rows of the database become train | val | test.

Nothing is shuffled. A group of photos draws a number in [0, 1) from sha256(seed : purpose : group),
so a split does not depend on the order of files, and a photo that is added later moves no other.
Fractions hold in expectation.

assign
- `given`: the set's own split. val is carved out of its train, by `val_fraction`, unless the set
  brings its own val (then `val_fraction` must be 0).
- `random`: test_draw < test_fraction is test; of the rest, val_draw < val_fraction is val.
- `folds`: floor(test_draw * num_folds) == fold is test; of the rest, val_draw < val_fraction is
  val. Folds of one seed are disjoint and together are everything; the same seed with other folds
  keeps the draws.
- `leave_person_out`: the person number `fold` in sorted order is test; of the others, val is carved
  as above. There are as many folds as persons, and `num_folds` must say so; `group_by` must be
  person.
`val_fraction` is thus always a fraction of what is not test.

group_by
- `picture`: byte-identical photos (sha256) share every draw: no new split puts one in train and one
  in test. A given split is left as it was given, duplicates included. Where photos have a person, a
  person left without any train photo gets back the val picture whose val_draw is highest, for a
  classifier of persons must have seen them all. The test set is never changed for that.
- `person`: a person's photos share every draw; persons who share a picture count as one.

Photos that come later (`assign_incoming`) move none of those before them. A line's own split holds;
else a photo gets the split that its group (picture or person) has among the others, the firmest
where that has several (test, then val). A new group draws as above, each of several persons in it
by itself: a person that came as test stays test, unless a later line or a shared picture says
otherwise. Where the set's own split is `given`, test is closed: a photo that would get into it is
left out and listed. With `leave_person_out` only those who were there before take turns.
"""

from __future__ import annotations

import hashlib
import sqlite3
from dataclasses import dataclass
from typing import Literal

from stages.ingest.records import ReportSkip

# Each firmer than those before it
KNOWN = ("train", "val", "test")
# Places in KNOWN. `known`: the firmest that a later photo's group has among the others and by its
# own lines; `settled`: what becomes of each later photo. place_of, group_of and drawn are functions
# of assign_incoming.
INCOMING_SPLITS = """
CREATE TEMP TABLE incoming AS SELECT photo_id, group_of(sha256, person) AS grp,
    place_of(given) AS given,
    drawn(sha256, person) AS drawn FROM photos WHERE split IS NULL;
CREATE INDEX temp.incoming_grp ON incoming (grp);
CREATE TEMP TABLE known AS SELECT grp, MAX(place) AS place FROM (
    SELECT group_of(sha256, person) AS grp, place_of(split) AS place FROM photos
    WHERE split IS NOT NULL
    UNION ALL SELECT grp, given FROM incoming WHERE given IS NOT NULL)
    WHERE grp IN (SELECT grp FROM incoming) GROUP BY grp;
CREATE INDEX temp.known_grp ON known (grp);
CREATE TEMP TABLE settled AS SELECT photo_id, given,
    COALESCE(given, known.place, MAX(drawn) OVER (PARTITION BY grp)) AS place,
    given IS NULL AND known.place IS NULL AS is_drawn FROM incoming LEFT JOIN known USING (grp);
CREATE UNIQUE INDEX temp.settled_photo_id ON settled (photo_id);
UPDATE photos SET split = CASE settled.place WHEN 0 THEN 'train' WHEN 1 THEN 'val' ELSE 'test' END
    FROM settled WHERE settled.photo_id = photos.photo_id;
"""
# Test, and not by its own line
CLOSED = "photo_id IN (SELECT photo_id FROM settled WHERE place = 2 AND given IS NULL)"


@dataclass(frozen=True, kw_only=True)
class SplitSettings:
    """How the photos are split; what a way of assigning does not use is still checked."""

    assign: Literal["given", "random", "folds", "leave_person_out"]
    group_by: Literal["picture", "person"]
    val_fraction: float
    test_fraction: float
    num_folds: int
    fold: int
    seed: int

    def __post_init__(self) -> None:
        for name in ("val_fraction", "test_fraction"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)}: must be at least 0 and below 1")
        has_folds = self.assign in ("folds", "leave_person_out")
        if has_folds and self.num_folds < 2:
            raise ValueError(f"num_folds {self.num_folds}: at least 2")
        if has_folds and not 0 <= self.fold < self.num_folds:
            raise ValueError(f"fold {self.fold}: must be 0 to {self.num_folds - 1}")
        if self.assign == "leave_person_out" and self.group_by != "person":
            raise ValueError(f"group_by {self.group_by}: leave_person_out goes by person")


def draw(seed: int, purpose: str, group: str) -> float:
    """The number in [0, 1) that a group draws for a purpose."""
    digest = hashlib.sha256(f"{seed}:{purpose}:{group}".encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64


def choose(group: str, given: str | None, settings: SplitSettings, left_out: str | None) -> str:
    """The split of one group of photos, before any person is helped; `left_out`: the group that
    leaves, if any."""
    if settings.assign == "given":
        assert given in KNOWN, given
        if given != "train":
            return given
        is_test = False
    elif settings.assign == "leave_person_out":
        is_test = group == left_out
    else:
        number = draw(settings.seed, "test", group)
        if settings.assign == "random":
            is_test = number < settings.test_fraction
        else:
            is_test = int(number * settings.num_folds) == settings.fold

    if is_test:
        return "test"
    is_val = draw(settings.seed, "val", group) < settings.val_fraction
    return "val" if is_val else "train"


def assign_splits(
    connection: sqlite3.Connection, settings: SplitSettings, folder: str = ""
) -> None:
    """Fills the column `split` of the table `photos` (photo_id, sha256, person, given, split) where
    it is empty: of all photos, or of one set among several, all of whose photos are in `folder`."""
    connection.execute("DROP VIEW IF EXISTS temp.own_photos")
    connection.execute(
        f"CREATE TEMP VIEW own_photos AS SELECT * FROM photos WHERE {_in_folder(folder)}"
    )
    _check(connection, settings)
    by_person = settings.group_by == "person"
    merged = _merged_persons(connection) if by_person else {}
    left_out = None
    if settings.assign == "leave_person_out":
        left_out = _left_out(connection, merged, settings)

    def chosen(sha256: str, person: str | None, given: str | None) -> str:
        group = merged.get(str(person), str(person)) if by_person else sha256
        return choose(group, given, settings, left_out)

    connection.create_function("chosen", 3, chosen, deterministic=True)
    own = _in_folder(folder)
    connection.execute(f"UPDATE photos SET split = chosen(sha256, person, given) WHERE {own}")
    if settings.group_by == "picture":
        _help_persons(connection, settings, f"split = 'val' AND given IS NOT 'val' AND {own}")

    is_train = "SELECT 1 FROM own_photos WHERE split = 'train' LIMIT 1"
    if not connection.execute(is_train).fetchone():
        raise ValueError(
            "no photo is left for train; lower split.val_fraction and split.test_fraction"
        )


def _in_folder(folder: str) -> str:
    """SQL for the photos of a folder; the name is that of a section of the settings."""
    assert "'" not in folder, folder
    return f"photo_id >= '{folder}/' AND photo_id < '{folder}0'" if folder else "TRUE"


def _check(connection: sqlite3.Connection, settings: SplitSettings) -> None:
    """ValueError where the rows do not have what the settings count on."""
    if settings.assign == "given":
        found = {given for (given,) in connection.execute("SELECT DISTINCT given FROM own_photos")}
        if not found <= set(KNOWN):
            raise ValueError(
                f"split.assign given: the set's splits are {sorted(map(str, found))}; "
                "use random or folds"
            )
        if "val" in found and settings.val_fraction > 0:
            raise ValueError(
                f"split.val_fraction {settings.val_fraction}: the set brings its own val; set 0"
            )
    if settings.group_by == "person":
        _check_persons(connection)


def _check_persons(connection: sqlite3.Connection) -> None:
    nobody = connection.execute(
        "SELECT photo_id FROM own_photos WHERE person IS NULL LIMIT 1"
    ).fetchone()
    if nobody:
        raise ValueError(f"split.group_by person: {nobody[0]} has no person; use picture")


def assign_incoming(
    connection: sqlite3.Connection, settings: SplitSettings, report_skip: ReportSkip
) -> None:
    """Fills `split` where it is still empty: photos that came after the others were assigned."""
    by_person = settings.group_by == "person"
    if by_person:
        _check_persons(connection)
    merged = _merged_persons(connection) if by_person else {}

    def group(sha256: str, person: str | None) -> str:
        return merged.get(str(person), str(person)) if by_person else sha256

    def drawn(sha256: str, person: str | None) -> int:
        own_group = str(person) if by_person else sha256
        given = "train" if settings.assign == "given" else None
        return KNOWN.index(choose(own_group, given, settings, left_out=None))

    def place_of(split: str | None) -> int | str | None:
        return split and KNOWN.index(split)

    connection.create_function("group_of", 2, group, deterministic=True)
    connection.create_function("drawn", 2, drawn, deterministic=True)
    connection.create_function("place_of", 1, place_of, deterministic=True)
    connection.executescript(INCOMING_SPLITS)

    if settings.assign == "given":
        _close_test(connection, report_skip)
    if settings.group_by == "picture":
        _help_persons(
            connection,
            settings,
            "split = 'val' AND photo_id IN (SELECT photo_id FROM settled WHERE is_drawn)",
        )


def _close_test(connection: sqlite3.Connection, report_skip: ReportSkip) -> None:
    """Leaves out the later photos that got into test by their group."""
    for (photo_id,) in connection.execute(f"SELECT photo_id FROM photos WHERE {CLOSED}").fetchall():
        report_skip(photo_id, "the same picture or person is in the test split, which is given")
    connection.execute(f"DELETE FROM photos WHERE {CLOSED}")


def _merged_persons(connection: sqlite3.Connection) -> dict[str, str]:
    """Persons who share a picture -> the one name (the first in order) that draws for all of
    them."""
    shared = """SELECT sha256, person FROM own_photos WHERE sha256 IN
        (SELECT sha256 FROM own_photos GROUP BY sha256 HAVING COUNT(DISTINCT person) > 1)
        GROUP BY sha256, person"""
    leader: dict[str, str] = {}

    def find(person: str) -> str:
        while leader.setdefault(person, person) != person:
            person = leader[person]
        return person

    first_of: dict[str, str] = {}
    for sha256, person in connection.execute(shared):
        one, other = sorted((find(person), find(first_of.setdefault(sha256, person))))
        leader[other] = one
    return {person: find(person) for person in list(leader)}


def _left_out(
    connection: sqlite3.Connection, merged: dict[str, str], settings: SplitSettings
) -> str:
    """The group number `fold` of all persons' groups in sorted order; ValueError unless there are
    `num_folds`."""
    found = connection.execute("SELECT DISTINCT person FROM own_photos")
    groups = sorted({merged.get(person, person) for (person,) in found})
    if len(groups) != settings.num_folds:
        raise ValueError(
            f"split.num_folds {settings.num_folds}: the set has {len(groups)} persons (those who "
            "share a picture count as one), and leave_person_out has one fold each; "
            f"set {len(groups)}, or complete the set"
        )
    return str(groups[settings.fold])


def _help_persons(connection: sqlite3.Connection, settings: SplitSettings, movable: str) -> None:
    """Gives persons without a train photo the picture of the highest val_draw among the `movable`
    (SQL) photos."""
    connection.create_function(
        "val_draw", 1, lambda group: draw(settings.seed, "val", group), deterministic=True
    )

    connection.execute("CREATE INDEX IF NOT EXISTS photos_person ON photos (person, split)")

    connection.execute("CREATE INDEX IF NOT EXISTS photos_sha256 ON photos (sha256)")
    connection.execute(
        f"""UPDATE photos SET split = 'train' WHERE {movable} AND sha256 IN (
            SELECT sha256 FROM (
                SELECT sha256, MAX(val_draw(sha256)) FROM photos AS candidates
                WHERE {movable} AND person IS NOT NULL AND NOT EXISTS (
                    SELECT 1 FROM photos AS own WHERE own.person = candidates.person
                    AND own.split = 'train')
                GROUP BY person))"""
    )
