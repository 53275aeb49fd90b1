"""What H-RAD has to beat: statistics and draft confidences that cost nothing, brought to the same three classes.

Each is fitted on the predictor's training data and gives class probabilities, so all are judged alike (METHOD Q10).
Some of them look at drafted tokens: they can say what to keep of a draft, but not how long a draft to begin with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from executor.hrad.dataset import Dataset
from executor.hrad.predictor import CLASS_NAMES, HradError, Predictor

Probs: TypeAlias = NDArray[np.float64]
_MAX_MARGIN = 30.0  # a filter that leaves one token makes the margin infinite
_MAX_PROB, _MARGIN = 0, 2  # columns of Dataset.signals


class Rule(NamedTuple):
    """A way to predict classes. sees: what it must know, from nothing to all drafted tokens."""

    name: str
    sees: str
    predict: Callable[[Dataset], Probs]


def fit_baselines(training: Dataset) -> list[Rule]:
    """Every baseline, fitted for each temperature apart. At another temperature they raise HradError."""
    return [
        Rule("constant", "nothing", _for_each_temperature(training, _constant)),
        Rule("running average", "past verdicts", _for_each_temperature(training, _logistic(_rate))),
        Rule("max probability", "first draft token", _for_each_temperature(training, _logistic(_first_max_prob))),
        Rule("noisy margin", "first draft token", _for_each_temperature(training, _logistic(_first_margin))),
        Rule("product rule", "whole draft", _for_each_temperature(training, _product_rule)),
    ]


def fit_combination(predictor: Predictor, held_back: Dataset) -> Rule:
    """H-RAD and the first token's confidence together: what the one adds to the other.

    held_back: training rows that the weights were not fitted to, or the combination would trust H-RAD too much.
    """

    def both(data: Dataset) -> Probs:
        return np.column_stack([np.log(predict(predictor, data) + 1e-6), _first_max_prob(data), _first_margin(data)])

    return Rule("H-RAD + first token", "first draft token", _for_each_temperature(held_back, _logistic(both)))


def predict(predictor: Predictor, data: Dataset) -> Probs:
    """H-RAD's class probabilities of every row, (n, 3)."""
    with torch.inference_mode():
        probs: Probs = predictor.from_inputs(torch.from_numpy(data.inputs.astype(np.float32))).double().cpu().numpy()
    return probs


_Fit: TypeAlias = Callable[[Dataset], Callable[[Dataset], Probs]]


def _for_each_temperature(training: Dataset, fit: _Fit) -> Callable[[Dataset], Probs]:
    fitted: Mapping[float, Callable[[Dataset], Probs]] = {
        float(value): fit(training.rows(training.temperatures == value)) for value in np.unique(training.temperatures)
    }

    def predict_rows(data: Dataset) -> Probs:
        probs = np.empty((len(data), len(CLASS_NAMES)))
        for value in np.unique(data.temperatures):
            if float(value) not in fitted:
                raise HradError(f"nothing was collected at temperature {value:g}; evaluate at {sorted(fitted)}.")
            chosen = data.temperatures == value
            probs[chosen] = fitted[float(value)](data.rows(chosen))
        return probs

    return predict_rows


def _constant(training: Dataset) -> Callable[[Dataset], Probs]:
    counts = np.bincount(training.labels, minlength=len(CLASS_NAMES)) + 1.0  # a class never seen is not impossible
    return lambda data: np.tile(counts / counts.sum(), (len(data), 1))


def _logistic(inputs_of: Callable[[Dataset], Probs]) -> _Fit:
    """Multinomial logistic regression on a few numbers."""

    def fit(training: Dataset) -> Callable[[Dataset], Probs]:
        inputs = inputs_of(training)
        mean, spread = inputs.mean(0), inputs.std(0) + 1e-9
        known = np.unique(training.labels)
        if len(known) < 2:
            return _constant(training)
        model = LogisticRegression(max_iter=1000).fit((inputs - mean) / spread, training.labels)

        def predict_rows(data: Dataset) -> Probs:
            probs = np.full((len(data), len(CLASS_NAMES)), 1e-6)
            probs[:, known] = model.predict_proba((inputs_of(data) - mean) / spread)
            normed: Probs = probs / probs.sum(1, keepdims=True)
            return normed

        return predict_rows

    return fit


def _product_rule(training: Dataset) -> Callable[[Dataset], Probs]:
    """Calibrated chance of each drafted token given all before it, and their product (SpecDec++, arXiv:2405.19715)."""
    place = np.arange(training.meta.draft_length)
    num_accepted = training.num_accepted[:, None]
    is_judged = place <= num_accepted  # later tokens got no verdict
    if len(np.unique((place < num_accepted)[is_judged])) < 2:
        return _constant(training)
    model = LogisticRegression(max_iter=1000).fit(_token_inputs(training)[is_judged], (place < num_accepted)[is_judged])

    def predict_rows(data: Dataset) -> Probs:
        inputs = _token_inputs(data)
        chances = model.predict_proba(inputs.reshape(-1, inputs.shape[-1]))[:, 1].reshape(inputs.shape[:2])
        reject, accept = 1 - chances[:, 0], chances.prod(1)
        probs: Probs = np.clip(np.column_stack([reject, 1 - reject - accept, accept]), 1e-6, 1)
        return probs

    return predict_rows


def _token_inputs(data: Dataset) -> Probs:
    """(n, draft_length, 2) log-odds of the largest probability, and noisy margin."""
    signals = data.signals.astype(np.float64)
    return np.stack([_log_odds(signals[..., _MAX_PROB]), _capped(signals[..., _MARGIN])], axis=-1)


def _first_max_prob(data: Dataset) -> Probs:
    return _log_odds(data.signals[:, :1, _MAX_PROB].astype(np.float64))


def _first_margin(data: Dataset) -> Probs:
    return _capped(data.signals[:, :1, _MARGIN].astype(np.float64))


def _rate(data: Dataset) -> Probs:
    return _log_odds(data.running_rate[:, None])


def _capped(margins: Probs) -> Probs:
    return np.minimum(margins, _MAX_MARGIN)


def _log_odds(probs: Probs) -> Probs:
    clipped = np.clip(probs, 1e-4, 1 - 1e-4)
    odds: Probs = np.log(clipped / (1 - clipped))
    return odds
