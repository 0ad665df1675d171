"""Files appear whole, or the old ones stay."""

from __future__ import annotations

from pathlib import Path

import pytest

from visage.atomic import atomic_write


def test_written_whole_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "x.csv"
    for text in ("old", "new"):
        with atomic_write(path) as part:
            assert part.parent == path.parent
            part.write_text(text, encoding="utf-8")
            assert not path.exists() or path.read_text(encoding="utf-8") == "old"
    assert path.read_text(encoding="utf-8") == "new"
    assert list(path.parent.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("existed", [True, False])
def test_written_whole_leaves_the_old_file_on_an_error(
    tmp_path: Path, error: type[BaseException], existed: bool
) -> None:
    path = tmp_path / "x.csv"
    if existed:
        path.write_text("old", encoding="utf-8")

    def fail_midway() -> None:
        with atomic_write(path) as part:
            part.write_text("half", encoding="utf-8")
            raise error

    with pytest.raises(error):
        fail_midway()
    assert [file.read_text(encoding="utf-8") for file in tmp_path.iterdir()] == ["old"] * existed
