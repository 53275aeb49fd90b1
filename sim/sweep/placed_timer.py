"""Times of rounds in a placement: the mixture that `sim.latency.placement` derives."""

from __future__ import annotations

from collections.abc import Sequence

from sim.latency.base import Conditions, LatencyModel
from sim.latency.placement import Placement
from sim.sweep.lockstep import Floats, Ints, RoundArrays
from sim.sweep.timer import RoundTimer
from traces.schema import RequestTrace


class PlacedTimer:
    """`sim.sweep.timer.RoundTimer` for a placement: the mixture of its times on two devices and taking turns."""

    def __init__(
        self, latency: LatencyModel, traces: Sequence[RequestTrace], placement: Placement, conditions: Conditions
    ) -> None:
        """conditions: of the policies whose rounds are timed, were each model on its own device."""
        self.share = placement.share_of_turns
        beside = latency.under(conditions)
        in_turns = latency.under(conditions._replace(overlaps=False))
        self._apart = RoundTimer(beside, traces)
        self._turns = RoundTimer(in_turns, traces, takes_turns=True)
        self.prefill_s: Floats = mixed(self._apart.prefill_s, self._turns.prefill_s, self.share)

    def times_of(self, rounds: RoundArrays, request: Ints, position: Ints) -> tuple[Floats, Floats, Floats]:
        """Seconds of each round, and of the draft and the target in it (of their work, were each on its own device)."""
        apart_s, draft_s, verify_s = self._apart.times_of(rounds, request, position)
        if not self.share:
            return apart_s, draft_s, verify_s
        turns_s, _, _ = self._turns.times_of(rounds, request, position)
        return mixed(apart_s, turns_s, self.share), draft_s, verify_s


def mixed(apart_s: Floats, turns_s: Floats, share: float) -> Floats:
    """(1 - share) apart + share turns: see the head of this file, share = f - 1."""
    blend_s: Floats = apart_s + share * (turns_s - apart_s)
    return blend_s
