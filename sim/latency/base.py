"""What a latency model is: how long one operation takes in the simulator, under the conditions of a policy.

All times are seconds. `mean_s` and `draw_s` serve the event loop, `mean_array` the sweeps. A new model is one file beside
this one (`sim.latency.constant`, `.fitted`, `.roofline`).
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sim.decoding.policies.base import Policy
from traces.fits.cold_start import ColdStart

Array = NDArray[np.float64]

_ACTOR_OF = {
    "draft": "draft",
    "look": "draft",
    "branch": "draft",
    "verify": "target",
    "predict": "target",
    "prefill": "target",
    "host": "host",
}


class OpShape(NamedTuple):
    """What decides how long an operation takes: as in `traces.schema.Op`, one forward of num_branches rows.

    num_tokens: new tokens a row (verify: pending + 1; host: pending). context_tokens: tokens in the cache before.
    """

    actor: str
    kind: str
    num_tokens: int
    num_branches: int
    context_tokens: int


class Conditions(NamedTuple):
    """What of a policy the times of its operations depend on.

    drafts: the draft runs at all, and uses the caches that the target's weights lie in. reads_signals: its forwards
    include reading their signals. overlaps: two models are at work at once, and slow each other down. predicts: H-RAD
    predicts after every verification, which includes it.
    """

    drafts: bool = False
    reads_signals: bool = False
    overlaps: bool = False
    predicts: bool = False

    @classmethod
    def of(cls, policy: Policy, *, same_device: bool = False) -> Conditions:
        """same_device: the models take turns, so that nothing runs beside anything."""
        needs = policy.needs
        return cls(needs.drafts, needs.signals, policy.overlaps and not same_device, needs.classes)


class LatencyModel(Protocol):
    """Seconds of an operation."""

    @property
    def cold_start(self) -> ColdStart:
        """What the first draft forwards of a round take more than later ones."""
        ...

    def under(self, conditions: Conditions) -> LatencyModel:
        """The same latencies as a policy meets them."""
        ...

    def mean_s(self, op: OpShape) -> float:
        """Mean."""
        ...

    def draw_s(self, op: OpShape, rng: np.random.Generator) -> float:
        """One draw, with this mean."""
        ...

    def mean_array(
        self, kind: str, num_tokens: ArrayLike, num_branches: ArrayLike, context_tokens: ArrayLike, *, actor: str = ""
    ) -> Array:
        """Means of arrays that broadcast. actor: for a prefill, target unless said otherwise."""
        ...


class PlainLatency:
    """The answers of a model that knows neither cold starts nor the cost of signals nor interference."""

    @property
    def cold_start(self) -> ColdStart:
        return ColdStart()

    def under(self, conditions: Conditions) -> Self:
        return self


def actor_of(kind: str) -> str:
    """Who does operations of this kind; of a prefill, the target."""
    if kind not in _ACTOR_OF:
        raise ValueError(f"there is no operation {kind!r}; known are {', '.join(_ACTOR_OF)}.")
    return _ACTOR_OF[kind]
