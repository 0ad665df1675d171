"""Archives that attack, archives that are broken, and archives that are merely odd."""

from __future__ import annotations

import io
import stat
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.ingest.archives import CONTROL, Budget, Limits, Unpacked, odd_name, safe_name, unpack
from stages.ingest.split_archives import Joined, grouped_parts, is_archive

LIMITS = Limits(
    max_photo_bytes=30 << 20,
    max_photo_pixels=10**8,
    max_total_bytes=60 << 20,
    max_files=1000,
    max_ratio=50.0,
)


def tar_of(path: Path, members: list[tuple[str | tarfile.TarInfo, bytes]], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in members:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            if info.isreg():
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = target
    return info


def zip_of(path: Path, members: list[tuple[str | zipfile.ZipInfo, bytes]]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def unpacked(archive: Path | list[Path], raw: Path, limits: Limits = LIMITS) -> Unpacked:
    parts = [archive] if isinstance(archive, Path) else archive
    return unpack(parts[0].name, parts, raw, Budget(limits=limits))


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but download's own state."""
    found = (path for path in folder.rglob("*") if path.is_file() and CONTROL not in path.parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


MAKERS: dict[str, Callable[[Path, list[tuple[str, bytes]]], Path]] = {
    "photos.tar": tar_of,
    "photos.tar.gz": lambda path, members: tar_of(path, members, "w:gz"),
    "photos.tar.bz2": lambda path, members: tar_of(path, members, "w:bz2"),
    "photos.tar.xz": lambda path, members: tar_of(path, members, "w:xz"),
    "photos.zip": zip_of,
}
GOOD = [("set/a/1.jpg", b"one"), ("set/a/2.jpg", b""), ("./set/b/ü ß.jpg", b"three" * 1000)]


@pytest.mark.parametrize("name", MAKERS)
def test_every_kind_of_archive_gives_its_files(name: str, tmp_path: Path) -> None:
    done = unpacked(MAKERS[name](tmp_path / name, GOOD), tmp_path / "raw")
    assert files(tmp_path / "raw") == {safe_name(member): content for member, content in GOOD}
    assert (done.num_files, done.num_bytes, done.skipped) == (3, 5003, [])


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize(
    "bad", ["../out.jpg", "/out.jpg", "set/../../out.jpg", "..\\out.jpg", "C:\\out.jpg", ".."]
)
def test_a_name_that_leads_out_is_refused(name: str, bad: str, tmp_path: Path) -> None:
    archive = MAKERS[name](tmp_path / name, [("set/1.jpg", b"fine"), (bad, b"evil")])
    with pytest.raises(ValueError, match=r"absolute name|outside"):
        unpacked(archive, tmp_path / "deep" / "raw")
    assert not list(tmp_path.rglob("out.jpg"))


KINDS = {
    "symlink": (tarfile.SYMTYPE, "/etc/passwd"),
    "hardlink": (tarfile.LNKTYPE, "/etc/passwd"),
    "character device": (tarfile.CHRTYPE, ""),
    "block device": (tarfile.BLKTYPE, ""),
    "pipe": (tarfile.FIFOTYPE, ""),
    "unknown kind": (b"Z", ""),
}


@pytest.mark.parametrize("kind", KINDS)
def test_links_and_devices_in_a_tar_are_refused(kind: str, tmp_path: Path) -> None:
    archive = tar_of(
        tmp_path / "evil.tar",
        [(special("set/x", *KINDS[kind]), b""), ("set/x/1.jpg", b"through it")],
    )
    with pytest.raises(ValueError, match="link, device, pipe or sparse"):
        unpacked(archive, tmp_path / "raw")
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))


def test_a_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("set/x")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with pytest.raises(ValueError, match="link, device or pipe"):
        unpacked(zip_of(tmp_path / "evil.zip", [(link, b"/etc/passwd")]), tmp_path / "raw")


def test_an_encrypted_zip_says_what_to_do(tmp_path: Path) -> None:
    archive = zip_of(tmp_path / "secret.zip", [("1.jpg", b"x")])
    data = bytearray(archive.read_bytes())
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(data)
    with pytest.raises(ValueError, match="encrypted; unpack it by hand"):
        unpacked(archive, tmp_path / "raw")


def test_a_link_already_in_the_raw_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "set").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(ValueError, match="leads out of"):
        unpacked(tar_of(tmp_path / "x.tar", [("set/1.jpg", b"x")]), tmp_path / "raw")
    assert not files(tmp_path / "elsewhere")


