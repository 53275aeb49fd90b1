"""The target's laws along a finished sequence, for the alignment trace; after the timed run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from executor.hrad.features import first_features
from executor.hrad.predictor import Predictor
from executor.models.engines.base import Engine
from executor.verification import noisy_scores, signals
from traces.schema import Sampling

_CHUNK = 32


class Scores(NamedTuple):
    """The target's laws at n positions: (n, vocab) probabilities, (n, 2) of largest probability and entropy in nats.

    class_probs: (n, 3), with one row more in the first chunk of a sequence; (0, 3) without a predictor.
    """

    probs: NDArray[np.float32]
    stats: NDArray[np.float32]
    class_probs: NDArray[np.float32]


def score_sequence(
    engine: Engine, predictor: Predictor | None, tokens: Sequence[int], num_prompt: int, sampling: Sampling
) -> Iterator[Scores]:
    """Laws before each generated token, in chunks of positions; at temperature 0 those at temperature 1.

    The engine's cache is overwritten; its features must be on if there is a predictor.
    """
    engine.reset()
    if num_prompt > 1:
        engine.extend(tokens[: num_prompt - 1], last_only=True)
    features = [first_features(engine, num_prompt)] if predictor is not None else []
    newest = [tokens[num_prompt - 1]]
    inputs = tokens[num_prompt - 1 : -1]
    law = Sampling(sampling.temperature or 1.0, sampling.top_k, sampling.top_p)
    for first in range(0, len(inputs), _CHUNK):
        logits = engine.extend(inputs[first : first + _CHUNK])
        scores = noisy_scores(logits, law, None)
        classes = np.empty((0, 3), np.float32)
        if predictor is not None:
            newest += tokens[num_prompt + first : num_prompt + first + len(logits)]
            classes = predictor(torch.cat([*features, engine.features]), engine.embed(newest)).float().cpu().numpy()
            features, newest = [], []
        yield Scores(
            torch.softmax(scores, -1).float().cpu().numpy(),
            signals(logits, scores, law)[:, :2].float().cpu().numpy(),
            classes,
        )
