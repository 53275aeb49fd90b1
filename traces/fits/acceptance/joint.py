"""The joint law of rank and signal, resampled from recorded traces: an empirical acceptance model.

A position's (rank, signal) is drawn from the recorded positions with the same past: the same third of requests (by the
request's own share of accepted positions) and the same previous outcome. So the law of a position, the pull of the last
outcome and the spread between requests survive. What does not: longer memory, and drift along a request.
Sorting requests by their own short record exaggerates the spread a little; it does so less the longer they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from pydantic import TypeAdapter, ValidationError

from traces.files import write_text
from traces.mistakes import first_mistake
from traces.schema import SCHEMA_VERSION, RequestTrace, Signal

NUM_LEVELS = 3
MAX_SAMPLES = 4000  # of a cell; more are thinned evenly
DIGITS = 6  # significant digits kept of a signal

ItemT = TypeVar("ItemT")


@dataclass(frozen=True, kw_only=True)
class Positions:
    """Recorded positions with the same past: entry i of each column belongs together."""

    ranks: tuple[int, ...]
    signals: tuple[Signal, ...]


@dataclass(frozen=True, kw_only=True)
class Level:
    """One third of the requests. after: positions after a rejected token (index 0) and after an accepted one (1).

    The first position of a request counts as after an accepted one. share: of the requests.
    """

    share: float
    acceptance: float
    after: tuple[Positions, Positions]


@dataclass(frozen=True, kw_only=True)
class TemperatureLaw:
    """Everything recorded at one temperature.

    wrong_tails: what the draft went on to propose after its own wrong token; end_tails: after the last committed token.
    """

    temperature: float
    num_requests: int
    num_positions: int
    levels: tuple[Level, ...]
    tail_depth: int
    wrong_tails: tuple[tuple[Signal, ...], ...]
    end_tails: tuple[tuple[Signal, ...], ...]


@dataclass(frozen=True, kw_only=True)
class JointAcceptance:
    """The laws of all recorded temperatures; sampled by `sim.decoding.acceptance_models.JointEmpirical`."""

    laws: tuple[TemperatureLaw, ...]
    schema_version: int = SCHEMA_VERSION

    def law_at(self, temperature: float) -> TemperatureLaw:
        """The law of one temperature. Raises ValueError where none was recorded."""
        for law in self.laws:
            if law.temperature == temperature:
                return law
        raise ValueError(
            f"no request was recorded at temperature {temperature}, only at {[law.temperature for law in self.laws]}."
        )

    def save(self, path: str | Path) -> None:
        """Write as JSON."""
        write_text(Path(path), TypeAdapter(JointAcceptance).dump_json(self).decode() + "\n")

    @classmethod
    def load(cls, path: str | Path) -> JointAcceptance:
        """Read what `save` wrote. Raises ValueError for anything else."""
        try:
            loaded = TypeAdapter(JointAcceptance).validate_json(Path(path).read_bytes())
        except (OSError, ValidationError) as error:
            reason = first_mistake(error) if isinstance(error, ValidationError) else error.strerror
            raise ValueError(
                f"{path} is not an acceptance model: {reason}; write one with JointAcceptance.save."
            ) from error
        if not 2 <= loaded.schema_version <= SCHEMA_VERSION:
            raise ValueError(f"{path} has schema version {loaded.schema_version}, this code reads {SCHEMA_VERSION}.")
        return loaded


def fit_acceptance(traces: Iterable[RequestTrace]) -> JointAcceptance:
    """The joint law of recorded traces. All tails of one temperature are cut to the shortest depth recorded there.

    Raises ValueError without traces, or where one has no signals.
    """
    by_temperature: dict[float, list[RequestTrace]] = {}
    for trace in traces:
        if not trace.signals:
            raise ValueError(f"the trace of request {trace.request_id} holds no signals; record it with alignment on.")
        by_temperature.setdefault(trace.temperature, []).append(trace)
    if not by_temperature:
        raise ValueError("an acceptance model needs at least one recorded trace, but got none.")
    return JointAcceptance(laws=tuple(_law(traces) for _, traces in sorted(by_temperature.items())))


def _law(traces: Sequence[RequestTrace]) -> TemperatureLaw:
    rates = [float(np.mean(np.asarray(trace.ranks) == 0)) for trace in traces]
    order = np.argsort(rates, kind="stable")
    thirds = np.array_split(order, min(NUM_LEVELS, len(traces)))
    depth = min(trace.tail_depth for trace in traces)
    wrong: list[tuple[Signal, ...]] = []
    end: list[tuple[Signal, ...]] = []
    for trace in traces:
        for position, tail in trace.tails.items():
            if depth and len(tail) >= depth:
                (end if position == trace.num_tokens else wrong).append(tail[:depth])
    return TemperatureLaw(
        temperature=traces[0].temperature,
        num_requests=len(traces),
        num_positions=sum(trace.num_tokens for trace in traces),
        levels=tuple(_level([traces[i] for i in third], len(traces)) for third in thirds),
        tail_depth=depth,
        wrong_tails=tuple(_rounded(tail) for tail in _thinned(wrong)),
        end_tails=tuple(_rounded(tail) for tail in _thinned(end)),
    )


def _level(traces: Sequence[RequestTrace], num_requests: int) -> Level:
    cells: tuple[list[tuple[int, Signal]], list[tuple[int, Signal]]] = ([], [])
    num_accepted = 0
    for trace in traces:
        was_accepted = True
        for rank, signal in zip(trace.ranks, trace.signals, strict=True):
            cells[was_accepted].append((rank, signal))
            was_accepted = rank == 0
            num_accepted += was_accepted
    num_positions = len(cells[0]) + len(cells[1])
    # Rejected but once, at the very end: no successor was seen, so what follows an accepted token stands in.
    return Level(
        share=len(traces) / num_requests,
        acceptance=num_accepted / num_positions,
        after=(_positions(cells[0] or cells[1]), _positions(cells[1])),
    )


def _positions(cell: Sequence[tuple[int, Signal]]) -> Positions:
    kept = _thinned(cell)
    return Positions(ranks=tuple(rank for rank, _ in kept), signals=_rounded([signal for _, signal in kept]))


def _thinned(items: Sequence[ItemT]) -> Sequence[ItemT]:
    """At most MAX_SAMPLES of them, evenly spaced."""
    if len(items) <= MAX_SAMPLES:
        return items
    return [items[i] for i in np.linspace(0, len(items) - 1, MAX_SAMPLES).round().astype(int)]


def _rounded(signals: Sequence[Signal]) -> tuple[Signal, ...]:
    return tuple(Signal(*(float(f"{value:.{DIGITS}g}") for value in signal)) for signal in signals)