@pytest.mark.parametrize("name", ["photos.tar.gz", "photos.tar.bz2", "photos.tar.xz", "photos.zip"])
def test_a_bomb_is_stopped_by_its_ratio(name: str, tmp_path: Path) -> None:
    archive = MAKERS[name](
        tmp_path / name, [(f"{index}.jpg", bytes(6 << 20)) for index in range(8)]
    )
    with pytest.raises(ValueError, match=r"max_ratio"):
        unpacked(archive, tmp_path / "raw")
    assert sum(map(len, files(tmp_path / "raw").values())) <= 24 << 20


@pytest.mark.parametrize(
    ("limit", "allowed"), [("max_files", 2), ("max_photo_bytes", 4999), ("max_total_bytes", 5002)]
)
@pytest.mark.parametrize("name", ["photos.tar", "photos.zip"])
def test_limits_hold_and_are_named(name: str, limit: str, allowed: int, tmp_path: Path) -> None:
    limits = Limits(**{**vars(LIMITS), limit: allowed})
    with pytest.raises(ValueError, match=rf"limits\.{limit} {allowed}"):
        unpacked(MAKERS[name](tmp_path / name, GOOD), tmp_path / "raw", limits)


def test_a_sparse_member_and_a_giant_header_are_refused(tmp_path: Path) -> None:
    sparse = tarfile.TarInfo("huge.jpg")
    sparse.pax_headers = {
        "GNU.sparse.major": "0",
        "GNU.sparse.minor": "1",
        "GNU.sparse.size": str(1 << 40),
    }
    sparse.pax_headers |= {"GNU.sparse.map": f"0,0,{1 << 40},0", "GNU.sparse.name": "huge.jpg"}
    with pytest.raises(ValueError, match="sparse"):
        unpacked(tar_of(tmp_path / "sparse.tar", [(sparse, b"")]), tmp_path / "raw")
    long = tarfile.TarInfo("x.jpg")
    long.pax_headers = {"comment": "x" * (5 << 20)}
    with pytest.raises(ValueError, match="header"):
        unpacked(tar_of(tmp_path / "long.tar.gz", [(long, b"")], "w:gz"), tmp_path / "raw2")


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
def test_an_archive_that_ends_early_is_refused(
    name: str, kept: float, tmp_path: Path, rng: np.random.Generator
) -> None:
    archive = MAKERS[name](
        tmp_path / name, [(f"{index}.jpg", rng.bytes(4000)) for index in range(5)]
    )
    archive.write_bytes(archive.read_bytes()[: int(kept * 20_000)])
    with pytest.raises(ValueError, match=r"cut short|fetch it again"):
        unpacked(archive, tmp_path / "raw")


def test_a_tar_cut_exactly_between_two_members_is_noticed(tmp_path: Path) -> None:
    archive = tar_of(tmp_path / "photos.tar", [("1.jpg", b"x" * 512), ("2.jpg", b"y" * 512)])
    archive.write_bytes(archive.read_bytes()[:1024])
    with pytest.raises(ValueError, match="no end mark"):
        unpacked(archive, tmp_path / "raw")


