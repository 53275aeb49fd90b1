"""The target's half of the step machine with a real model: prefill, verification, H-RAD's classes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from executor.hrad.features import first_features
from executor.hrad.predictor import Predictor, load_predictor
from executor.models.engines.base import Engine
from executor.models.loading import follow_rules, load_engine
from executor.models.settings import PairSettings
from executor.noise import noise_of
from executor.request import Request
from executor.roles.scoring import Scores, score_sequence
from executor.roles.target import Prefill, TargetVerdict
from executor.verification import check_finite, choose, noisy_scores
from sim.decoding.machine import ClassProbs
from sim.decoding.verification import settle
from traces.schema import Sampling


class TargetSide:
    """The target's view of one request: a cached line, which every command says how much of to keep.

    It answers as `executor.roles.target.Target` does, but at once and not beside its caller: `executor.remote.worker` gives it
    a process of its own.
    """

    def __init__(self, engine: Engine, predictor: Predictor | None = None) -> None:
        self._engine, self._predictor = engine, predictor
        self._num_feature_layers = engine.num_feature_layers
        self.is_alive = True
        self.layouts: Mapping[str, str] = getattr(engine, "layouts", {})

    @property
    def pid(self) -> int:
        """This process."""
        return os.getpid()

    @property
    def num_captures(self) -> int:
        """There are no graphs."""
        return 0

    def begin(self, request: Request, *, predicts: bool = False) -> None:
        """Cache the prompt but its last token.

        predicts: whether H-RAD's classes are wanted; features are kept only then, for they cost time.
        """
        start = time.perf_counter()
        tokens = request.tokens
        self._engine.num_feature_layers = self._num_feature_layers if predicts else 0
        self._predicts = predicts
        self._engine.reset()
        self._sampling = request.sampling
        self._noise = noise_of(request, self._engine.vocab_size, self._engine.device)
        self._num_prompt = len(tokens)
        if len(tokens) > 1:
            self._engine.extend(tokens[:-1], last_only=True)
        classes = self._predict(first_features(self._engine, len(tokens)), tokens[-1]) if predicts else None
        self._prefill = Prefill(len(tokens) - 1, start, time.perf_counter(), classes)

    def wait_prefill(self) -> Prefill:
        """The prefill of the last `begin`."""
        return self._prefill

    def submit(self, pending: Sequence[int], *, last: int, num_cached: int) -> None:
        """One forward over the newest committed token, `last`, and the pending ones, after num_cached others."""
        start = time.perf_counter()
        self._engine.roll_back(num_cached)
        logits = self._engine.extend([last, *pending])
        generated = num_cached + 1 - self._num_prompt
        noise = self._noise.rows(generated, len(pending) + 1) if self._noise is not None else None
        scores = noisy_scores(logits, self._sampling, noise)
        chosen = choose(scores)
        best = scores.gather(-1, chosen[:, None])[:, 0].tolist()
        check_finite(best, "target", first_position=num_cached, dtype=self._engine.dtype)
        target_tokens = chosen.tolist()
        num_accepted, next_token = settle(target_tokens, pending)
        classes, predict_s = None, 0.0
        if self._predicts:
            asked = time.perf_counter()
            classes = self._predict(self._engine.features[num_accepted : num_accepted + 1], next_token)
            predict_s = time.perf_counter() - asked
        self._verdict = TargetVerdict(num_accepted, next_token, start, time.perf_counter(), predict_s, classes)

    def has_verdict(self) -> bool:
        """It answers at once."""
        return True

    def wait_verdict(self) -> TargetVerdict:
        """The outcome of the last `submit`."""
        return self._verdict

    def score(self, tokens: Sequence[int], num_prompt: int, sampling: Sampling) -> Iterator[Scores]:
        """The target's laws along a finished sequence, in chunks."""
        self._engine.num_feature_layers = self._num_feature_layers
        yield from score_sequence(self._engine, self._predictor, tokens, num_prompt, sampling)

    def close(self) -> None:
        """Nothing is held but the model."""
        self.is_alive = False

    def _predict(self, features: Tensor, newest: int) -> ClassProbs:
        """Classes from the features at the token before the newest one, (1, K, hidden)."""
        assert self._predictor is not None, "the session refuses such a policy without a predictor"
        reject, confidence, accept = self._predictor(features, self._engine.embed([newest]))[0].tolist()
        return reject, confidence, accept


def load_target(pair: PairSettings) -> tuple[Engine, Predictor | None]:
    """The target's engine and, if `pair.hrad` names its folder, the H-RAD predictor of this very model."""
    settings = pair.target_engine
    predictor = load_predictor(pair.hrad, settings.device) if pair.hrad else None
    if predictor is not None:
        settings = replace(settings, num_feature_layers=predictor.card.num_feature_layers)
    engine = follow_rules(load_engine(pair.target, settings), pair)
    if predictor is not None:
        predictor.check_engine(engine)
    return engine, predictor
