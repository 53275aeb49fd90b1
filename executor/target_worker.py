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
from executor.scoring import score_sequence
from executor.verification import choose, noisy_scores
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
    """The target's view of one request: a cached line, which every command says how much of to keep.

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
        self._num_prompt = len(tokens)
        if len(tokens) > 1:
            self._engine.extend(tokens[:-1], last_only=True)
        self.class_probs, self.predict_s = [], 0.0
        if predicts:
            self._predict(first_features(self._engine, len(tokens)), tokens[-1])
        return len(tokens) - 1

    def verify(self, num_cached: int, last: int, pending: list[int]) -> tuple[int, int]:
        """One forward over the newest committed token, `last`, and the pending ones, after num_cached others.

        Returns (num_accepted, next_token). What of it was committed, the next call says.
        """
        self._engine.roll_back(num_cached)
        logits = self._engine.extend([last, *pending])
        generated = num_cached + 1 - self._num_prompt
        noise = self._noise.rows(generated, len(pending) + 1) if self._noise is not None else None
        target_tokens = choose(noisy_scores(logits, self._sampling, noise)).tolist()
        num_accepted, next_token = settle(target_tokens, pending)
        if self._predicts:
            self._predict(self._engine.features[num_accepted : num_accepted + 1], next_token)
        return num_accepted, next_token

    def _predict(self, features: Tensor, newest: int) -> None:
        """Classes from the features at the token before the newest one, (1, K, hidden)."""
        assert self._predictor is not None, "the session refuses such a policy without a predictor"
        start = time.perf_counter()
        self.class_probs = self._predictor(features, self._engine.embed([newest]))[0].tolist()
        self.predict_s = time.perf_counter() - start

    def score(self, tokens: list[int], num_prompt: int, sampling: Sampling, pipe: Connection) -> None:
        """Send the target's laws along a finished sequence, chunk by chunk: probabilities, statistics, classes if any."""
        self._engine.num_feature_layers = self._num_feature_layers
        for chunk in score_sequence(self._engine, self._predictor, tokens, num_prompt, sampling):
            pipe.send_bytes(chunk.probs.tobytes())
            pipe.send_bytes(chunk.stats.tobytes())
            if self._predictor is not None:
                pipe.send_bytes(chunk.class_probs.tobytes())


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
            num_cached, last, *pending = body
            outcome = target.verify(num_cached, last, pending)
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