@pytest.mark.parametrize("name", MAKERS)
def test_any_damaged_byte_gives_the_right_files_or_a_value_error(
    name: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    archive = MAKERS[name](tmp_path / name, GOOD)
    intact = archive.read_bytes()
    for attempt in range(40):
        damaged = bytearray(intact)
        damaged[int(rng.integers(len(intact)))] ^= int(rng.integers(1, 256))
        archive.write_bytes(damaged)
        with suppress(ValueError):
            unpacked(archive, tmp_path / f"raw{attempt}")
            # A tar has no checksum over the content; no format has one over the names
            if name != "photos.tar":
                contents = set(files(tmp_path / f"raw{attempt}").values())
                assert contents <= {b"", b"one", b"three" * 1000}


@pytest.mark.parametrize("name", ["photos.tar", "photos.zip"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_twice_is_fine_with_the_same_bytes_only(name: str, tmp_path: Path) -> None:
    same = MAKERS[name](tmp_path / name, [("1.jpg", b"same"), ("1.jpg", b"same")])
    unpacked(same, tmp_path / "raw")
    for other in (b"othe", b"sam", b"same but longer", b""):
        with pytest.raises(ValueError, match="twice with other bytes"):
            unpacked(
                MAKERS[name](tmp_path / name, [("1.jpg", b"same"), ("1.jpg", other)]),
                tmp_path / "raw",
            )
    assert files(tmp_path / "raw") == {"1.jpg": b"same"}


def test_odd_names_are_left_out_with_a_reason_and_litter_silently(tmp_path: Path) -> None:
    odd = ["new\nline.jpg", "bell\x07.jpg", "bytes\udcff.jpg", "x" * 256 + ".jpg"]
    litter = [
        "__MACOSX/._1.jpg",
        ".DS_Store",
        "Thumbs.db",
        f"{CONTROL}/plan.json",
        "a/.hidden/1.jpg",
    ]
    archive = tar_of(
        tmp_path / "x.tar", [(name, b"x") for name in [*odd, *litter, "good name (1).jpg"]]
    )
    done = unpacked(archive, tmp_path / "raw")
    assert files(tmp_path / "raw") == {"good name (1).jpg": b"x"}
    assert not (tmp_path / "raw" / CONTROL / "plan.json").exists()
    assert [name for name, _ in done.skipped] == [
        "new\\u000aline.jpg",
        "bell\\u0007.jpg",
        "bytes\\udcff.jpg",
        odd[3],
    ]


def test_unpacking_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    archive = tar_of(tmp_path / "x.tar", GOOD)
    (tmp_path / "raw" / "set" / "a").mkdir(parents=True)
    (tmp_path / "raw" / "set" / "a" / "1.jpg").write_bytes(b"one")
    (tmp_path / "raw" / CONTROL).mkdir()
    (tmp_path / "raw" / CONTROL / "incoming").write_bytes(b"half a ph")
    before = (tmp_path / "raw" / "set" / "a" / "1.jpg").stat().st_mtime_ns
    unpacked(archive, tmp_path / "raw")
    assert files(tmp_path / "raw") == {safe_name(member): content for member, content in GOOD}
    assert (tmp_path / "raw" / "set" / "a" / "1.jpg").stat().st_mtime_ns == before


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize(
    "suffixes", [("001", "002", "003"), ("part1", "part2", "part3"), ("partaa", "partab", "partac")]
)
def test_parts_are_read_as_one(name: str, suffixes: tuple[str, ...], tmp_path: Path) -> None:
    data = MAKERS[name](tmp_path / name, GOOD).read_bytes()
    cuts = [0, len(data) // 3, len(data) // 2, len(data)]
    parts = [tmp_path / f"{name}.{suffix}" for suffix in suffixes]
    for part, start, end in zip(parts, cuts[:-1], cuts[1:], strict=True):
        part.write_bytes(data[start:end])
    ((archive_name, ordered),) = grouped_parts(list(reversed(parts)))
    assert (archive_name, ordered) == (name, parts)
    unpacked(ordered, tmp_path / "raw")
    assert files(tmp_path / "raw") == {safe_name(member): content for member, content in GOOD}


def test_a_missing_part_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="missing"):
        grouped_parts([tmp_path / "x.tar.001", tmp_path / "x.tar.003"])
    with pytest.raises(ValueError, match="missing"):
        grouped_parts([tmp_path / "x.tar.2", tmp_path / "x.tar.3"])


def test_ten_parts_without_leading_zeros_keep_their_order(tmp_path: Path) -> None:
    parts = [tmp_path / f"x.zip.{number}" for number in range(1, 12)]
    assert grouped_parts(sorted(parts)) == [("x.zip", parts)]


def test_what_counts_as_an_archive() -> None:
    for name in (
        "a.tar",
        "a.TAR.GZ",
        "a.tgz",
        "a.zip",
        "a.tar.001",
        "a.tar.gz.part2",
        "a.tar.gz.aa",
    ):
        assert is_archive(name), name
    for name in ("a.jpg", "a.gz", "tar", "a.jpg.001", "UTKFace-part1", "a.zip.md", "a.part1.rar"):
        assert not is_archive(name), name


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=5), st.data())
def test_joined_reads_as_the_concatenation(
    tmp_path_factory: pytest.TempPathFactory, chunks: list[bytes], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("joined")
    paths = [folder / str(index) for index in range(len(chunks))]
    for path, chunk in zip(paths, chunks, strict=True):
        path.write_bytes(chunk)
    concatenation = io.BytesIO(b"".join(chunks))
    with Joined(paths) as joined:
        buffered = io.BufferedReader(joined, 4)
        for _ in range(5):
            position = data.draw(st.integers(0, 110))
            count = data.draw(st.integers(0, 110))
            concatenation.seek(position)
            buffered.seek(position)
            assert buffered.read(count) == concatenation.read(count)


@given(st.text(min_size=1, max_size=40))
def test_a_safe_name_stays_below_its_folder(name: str) -> None:
    try:
        safe = safe_name(name)
    except ValueError:
        return
    if odd_name(safe) is None:
        assert (Path("/raw") / safe).is_relative_to("/raw")
        assert ".." not in safe.split("/")
