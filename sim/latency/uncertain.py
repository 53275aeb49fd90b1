"""How sure a latency model is of its own numbers: one that can say so answers `moved`, and a study's sensitivity asks."""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

from sim.latency.base import LatencyModel


class Moved(NamedTuple):
    """The same model with one number elsewhere. group, term: which one; value: what the model holds it to be; moved_to: an
    end of its 95% interval, in the same unit; latency: the model with that."""

    group: str
    term: str
    value: float
    moved_to: float
    latency: LatencyModel


@runtime_checkable
class Uncertain(Protocol):
    """A latency model that knows how wrong its numbers may be."""

    def moved(self) -> list[Moved]:
        """The model with each of its numbers at each end of its interval."""
        ...
