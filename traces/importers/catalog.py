"""The formats that can be read, and which of them a file is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from traces.importers.base import ForeignTraceError, ImportedTraces, Reader, numbered_lines
from traces.importers.unseen import Unseen
from traces.importers.vllm_responses import VllmResponses

READERS: tuple[Reader, ...] = (VllmResponses(),)


def read_foreign(
    path: str | Path, *, temperature: float | None = None, unseen: Unseen = Unseen.REJECTED
) -> ImportedTraces:
    """A foreign trace in any known format, recognised by its first line.

    temperature: of the requests that do not name theirs. unseen: see `Unseen`. Raises ForeignTraceError where the file
    cannot be read, is empty, or is of no known format.
    """
    path = Path(path)
    _, first_line = next(numbered_lines(path), ("", b""))
    if not first_line:
        raise ForeignTraceError(f"{path} is empty; give a file with one request a line.")
    for reader in READERS:
        if reader.recognises(first_line):
            return replace(reader.read(path, temperature=temperature), unseen=unseen)
    known = "; ".join(reader.format for reader in READERS)
    raise ForeignTraceError(f"{path} is neither a run folder nor a trace in a known format; these are: {known}.")
