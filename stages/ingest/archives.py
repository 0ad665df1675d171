"""An archive (tar, tar.gz/bz2/xz, zip, in one file or in parts) becomes plain files below one
folder, and nothing else.

The archive is refused (ValueError) for: absolute names, `..`, links, devices, pipes, sparse and
encrypted members, more files or bytes than the limits allow, more bytes out than `max_ratio` times
the bytes in, two members of one name with other bytes, and an early end. Left out one by one, with
a reason: names that no manifest can hold (control characters, bytes that are not UTF-8, parts over
255 bytes). Ignored: dot-files, `__MACOSX`, `Thumbs.db`.

Every file is written atomically (a temporary name, then a rename). A file that is there with the
same bytes is left alone, so an unpacking that was killed goes on where it stopped. Memory is flat
in the number of members, except that Python's zipfile holds a zip's directory (about half a
kilobyte a member): prefer tar for millions of photos.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from tqdm import tqdm

from stages.ingest.split_archives import Joined

# Download's own folder below the raw folder: state and half-written files
CONTROL = ".visage"
CHUNK_BYTES = 1 << 20
# Tiny archives of text may well exceed any sensible ratio
RATIO_FREE_BYTES = 16 << 20
# A tar header (long names, pax records) that wants more is an attack on memory
MAX_HEADER_BYTES = 1 << 20
MAX_NAME_BYTES = 255
ODD_CHARACTERS = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
COMPRESSED: dict[bytes, Callable[[Any], Any]] = {
    b"\x1f\x8b": lambda stream: gzip.GzipFile(fileobj=stream),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\x00": lzma.LZMAFile,
}
IGNORED = frozenset({"__MACOSX", "Thumbs.db", "desktop.ini"})
BROKEN = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    gzip.BadGzipFile,
    EOFError,
    # A zip's unknown method
    NotImplementedError,
    # Headers nested without end
    RecursionError,
)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one role's photos may take; `max_ratio` is bytes unpacked per byte of archive."""

    max_photo_bytes: int
    max_photo_pixels: int
    max_total_bytes: int
    max_files: int
    max_ratio: float


@dataclass(kw_only=True)
class Budget:
    """Counts what came in against the limits, over all archives and folders of a role."""

    limits: Limits
    num_files: int = 0
    num_bytes: int = 0

    def add(self, name: str, num_bytes: int) -> None:
        self.num_files += 1
        self.num_bytes += num_bytes
        self._hold(name, "max_files", self.num_files, self.limits.max_files)
        self._hold(name, "max_photo_bytes", num_bytes, self.limits.max_photo_bytes)
        self._hold(name, "max_total_bytes", self.num_bytes, self.limits.max_total_bytes)

    def _hold(self, name: str, limit: str, found: int, allowed: int) -> None:
        if found > allowed:
            raise ValueError(
                f"{name}: {found} is over limits.{limit} {allowed}; a bomb, or raise that limit"
            )


class Member(NamedTuple):
    """A plain file inside an archive; `content` must be read before the next member is taken."""

    name: str
    num_bytes: int
    content: IO[bytes]


@dataclass(kw_only=True)
class Unpacked:
    """What an archive gave: counts, and the members left out with their reasons."""

    num_files: int = 0
    num_bytes: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)


def unpack(name: str, parts: Sequence[Path], raw_dir: Path, budget: Budget) -> Unpacked:
    """Unpacks the archive whose bytes are `parts` into `raw_dir`; ValueError names archive and
    member."""
    done = Unpacked()
    placer = Placer(raw_dir)

    with Joined(parts) as joined:
        allowed = max(RATIO_FREE_BYTES, int(joined.num_bytes * budget.limits.max_ratio))
        members = tqdm(
            _members(joined, allowed),
            desc=f"unpack {name}",
            unit=" files",
            mininterval=1,
        )
        try:
            for member in members:
                _take(member, placer, budget, done)
                if done.num_bytes > allowed:
                    raise ValueError(
                        f"unpacks to over limits.max_ratio times its {joined.num_bytes} bytes: "
                        "a bomb"
                    )
        except BROKEN as error:
            raise ValueError(f"{name}: broken or cut short ({error}); fetch it again") from error
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error

    return done


def _take(member: Member, placer: Placer, budget: Budget, done: Unpacked) -> None:
    photo_id = safe_name(member.name)
    if is_ignored(photo_id):
        return
    if reason := odd_name(photo_id):
        done.skipped.append((printable(photo_id), reason))
        return
    budget.add(photo_id, member.num_bytes)
    placer.place(photo_id, member.content)
    done.num_files += 1
    done.num_bytes += member.num_bytes


def safe_name(name: str) -> str:
    """A member's name as a posix path that stays below its folder; ValueError for one that would
    not."""
    # Archives made on Windows have backslashes
    unified = name.replace("\\", "/")
    parts = [part for part in unified.split("/") if part not in ("", ".")]

    if unified.startswith("/") or re.match(r"[A-Za-z]:", unified):
        raise ValueError(f"member {name!r} has an absolute name; do not trust this archive")
    if ".." in parts or not parts:
        raise ValueError(f"member {name!r} points outside of the folder; do not trust this archive")

    return "/".join(parts)


def is_ignored(photo_id: str) -> bool:
    """Files that systems leave behind, and dot-files: never photos (nor may they be download's own
    state)."""
    return any(part.startswith(".") or part in IGNORED for part in photo_id.split("/"))


