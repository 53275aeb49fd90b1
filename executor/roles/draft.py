"""What a draft answers to the decision maker: drafting, looking ahead, branches, rollback."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from executor.noise import NoiseTable
from executor.request import Request
from sim.decoding.policies.base import Needs
from traces.schema import OpShape, Signal


class Forward(NamedTuple):
    """One timed forward of the draft, for the op table. read_s: seconds after end_s that reading signals took."""

    shape: OpShape
    start_s: float
    end_s: float
    read_s: float = 0.0


class Draft(Protocol):
    """The draft's half of the step machine: one method a command of `sim.decoding.machine`."""

    @property
    def num_captures(self) -> int:
        """Graphs captured so far; 0 without graphs."""
        ...

    def make_noise(self, request: Request) -> NoiseTable | None:
        """What `begin` wants of a request's noise, made before the clock starts; None where the draft needs none."""
        ...

    def begin(self, request: Request, needs: Needs, noise: NoiseTable | None) -> None:
        """Start a request. The prompt but its last token is cached by `prefill`. noise: as `make_noise` gave it."""
        ...

    def prefill(self) -> None:
        """Cache the prompt but its last token."""
        ...

    @property
    def pending(self) -> Sequence[int]:
        """The pending token ids; their number is known at once."""
        ...

    def alternatives(self, num_accepted: int) -> list[int]:
        """The draft's best tokens, best first, at a pending position or right after them; empty when unknown."""
        ...

    def take_forwards(self) -> list[Forward]:
        """The forwards since the last call."""
        ...

    def draft(self, num_tokens: int) -> list[Signal]:
        """Draft tokens one after another; the first needs no forward when its law is known already."""
        ...

    def submit(self, num_pending: int) -> None:
        """Withdraw the drafted tokens after the first `num_pending`; the law of the first withdrawn one is kept."""
        ...

    def look(self) -> Signal:
        """The law right after the pending tokens."""
        ...

    def branch(
        self,
        fanout: Sequence[int],
        num_steps: int,
        num_further: int = 0,
        has_verdict: Callable[[], bool] = lambda: True,
    ) -> int:
        """Draft ahead for every hedged outcome, all rows in one batch: num_steps, and up to num_further more as long as
        has_verdict says no. Returns the steps done."""
        ...

    def settle(self, num_accepted: int, next_token: int) -> tuple[int, bool, tuple[Signal, ...]]:
        """Commit an outcome. Returns the next token's rank if it is known (else -1), whether a hedge covered it, and the
        signals of that hedge's continuation; `keep` must follow a hit, unless the request is over."""
        ...

    def keep(self, num_kept: int) -> None:
        """After a hit: the first tokens of the continuation become pending, the rest is trimmed."""
        ...

    def synchronize(self) -> None:
        """Wait for everything that is under way on the draft's device."""
        ...

    def close(self) -> None:
        """Give back what the draft holds."""
        ...
