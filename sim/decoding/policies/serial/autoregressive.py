"""Plain decoding: one token a target forward. The baseline of every speed-up."""

from __future__ import annotations

from dataclasses import dataclass

from sim.decoding.policies.base import Defaults, Needs


@dataclass(frozen=True)
class Autoregressive(Defaults):
    """Submit nothing, hedge nothing: each round emits the target's own token."""

    @property
    def needs(self) -> Needs:
        return Needs(drafts=False)
