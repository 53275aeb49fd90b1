"""What a reader of a foreign trace gives: requests with what is known of them, and traces to explore and validate.

A foreign trace says less than a recorded run. What it does not say is None here and is never invented: no seeds, no noise
keys, no times, no signals. Adding a format is one file with a `Reader`, and one line in `traces.importers.catalog`.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from traces.importers.unseen import Unseen
from traces.schema import FinishReason, RequestTrace

if TYPE_CHECKING:
    from pydantic import TypeAdapter

_Row = TypeVar("_Row")


class ForeignTraceError(ValueError):
    """A foreign trace that cannot be read; the message is one line with the file, the line and what to do."""


@dataclass(frozen=True, kw_only=True)
class ForeignRequest:
    """One request as a foreign trace knows it; None is unknown.

    ranks: (N,) of each output token in the draft's order, for the positions that a draft could have proposed; None where
    nobody asked the draft. num_context_tokens: tokens before the first of these.
    """

    prompt_id: str
    num_context_tokens: int
    ranks: tuple[int | None, ...]
    temperature: float | None = None
    max_new_tokens: int | None = None
    finish_reason: FinishReason | None = None


@dataclass(frozen=True, kw_only=True)
class ImportedTraces:
    """A foreign trace, read.

    source, format: where it came from and what it is. known_ranks: as in `RequestTrace`. limits: sentences on what this
    trace cannot answer, for people. unseen: what `traces` takes for positions that nobody asked the draft about.
    """

    source: Path
    format: str
    requests: tuple[ForeignRequest, ...]
    known_ranks: int | None
    limits: tuple[str, ...] = ()
    unseen: Unseen = Unseen.REJECTED
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def unseen_share(self) -> float:
        """Share of the positions at which nobody asked the draft."""
        ranks = [rank for request in self.requests for rank in request.ranks]
        return ranks.count(None) / len(ranks)

    def traces(self) -> list[RequestTrace]:
        """The requests as traces without signals, tails or classes; policies that need more than they hold are refused.

        An unknown limit of tokens is taken to be the number that came. Raises ForeignTraceError where the temperature of a
        request is unknown.
        """
        assumed = 0 if self.unseen is Unseen.ACCEPTED else 1
        traces = []
        for request_id, request in enumerate(self.requests):
            if request.temperature is None:
                raise ForeignTraceError(f"{self.source} does not say at which temperature it ran; give exactly one.")
            traces.append(
                RequestTrace(
                    request_id=request_id,
                    prompt_id=request.prompt_id,
                    num_prompt_tokens=request.num_context_tokens,
                    max_new_tokens=request.max_new_tokens or len(request.ranks),
                    temperature=request.temperature,
                    finish_reason=request.finish_reason or FinishReason.UNFINISHED,
                    ranks=tuple(assumed if rank is None else rank for rank in request.ranks),
                    known_ranks=self.known_ranks,
                )
            )
        return traces


class Reader(Protocol):
    """Reads one format."""

    @property
    def format(self) -> str:
        """Its name, for people."""
        ...

    def recognises(self, first_line: bytes) -> bool:
        """Whether a file that begins with this line is probably of this format."""
        ...

    def read(self, path: Path, *, temperature: float | None) -> ImportedTraces:
        """The file's requests. temperature: of those that do not name theirs. Raises ForeignTraceError."""
        ...


def numbered_lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """("FILE, line N", line) of every line that is not blank, without a byte order mark; .gz files are unpacked.

    Raises ForeignTraceError where the file cannot be read.
    """
    for number, line in raw_lines(path):
        if line:
            yield f"{path}, line {number}", line


def raw_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(number from 1, line) of every line, blank ones too, stripped and without a byte order mark; .gz files are unpacked.

    Raises ForeignTraceError where the file cannot be read.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                yield number, line.removeprefix(b"\xef\xbb\xbf").strip()
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ForeignTraceError(f"cannot read {path}: {reason}; check the path, or copy the file again.") from error


def parsed_line(adapter: TypeAdapter[_Row], where: str, line: bytes, *, expected: str, strict: bool = False) -> _Row:
    """One line of JSON as a record. expected: what each line must be, for the error.

    strict: refuse text where a number belongs. Raises ForeignTraceError, which names the place and the first field at fault.
    """
    from pydantic import ValidationError

    try:
        return adapter.validate_json(line, strict=strict)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        problem = f"{place}: {first['msg']}, but got {first['input']!r:.60}" if place else first["msg"]
        raise ForeignTraceError(f"{where}: {problem}; each line must be {expected}.") from None
