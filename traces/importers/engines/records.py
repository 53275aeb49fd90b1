"""What a reader of an engine's file gives: benchmarks, acceptance, the memory, and what the file cannot say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from pydantic import TypeAdapter

from traces.files import write_text
from traces.fits.step_costs import AcceptanceByPosition

MAX_DRAFT_LENGTH = 1024  # tokens; no engine drafts as many
THE_MEMORY = "the memory"  # begins the sentence on a size that nobody said
MAX_MISMATCH = 0.03  # of a mean length against the sum of its rates, which are rounded


@dataclass(frozen=True, kw_only=True)
class AcceptanceRecord:
    """Acceptance as an engine counts it.

    source: where it was read. draft_length: K; None: unknown. mean_acceptance_length: tokens a step with a draft, the target's
    own included. marginal: (K,) share of all drafts accepted at least so far; () where only the mean is known.
    num_drafts: counted; None: unknown.
    Raises ValueError for what cannot be: rates that rise with the position, or that contradict the mean.
    """

    source: str
    draft_length: int | None
    mean_acceptance_length: float
    marginal: tuple[float, ...] = ()
    num_drafts: float | None = None

    def __post_init__(self) -> None:
        mean, length = self.mean_acceptance_length, self.draft_length
        if length is not None and not 1 <= length <= MAX_DRAFT_LENGTH:
            raise ValueError(f"{self.source}: K must lie between 1 and {MAX_DRAFT_LENGTH}, but got {length}.")
        if not 1 <= mean <= (1e6 if length is None else length + 1 + MAX_MISMATCH):
            raise ValueError(f"{self.source}: a mean acceptance length of {mean:g} cannot be with K = {length}.")
        if not self.marginal:
            return
        if len(self.marginal) != length:
            raise ValueError(f"{self.source}: {len(self.marginal)} rates by position for K = {length}.")
        if any(not 0 <= rate <= before + 0.01 for before, rate in pairwise([1.0, *self.marginal])):
            raise ValueError(
                f"{self.source}: rates by position must lie in [0, 1] and never rise, but are {self.marginal}; are they "
                "percent, or given that the ones before were accepted?"
            )
        if abs(1 + sum(self.marginal) - mean) > MAX_MISMATCH * mean:
            raise ValueError(
                f"{self.source}: rates by position add up to a mean length of {1 + sum(self.marginal):.3g}, not {mean:.3g}; "
                "are they given that the ones before were accepted?"
            )

    def acceptance(self) -> AcceptanceByPosition:
        """By position; from a mean alone, the one chance at every position that gives it. Raises ValueError without K."""
        if self.marginal:
            falling, before = [], 1.0
            for rate in self.marginal:  # rounding may let them rise a little
                before = min(before, rate)
                falling.append(before)
            return AcceptanceByPosition.from_marginal(falling)
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            if sum(middle**power for power in range(self._known_length() + 1)) < self.mean_acceptance_length:
                low = middle
            else:
                high = middle
        return AcceptanceByPosition((low,))

    def bounds(self) -> tuple[AcceptanceByPosition, AcceptanceByPosition]:
        """The worst and the best that shorter drafts may do, by what is known.

        A mean of L at K leaves open where acceptance is lost. Tokens of a shorter draft k lie between 1 + k (L - 1) / K, with
        all positions alike, and 1 + min(k, L - 1), with the first ones always accepted. Known rates bound nothing further.
        """
        if self.marginal:
            return self.acceptance(), self.acceptance()
        length, accepted = self._known_length(), min(self.mean_acceptance_length - 1, self._known_length())
        flat = [accepted / length] * length
        steep = [min(max(accepted - position, 0.0), 1.0) for position in range(length)]
        return AcceptanceByPosition.from_marginal(flat), AcceptanceByPosition.from_marginal(steep)

    def _known_length(self) -> int:
        if self.draft_length is None:
            raise ValueError(
                f"{self.source} says a mean acceptance length, but not at which K; give it with --draft-length."
            )
        return self.draft_length

    def write(self, path: Path) -> None:
        """As JSON."""
        write_text(path, _RECORD.dump_json(self, indent=2).decode() + "\n")


_RECORD = TypeAdapter(AcceptanceRecord)


def read_acceptance(path: Path) -> AcceptanceRecord:
    """What `AcceptanceRecord.write` wrote. Raises ValueError where the file holds something else or cannot be read."""
    try:
        return _RECORD.validate_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} does not hold an acceptance of `specbranch import`: {str(error).splitlines()[0]}"
        ) from None


@dataclass(frozen=True, kw_only=True)
class EngineFile:
    """A file, read.

    format: its name, for people. rows: benchmarks as cells of the table of `traces.importers.server_bench`. acceptance: by
    source. kv_tokens: that the memory holds, as an engine's log says. understood, unknown: sentences for people.
    """

    path: Path
    format: str
    rows: tuple[Mapping[str, str], ...] = ()
    acceptance: tuple[AcceptanceRecord, ...] = ()
    kv_tokens: int | None = None
    understood: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Served:
    """What a file may leave out, from whoever ran the server: K, the draft's name, vLLM's word for its method, the dataset."""

    draft_length: int | None = None
    draft: str = "draft"
    method: str = "draft_model"
    dataset: str = ""


def cells_of(**values: object) -> dict[str, str]:
    """Cells of a row; what is None stays out. Lists are joined by ';', as the table has rates by position."""
    return {
        name: ";".join(map(repr, value)) if isinstance(value, list | tuple) else str(value)
        for name, value in values.items()
        if value is not None
    }


def pooled(records: Sequence[AcceptanceRecord]) -> AcceptanceRecord | None:
    """One record of several: of those with rates by position the longest K, weighted by their drafts; else the first mean."""
    by_position = [record for record in records if record.marginal]
    if not by_position:
        return records[0] if records else None
    longest = max(len(record.marginal) for record in by_position)
    own = [record for record in by_position if len(record.marginal) == longest]
    known = all(record.num_drafts for record in own)
    weights = [record.num_drafts or 1.0 if known else 1.0 for record in own]
    total = sum(weights)
    marginal = tuple(
        sum(weight * record.marginal[position] for weight, record in zip(weights, own, strict=True)) / total
        for position in range(longest)
    )
    return AcceptanceRecord(
        source=own[0].source if len(own) == 1 else f"{len(own)} sources, the first {own[0].source}",
        draft_length=longest,
        mean_acceptance_length=1 + sum(marginal),
        marginal=marginal,
        num_drafts=total if known else None,
    )
