"""Web addresses: fetched once, continued after a kill, fetched again when the remote file has
changed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from stages.ingest import fetch
from tests.stages.photo_sets import LIMITS, House, Killed, settings, tar, three_people


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path / "data")


class Web(BaseHTTPRequestHandler):
    """A small web server: it honours ranges or not, and may break off after so many bytes of a
    response."""

    content: ClassVar[bytes] = b""
    tag: ClassVar[str] = "one"
    ranges: ClassVar[bool] = True
    break_after: ClassVar[int | None] = None
    requests: ClassVar[list[tuple[str, str | None]]] = []

    def do_HEAD(self) -> None:
        self._head(200, 0, len(self.content))

    def do_GET(self) -> None:
        wanted = self.headers["Range"]
        Web.requests.append((self.path, wanted))
        first, last = 0, len(self.content) - 1
        if self.ranges and wanted:
            start, end = wanted.removeprefix("bytes=").split("-")
            first, last = int(start), min(last, int(end) if end else last)
        self._head(206 if self.ranges and wanted else 200, first, last + 1 - first)
        body = self.content[first : last + 1]
        if self.break_after is not None and len(body) > self.break_after:
            body = body[: self.break_after]
            self.close_connection = True
        self.wfile.write(body)

    def _head(self, status: int, first: int, length: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.send_header("ETag", self.tag)
        if self.ranges:
            self.send_header("Accept-Ranges", "bytes")
        if status == 206:
            self.send_header(
                "Content-Range", f"bytes {first}-{first + length - 1}/{len(self.content)}"
            )
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(fetch, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(fetch, "CHUNK_BYTES", 4096)
    Web.content = tar(tmp_path / "web" / "set.tar", three_people()).read_bytes()
    Web.tag = "one"
    Web.ranges = True
    Web.break_after = None
    Web.requests = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Web) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/set.tar"
        server.shutdown()
        thread.join()


def parts_left(house: House) -> list[Path]:
    return sorted(path for path in (house.work / "fetched").rglob("*") if path.suffix == ".part")


@pytest.mark.parametrize("ranges", [True, False])
def test_a_web_address_is_fetched_once(ranges: bool, web: str, house: House) -> None:
    Web.ranges = ranges
    rows = house.run(settings(f"{web}?download=1"))
    assert len(rows) == 16
    assert not parts_left(house)
    num_requests = len(Web.requests)
    house.run(settings(f"{web}?download=1"))
    assert len(Web.requests) == num_requests


def test_a_fetch_goes_on_where_it_was_killed(
    web: str, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = len(Web.content) // 2
    update = fetch.tqdm.update

    def killing(bar: Any, count: int) -> None:
        update(bar, count)
        if bar.n > half:
            raise Killed

    with monkeypatch.context() as until_killed:
        until_killed.setattr(fetch.tqdm, "update", killing)
        with pytest.raises(Killed):
            house.run(settings(web))
    (part,) = parts_left(house)
    have = part.stat().st_size
    assert half < have < len(Web.content)
    Web.requests.clear()
    assert len(house.run(settings(web))) == 16
    assert [wanted.split("-")[0] for _, wanted in Web.requests if wanted] == [f"bytes={have}"]


def test_a_part_of_another_version_is_thrown_away(web: str, house: House) -> None:
    house.run(settings(web))
    (fetched,) = (path for path in (house.work / "fetched").rglob("set.tar"))
    fetched.rename(fetched.with_name("set.tar.part"))
    fetched.with_name("set.tar.part").write_bytes(b"old" * 1000)
    Web.tag = "two"
    assert len(house.run(settings(web))) == 16
    assert fetched.read_bytes() == Web.content


def test_a_server_that_keeps_breaking_off_is_reported(web: str, house: House) -> None:
    Web.break_after = 100
    with pytest.raises(ConnectionError, match=r"broke off 5 times .*run again"):
        house.run(settings(web))


def test_a_remote_bomb_is_stopped(web: str, house: House) -> None:
    limits = {**LIMITS, "max_total_bytes": 9000}
    with pytest.raises(ValueError, match="max_total_bytes 9000"):
        house.run(settings(web, limits=limits))
