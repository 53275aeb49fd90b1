"""What a latency model is: how long one operation takes in the simulator, under the conditions of a policy.

All times are seconds. `mean_s` and `draw_s` serve the event loop, `mean_array` the sweeps. A new model is one file beside
this one (`sim.latency.constant`, `.fitted`, `.roofline`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sim.decoding.policies.base import Policy
from traces.fits.cold_start import ColdStart
from traces.fits.interference import Interference
from traces.schema import Actor, OpKind, OpShape

Array = NDArray[np.float64]

_ACTOR_OF = {
    OpKind.DRAFT: Actor.DRAFT,
    OpKind.LOOK: Actor.DRAFT,
    OpKind.BRANCH: Actor.DRAFT,
    OpKind.VERIFY: Actor.TARGET,
    OpKind.PREDICT: Actor.TARGET,
    OpKind.PREFILL: Actor.TARGET,
    OpKind.HOST: Actor.HOST,
}
AHEAD = (OpKind.LOOK, OpKind.BRANCH)  # the draft's forwards during a verification
# What some policies do besides a forward, at once: its law's signals are read, H-RAD predicts. Of the branches only the
# hit one's laws are read, when the round settles: the host's time.
FURTHER = {OpKind.DRAFT: OpKind.READ, OpKind.LOOK: OpKind.READ, OpKind.VERIFY: OpKind.PREDICT}


class Conditions(NamedTuple):
    """What of a policy the times of its operations depend on.

    drafts: the draft runs at all, and uses the caches that the target's weights lie in. reads_signals: its forwards
    include reading their signals. predicts: H-RAD predicts after every verification, which includes it.
    """

    drafts: bool = False
    reads_signals: bool = False
    predicts: bool = False

    @classmethod
    def of(cls, policy: Policy) -> Conditions:
        """What a policy asks for."""
        needs = policy.needs
        return cls(needs.drafts, needs.signals, needs.classes)


class LatencyModel(Protocol):
    """Seconds of an operation, were its model the only one at work.

    Its repr names everything that its answers depend on (a frozen dataclass's does): an exploration that was cut short goes
    on only with the same one.
    """

    @property
    def cold_start(self) -> ColdStart:
        """What the first draft forwards of a round take more than later ones."""
        ...

    @property
    def interference(self) -> Interference:
        """How the two models slow each other down where each has a device of its own."""
        ...

    def under(self, conditions: Conditions) -> LatencyModel:
        """The same latencies as a policy meets them."""
        ...

    def mean_s(self, op: OpShape) -> float:
        """Mean."""
        ...

    def further_s(self, op: OpShape) -> float:
        """Of it and of every draw, what `FURTHER` takes under these conditions."""
        ...

    def draw_s(self, op: OpShape, rng: np.random.Generator) -> float:
        """One draw, with this mean."""
        ...

    def mean_array(
        self,
        kind: OpKind,
        num_tokens: ArrayLike,
        num_branches: ArrayLike,
        context_tokens: ArrayLike,
        *,
        actor: Actor | None = None,
    ) -> Array:
        """Means of arrays that broadcast. actor: the target of a prefill unless it is given."""
        ...


class PlainLatency:
    """The answers of a model that knows neither cold starts nor the cost of signals nor interference."""

    @property
    def cold_start(self) -> ColdStart:
        return ColdStart()

    @property
    def interference(self) -> Interference:
        return Interference()

    def under(self, conditions: Conditions) -> Self:
        return self

    def further_s(self, op: OpShape) -> float:
        return 0.0


@dataclass(frozen=True)
class LatencyOver:
    """A latency model that changes another one, base: what it does not change is as there."""

    base: LatencyModel

    @property
    def cold_start(self) -> ColdStart:
        return self.base.cold_start

    @property
    def interference(self) -> Interference:
        return self.base.interference

    def under(self, conditions: Conditions) -> Self:
        return replace(self, base=self.base.under(conditions))

    def further_s(self, op: OpShape) -> float:
        return self.base.further_s(op)


def actor_of(kind: OpKind) -> Actor:
    """Who does operations of this kind; of a prefill, the target."""
    if kind not in _ACTOR_OF:
        raise ValueError(f"there is no operation {str(kind)!r}; known are {', '.join(_ACTOR_OF)}.")
    return _ACTOR_OF[kind]
