"""Files that are written whole or not at all: under a temporary name, renamed when all of it is there.

A full disk, a folder that nobody may write to or the end of the process leave either the file of before or none, and never
half of one that a reader would take for the whole.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

UNFINISHED = ".tmp"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """The place to write to, which takes the name `path` when the block ends well and vanishes when it does not.

    Folders around it are made. Raises OSError in one line that names the file where it cannot be written.
    """
    temporary = path.with_name(path.name + UNFINISHED)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        # The error of safetensors is known by name, so that nothing is imported for it.
        if isinstance(error, OSError) or type(error).__name__ == "SafetensorError":
            raise OSError(f"cannot write {path}: {reason_of(error)}; {remedy_of(error)}.") from error
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all; see `whole_file`."""
    with whole_file(path) as place:
        place.write_text(text, encoding="utf-8")


def write_frame(path: Path, frame: pd.DataFrame) -> None:
    """Write a table as Parquet, whole or not at all; see `whole_file`."""
    with whole_file(path) as place:
        frame.to_parquet(place)


def reason_of(error: BaseException) -> str:
    """An error in one line; of the system's errors the system's own words."""
    if isinstance(error, OSError) and error.errno:  # pyarrow's have a number, and many words of their own
        return os.strerror(error.errno)
    return " ".join(str(error).split())[:300].rstrip(".")


def remedy_of(error: BaseException) -> str:
    """What to do about a file that cannot be written, or read."""
    is_full = getattr(error, "errno", None) in _FULL or "No space left" in str(error)
    return "free some space or name another place" if is_full else "name another place"
