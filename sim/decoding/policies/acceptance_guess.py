"""From a signal to a probability of acceptance: the logistic curve that policies with expected values share."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sim.decoding.policies.base import Defaults
from sim.decoding.policies.serial.confidence_stop import ConfidenceSignal, confidence
from traces.schema import Signal


@dataclass(frozen=True)
class AcceptanceGuess(Defaults):
    """Predicted acceptance of a draft token: 1 / (1 + exp(-(intercept + slope x))), x the value of `guess_by`.

    Fitted to a trace and a temperature by `traces.fits.signals`. slope = 0 is a constant acceptance. The noisy margin is the
    best signal known: no decision can change the output under shared noise, so a policy may look at the noise.
    """

    guess_by: ConfidenceSignal = ConfidenceSignal.MARGIN
    intercept: float = -0.6
    slope: float = 1.0

    def accept_probability(self, signal: Signal) -> float:
        """Predicted chance that the target emits this draft token, given that all before it were right."""
        value = self.intercept
        if self.slope:
            value += self.slope * confidence(signal, self.guess_by)
        if value < -700:
            return 0.0
        return 1 / (1 + math.exp(-value))
