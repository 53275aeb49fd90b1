"""Where the two models run: on two devices with a link between them, or on one device that they share.

A placement changes times only: under shared noise no outcome depends on it. The verification and what the draft does
meanwhile slow each other down while both run (`traces.fits.interference`): on a shared device by the factor f that the
placement gives, so that v seconds of verification beside a seconds of drafting take max(v, a) + (f - 1) min(v, a), which
for f = 2 is as bad as taking turns and for more is worse; on two devices as a calibration has measured, or not at all.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sim.latency.base import LatencyModel, LatencyOver, actor_of
from traces.fits.cold_start import ColdStart
from traces.fits.interference import Interference
from traces.schema import Actor, OpKind, OpShape

Floats = NDArray[np.float64]
BYTES_PER_TOKEN = 4  # an id; under shared noise no row of the vocabulary crosses the link


class PlacementKind(enum.StrEnum):
    """How many devices there are."""

    TWO_DEVICES = "two_devices"
    SHARED_DEVICE = "shared_device"


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Devices and the link between them.

    interference: slow-down of both models while both run on a shared device; measured, or 2 for taking turns.
    link_latency_s: one way; a round crosses twice. link_bytes_per_s: token ids only cross, so that it hardly matters.
    """

    kind: PlacementKind = PlacementKind.TWO_DEVICES
    interference: float = 2.0
    link_latency_s: float = 0.0
    link_bytes_per_s: float = float("inf")

    def __post_init__(self) -> None:
        if not 1 <= self.interference < float("inf"):
            raise ValueError(
                f"interference must be at least 1 and finite, but got {self.interference}; 1 is none, 2 taking turns."
            )
        if not 0 <= self.link_latency_s < float("inf"):
            raise ValueError(f"link_latency_s must be at least 0 seconds, but got {self.link_latency_s}.")
        if not self.link_bytes_per_s > 0:
            raise ValueError(f"link_bytes_per_s must be positive, but got {self.link_bytes_per_s}.")
        if self.kind is PlacementKind.SHARED_DEVICE and self.link_latency_s:
            raise ValueError("a shared_device has no link; leave link_latency_s out or use two_devices.")

    @property
    def label(self) -> str:
        """For tables: two_devices, two_devices:link_latency_s=0.001, shared_device:interference=1.3."""
        if self.kind is PlacementKind.SHARED_DEVICE:
            return f"{self.kind}:interference={self.interference:g}"
        return f"{self.kind}:link_latency_s={self.link_latency_s:g}" if self.link_latency_s else str(self.kind)

    @property
    def shared(self) -> Interference | None:
        """How the models slow each other down on the device that they share; None where each has its own."""
        return Interference.of(self.interference) if self.kind is PlacementKind.SHARED_DEVICE else None


@dataclass(frozen=True)
class AdjustedLatency(LatencyOver):
    """Another latency model with the draft's forwards scaled and the link's way there and back added to verifications.

    draft_factor: on every forward of the draft: its prefill, its cold starts and the reading of its signals included.
    link: the placement whose link is crossed, None for a method that does not draft.
    """

    draft_factor: float = 1.0
    link: Placement | None = None

    @property
    def cold_start(self) -> ColdStart:
        cold_start = self.base.cold_start
        return replace(cold_start, first_s=cold_start.first_s * self.draft_factor)

    def further_s(self, op: OpShape) -> float:
        return self.base.further_s(op) * self._factor(op.actor, op.kind)

    def mean_s(self, op: OpShape) -> float:
        return self.base.mean_s(op) * self._factor(op.actor, op.kind) + float(self._crossing_s(op.kind, op.num_tokens))

    def draw_s(self, op: OpShape, rng: np.random.Generator) -> float:
        return self.base.draw_s(op, rng) * self._factor(op.actor, op.kind) + float(
            self._crossing_s(op.kind, op.num_tokens)
        )

    def mean_array(
        self,
        kind: OpKind,
        num_tokens: ArrayLike,
        num_branches: ArrayLike,
        context_tokens: ArrayLike,
        *,
        actor: Actor | None = None,
    ) -> Floats:
        means = self.base.mean_array(kind, num_tokens, num_branches, context_tokens, actor=actor)
        seconds: Floats = means * self._factor(actor, kind) + self._crossing_s(kind, num_tokens)
        return seconds

    def _factor(self, actor: Actor | None, kind: OpKind) -> float:
        return self.draft_factor if (actor or actor_of(kind)) == Actor.DRAFT else 1.0

    def _crossing_s(self, kind: OpKind, num_tokens: ArrayLike) -> Floats:
        """There with the pending tokens, back with the count accepted and the target's token."""
        if self.link is None or kind != OpKind.VERIFY:
            return np.zeros(np.shape(num_tokens))
        num_bytes = BYTES_PER_TOKEN * (np.asarray(num_tokens, float) + 1)
        crossing: Floats = 2 * self.link.link_latency_s + num_bytes / self.link.link_bytes_per_s
        return crossing


def cost_ratio_of(latency: LatencyModel, context_tokens: int) -> float:
    """c = target forward over one token / draft forward over one token, at a context length."""
    target = latency.mean_s(OpShape(Actor.TARGET, OpKind.VERIFY, 1, 1, context_tokens))
    draft = latency.mean_s(OpShape(Actor.DRAFT, OpKind.DRAFT, 1, 1, context_tokens))
    if not draft > 0:
        raise ValueError("a draft forward takes no time in this calibration, so that it has no cost ratio.")
    return target / draft


def adjusted(
    latency: LatencyModel, placement: Placement, *, cost_ratio: float | None, context_tokens: int, drafts: bool
) -> LatencyModel:
    """The latency of a scenario: the draft scaled to a cost ratio (None: as it is), the link added for methods that
    draft.
    """
    factor = 1.0 if cost_ratio is None else cost_ratio_of(latency, context_tokens) / cost_ratio
    has_link = drafts and placement.kind is PlacementKind.TWO_DEVICES and placement.link_latency_s > 0
    if factor == 1.0 and not has_link:
        return latency
    return AdjustedLatency(latency, factor, placement if has_link else None)
