"""A file is the one of before or the whole new one, whatever happens while it is written."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from traces.files import whole_file, write_text


class SafetensorError(Exception):
    """As the library of that name raises it: an error of its own, with the system's words inside."""


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "x"), r"cannot write .*report: No space left on device; free some space or name"),
        (OSError(errno.EROFS, "x"), r"cannot write .*report: Read-only file system; name another place\."),
        (SafetensorError("I/O error: No space left on device (os error 28)"), r"cannot write .*No space.*free some"),
    ],
    ids=["full", "read-only", "safetensors"],
)
def test_what_cannot_be_written_is_a_line_and_leaves_the_file_of_before(
    error: Exception, told: str, tmp_path: Path
) -> None:
    path = tmp_path / "report"
    write_text(path, "before")
    with pytest.raises(OSError, match=told):
        _fail_with(error, path)
    assert [each.name for each in tmp_path.iterdir()] == ["report"]
    assert path.read_text() == "before"


def test_an_interruption_leaves_nothing_and_is_not_renamed(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        _fail_with(KeyboardInterrupt(), tmp_path / "new" / "report")
    assert list((tmp_path / "new").iterdir()) == []


def test_folders_are_made_and_the_name_is_taken_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    with whole_file(path) as place:
        place.write_text("all")
        assert not path.exists()
    assert path.read_text() == "all"


def _fail_with(error: BaseException, path: Path) -> None:
    with whole_file(path) as place:
        place.write_text("half of")
        raise error
