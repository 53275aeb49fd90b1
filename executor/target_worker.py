"""The target's process: verifies pending tokens and says what comes next. Started by `executor.target_client`.

It owns the target model and its cache and nothing else. It takes commands from a mailbox, and answers with the outcome
(number accepted, next token); token ids and a few numbers cross, never a row of the vocabulary.
"""

from __future__ import annotations

import enum
import json
import os
import resource
import sys
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from executor.hrad.features import first_features
from executor.hrad.predictor import load_predictor
from executor.mailbox import Mailbox
from executor.models import load_engine
from executor.noise import NoiseTable
from executor.verification import choose, noisy_scores, signals
from sim.verification import settle
from traces.schema import Sampling


class Opcode(enum.IntEnum):
    """What crosses the mailboxes."""

    BEGIN = 1
    VERIFY = 2
    SCORE = 3
    STOP = 4
    DONE = 10
    FAILED = 11


class TargetSide:
    """The target's view of one request: a committed line whose last token is not yet in the cache.

    class_probs: H-RAD's prediction after the last prefill or verification, empty when nobody asked; predict_s: seconds
    that it took.
    """

    def __init__(self, path: str, settings: dict[str, Any]) -> None:
        self._predictor = load_predictor(settings["hrad"], settings["device"]) if settings["hrad"] else None
        self._num_feature_layers = self._predictor.card.num_feature_layers if self._predictor else 0
        self._engine = load_engine(
            path,
            engine=settings["engine"],
            device=settings["device"],
            dtype=settings["dtype"],
            capacity=settings["capacity"],
            vocab_size=settings["vocab_size"],
            num_feature_layers=self._num_feature_layers,
        )
        if self._predictor is not None:
            self._predictor.check_engine(self._engine)
        self.class_probs: list[float] = []
        self.predict_s = 0.0

    def begin(
        self, tokens: list[int], sampling: Sampling, seed: int, noise_key: int, max_new_tokens: int, predicts: bool
    ) -> int:
        """Cache the prompt but its last token. Returns the number of cached tokens.

        predicts: whether H-RAD's classes are wanted; features are kept only then, for they cost time.
        """
        self._engine.num_feature_layers = self._num_feature_layers if predicts else 0
        self._predicts = predicts
        self._engine.reset()
        self._sampling = sampling
        self._noise = None
        if sampling.temperature > 0:
            self._noise = NoiseTable(seed, noise_key, self._engine.vocab_size, self._engine.device)
            self._noise.prepare(max_new_tokens)
        self._last, self._generated = tokens[-1], 0
        if len(tokens) > 1:
            self._engine.extend(tokens[:-1], last_only=True)
        self.class_probs, self.predict_s = [], 0.0
        if predicts:
            self._predict(first_features(self._engine, len(tokens)))
        return len(tokens) - 1

    def verify(self, pending: list[int]) -> tuple[int, int]:
        """One forward over the last committed token and the pending ones. Returns (num_accepted, next_token)."""
        start = self._engine.length
        logits = self._engine.extend([self._last, *pending])
        noise = self._noise.rows(self._generated, len(pending) + 1) if self._noise is not None else None
        target_tokens = choose(noisy_scores(logits, self._sampling, noise)).tolist()
        num_accepted, next_token = settle(target_tokens, pending)
        self._engine.roll_back(start + 1 + num_accepted)
        self._last = next_token
        self._generated += num_accepted + 1
        if self._predicts:
            self._predict(self._engine.features[num_accepted : num_accepted + 1])
        return num_accepted, next_token

    def _predict(self, features: Tensor) -> None:
        """Classes from the features at the token before the newest one, (1, K, hidden)."""
        assert self._predictor is not None, "the session refuses such a policy without a predictor"
        start = time.perf_counter()
        self.class_probs = self._predictor(features, self._engine.embed([self._last]))[0].tolist()
        self.predict_s = time.perf_counter() - start

    def score(self, tokens: list[int], num_prompt: int, sampling: Sampling, pipe: Connection) -> None:
        """Laws of the target along a finished sequence, in chunks of positions: arrays (n, vocab) of probabilities,
        (n, 2) of largest probability and entropy, (n, 3) of class probabilities if there is a predictor, with one row
        more in the first chunk, for the position after the prompt; after the timed run."""
        engine = self._engine
        engine.num_feature_layers = self._num_feature_layers
        engine.reset()
        if num_prompt > 1:
            engine.extend(tokens[: num_prompt - 1], last_only=True)
        features = [first_features(engine, num_prompt)] if self._predictor is not None else []
        newest = [tokens[num_prompt - 1]]
        inputs = tokens[num_prompt - 1 : -1]
        law = Sampling(sampling.temperature or 1.0, sampling.top_k, sampling.top_p)
        for first in range(0, len(inputs), 32):
            logits = engine.extend(inputs[first : first + 32])
            scores = noisy_scores(logits, law, None)
            pipe.send_bytes(torch.softmax(scores, -1).float().cpu().numpy().tobytes())
            pipe.send_bytes(signals(logits, scores, law)[:, :2].float().cpu().numpy().tobytes())
            if self._predictor is not None:
                newest += tokens[num_prompt + first : num_prompt + first + len(logits)]
                classes = self._predictor(torch.cat([*features, engine.features]), engine.embed(newest))
                pipe.send_bytes(classes.cpu().numpy().tobytes())
                features, newest = [], []


def main() -> None:
    """Serve one parent until it says stop or disappears."""
    settings = json.loads(sys.argv[1])
    if settings["core"] is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {settings["core"]})
    torch.set_num_threads(1)
    pipe = Connection(int(settings["pipe"]))
    inbox, outbox = Mailbox(Path(settings["inbox"])), Mailbox(Path(settings["outbox"]))
    parent = os.getppid()

    def check_parent() -> None:
        if os.getppid() != parent:
            os._exit(1)

    try:
        with torch.inference_mode():
            target = TargetSide(settings["model"], settings)
            outbox.post(Opcode.DONE)
            _serve(target, inbox, outbox, pipe, check_parent)
    except BaseException as error:
        last = traceback.format_exception_only(error)[-1].strip()
        pipe.send({"error": last, "traceback": traceback.format_exc()})
        outbox.post(Opcode.FAILED)
        raise


def _serve(target: TargetSide, inbox: Mailbox, outbox: Mailbox, pipe: Connection, check_parent: object) -> None:
    assert callable(check_parent)
    switches = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
    while True:
        opcode, body, floats = inbox.wait(check_parent)
        start = time.perf_counter()
        if opcode == Opcode.VERIFY:
            outcome = target.verify(body)
            outbox.post(Opcode.DONE, outcome, (start, time.perf_counter(), target.predict_s, *target.class_probs))
        elif opcode == Opcode.BEGIN:
            seed, noise_key, max_new_tokens, predicts, top_k, *tokens = body
            sampling = Sampling(floats[0], top_k, floats[1])
            num_cached = target.begin(tokens, sampling, seed, noise_key, max_new_tokens, bool(predicts))
            now = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
            outbox.post(Opcode.DONE, (num_cached, now - switches), (start, time.perf_counter(), *target.class_probs))
            switches = now
        elif opcode == Opcode.SCORE:
            num_prompt, top_k, *tokens = body
            outbox.post(Opcode.DONE)
            target.score(tokens, num_prompt, Sampling(floats[0], top_k, floats[1]), pipe)
        elif opcode == Opcode.STOP:
            return


if __name__ == "__main__":
    main()
