"""Predicted acceptance of every draft token of the traces at once, for the array forms of policies that guess it."""

from __future__ import annotations

import numpy as np

from sim.decoding.policies.acceptance_guess import AcceptanceGuess
from sim.decoding.policies.serial.confidence_stop import ConfidenceSignal
from sim.sweep.lockstep import Floats, TraceArrays
from traces.schema import UNKNOWN_SIGNAL, Signal


def accept_probabilities(guess: AcceptanceGuess, arrays: TraceArrays, width: int) -> Floats:
    """(positions, at least width) `AcceptanceGuess.accept_probability` of the tokens of `TraceArrays.runs`: asked of the
    policy itself, so that no digit can differ, and once for each curve."""
    curve = guess.guess_by, guess.intercept, guess.slope
    known = arrays.guesses.get(curve)
    if known is None or known.shape[1] < width:
        known = arrays.guesses[curve] = _asked(guess, arrays, width)
    return known


def _asked(guess: AcceptanceGuess, arrays: TraceArrays, width: int) -> Floats:
    if not guess.slope:  # the same for all tokens, and no signal is read
        return np.full((arrays.num_positions, width), guess.accept_probability(UNKNOWN_SIGNAL))
    values = arrays.runs(guess.guess_by, width)
    distinct, which = np.unique(values, return_inverse=True)
    odds = [guess.accept_probability(_signal_of(value, guess.guess_by)) for value in distinct.tolist()]
    return np.array(odds)[which].reshape(values.shape)


def _signal_of(value: float, kind: ConfidenceSignal) -> Signal:
    """A signal with this confidence."""
    if kind is ConfidenceSignal.MAX_PROB:
        return UNKNOWN_SIGNAL._replace(max_prob=value)
    if kind is ConfidenceSignal.MARGIN:
        return UNKNOWN_SIGNAL._replace(margin=value)
    return UNKNOWN_SIGNAL._replace(entropy=-value)