def odd_name(photo_id: str) -> str | None:
    """Why no manifest can hold this name, None if it can."""
    if ODD_CHARACTERS.search(photo_id):
        return "its name holds control characters or bytes that are not UTF-8"
    if max(len(os.fsencode(part)) for part in photo_id.split("/")) > MAX_NAME_BYTES:
        return f"a part of its name is over {MAX_NAME_BYTES} bytes"
    return None


def printable(name: str) -> str:
    """A name with its odd characters written out, for skipped.csv."""
    return ODD_CHARACTERS.sub(lambda found: f"\\u{ord(found[0]):04x}", name)


class Placer:
    """Puts files below `raw_dir`, each atomically, and never over other bytes."""

    def __init__(self, raw_dir: Path) -> None:
        self.raw_dir = raw_dir
        self._incoming = raw_dir / CONTROL / "incoming"
        self._incoming.parent.mkdir(parents=True, exist_ok=True)
        self._folder: Path | None = None

    def target(self, photo_id: str) -> Path:
        """The path of a photo, its folder made; ValueError where a folder on the way leads out (a
        link)."""
        target = self.raw_dir / photo_id
        if target.parent == self._folder:
            return target

        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise ValueError(f"{photo_id}: a file already has the name of its folder") from error
        if not target.parent.resolve().is_relative_to(self.raw_dir.resolve()):
            raise ValueError(
                f"{photo_id}: {target.parent} leads out of {self.raw_dir}; remove that link"
            )

        self._folder = target.parent
        return target

    def place(self, photo_id: str, content: IO[bytes]) -> None:
        """Writes `content` as raw_dir/photo_id; the same bytes there already are left alone."""
        target = self.target(photo_id)
        if os.path.lexists(target):
            self.compare(photo_id, content)
            return

        with self._incoming.open("wb") as incoming:
            while chunk := content.read(CHUNK_BYTES):
                incoming.write(chunk)
        self._incoming.replace(target)

    def compare(self, photo_id: str, content: IO[bytes]) -> None:
        """ValueError unless the file that has this name already holds `content`."""
        target = self.raw_dir / photo_id
        if target.is_symlink() or not target.is_file():
            raise ValueError(
                f"{photo_id}: its place is taken by something that is not a plain file"
            )

        with target.open("rb") as existing:
            while True:
                chunk = content.read(CHUNK_BYTES)
                if existing.read(max(1, len(chunk))) != chunk:
                    raise ValueError(
                        f"{photo_id}: there twice with other bytes; remove one, or {self.raw_dir}"
                    )
                if not chunk:
                    return


def _members(joined: Joined, allowed: int) -> Iterator[Member]:
    """The plain files of an archive in its own order; its first bytes decide on its kind, not its
    name."""
    start = joined.read(6) or b""
    joined.seek(0)
    buffered: Any = io.BufferedReader(joined, CHUNK_BYTES)

    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        yield from _zip_members(buffered)
        return

    for magic, opened in COMPRESSED.items():
        if start.startswith(magic):
            yield from _tar_members(Guarded(opened(buffered), allowed))
            return

    yield from _tar_members(Guarded(buffered, joined.num_bytes + 1))


class Guarded:
    """The bytes of a tar as tarfile reads them: no giant header, no endless stream, no way back.

    `last` is what the last read gave: at a proper end, one block of zeros.
    """

    def __init__(self, stream: Any, allowed: int) -> None:
        self._stream = stream
        self._allowed = allowed
        self.last = b""

    def tell(self) -> int:
        return cast(int, self._stream.tell())

    def seek(self, offset: int) -> int:
        if offset < self.tell() - 1:
            raise ValueError("a member points back into the archive; do not trust it")
        self._hold(offset)
        return cast(int, self._stream.seek(offset))

    def read(self, num_bytes: int) -> bytes:
        if num_bytes > MAX_HEADER_BYTES:
            raise ValueError(f"a header of {num_bytes} bytes; do not trust this archive")

        try:
            self.last = self._stream.read(num_bytes)
        except OSError as error:
            # bz2 raises an OSError without a number for data that is not bz2
            if error.errno is None:
                raise EOFError(str(error)) from error
            raise

        self._hold(self.tell())
        return self.last

    def _hold(self, position: int) -> None:
        if position > self._allowed:
            raise ValueError(
                f"unpacks to over {self._allowed} bytes (limits.max_ratio): a bomb, or cut short"
            )


def _tar_members(stream: Guarded) -> Iterator[Member]:
    with tarfile.open(
        fileobj=cast(Any, stream),
        mode="r:",
        encoding="utf-8",
        errors="surrogateescape",
    ) as tar:
        while (member := tar.next()) is not None:
            if not (member.isreg() or member.isdir()) or member.issparse():
                raise ValueError(
                    f"member {member.name!r} is a link, device, pipe or sparse; "
                    "do not trust this archive"
                )
            if member.isreg():
                yield Member(member.name, member.size, cast(IO[bytes], tar.extractfile(member)))
            # Otherwise tarfile remembers every member: memory must stay flat
            tar.members.clear()  # type: ignore[attr-defined]

        if stream.last != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("no end mark")

    # A compressed stream has its checksum at its very end
    while stream.read(CHUNK_BYTES):
        pass


def _zip_members(stream: IO[bytes]) -> Iterator[Member]:
    with zipfile.ZipFile(stream) as archive:
        for member in archive.infolist():
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise ValueError(
                    f"member {member.filename!r} is a link, device or pipe; "
                    "do not trust this archive"
                )
            if member.flag_bits & 1:
                raise ValueError(
                    f"member {member.filename!r} is encrypted; "
                    "unpack it by hand and give the folder"
                )

            if not member.is_dir():
                with archive.open(member) as content:
                    yield Member(member.orig_filename, member.file_size, content)
