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
    """The target's view of one request: a committed line whose last token is not yet in the cache."""

    def __init__(self, path: str, settings: dict[str, Any]) -> None:
        self._engine = load_engine(
            path,
            engine=settings["engine"],
            device=settings["device"],
            dtype=settings["dtype"],
            capacity=settings["capacity"],
            vocab_size=settings["vocab_size"],
        )
        self.num_positions = 0

    def begin(self, tokens: list[int], sampling: Sampling, seed: int, noise_key: int, max_new_tokens: int) -> int:
        """Cache the prompt but its last token. Returns the number of cached tokens."""
        self._engine.reset()
        self._sampling = sampling
        self._noise = None
        if sampling.temperature > 0:
            self._noise = NoiseTable(seed, noise_key, self._engine.vocab_size, self._engine.device)
            self._noise.prepare(max_new_tokens)
        self._last, self._generated = tokens[-1], 0
        if len(tokens) > 1:
            self._engine.extend(tokens[:-1], last_only=True)
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
        return num_accepted, next_token

    def score(self, tokens: list[int], num_prompt: int, sampling: Sampling, pipe: Connection) -> None:
        """Laws of the target along a finished sequence, in chunks of positions: arrays (n, vocab) of probabilities,
        (n, 2) of largest probability and entropy; after the timed run."""
        engine = self._engine
        engine.reset()
        if num_prompt > 1:
            engine.extend(tokens[: num_prompt - 1], last_only=True)
        inputs = tokens[num_prompt - 1 : -1]
        law = Sampling(sampling.temperature or 1.0, sampling.top_k, sampling.top_p)
        for first in range(0, len(inputs), 32):
            logits = engine.extend(inputs[first : first + 32])
            scores = noisy_scores(logits, law, None)
            pipe.send_bytes(torch.softmax(scores, -1).float().cpu().numpy().tobytes())
            pipe.send_bytes(signals(logits, scores, law)[:, :2].float().cpu().numpy().tobytes())


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
            outbox.post(Opcode.DONE, outcome, (start, time.perf_counter()))
        elif opcode == Opcode.BEGIN:
            seed, noise_key, max_new_tokens, top_k, *tokens = body
            num_cached = target.begin(tokens, Sampling(floats[0], top_k, floats[1]), seed, noise_key, max_new_tokens)
            now = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
            outbox.post(Opcode.DONE, (num_cached, now - switches), (start, time.perf_counter()))
            switches = now
        elif opcode == Opcode.SCORE:
            num_prompt, top_k, *tokens = body
            outbox.post(Opcode.DONE)
            target.score(tokens, num_prompt, Sampling(floats[0], top_k, floats[1]), pipe)
        elif opcode == Opcode.STOP:
            return


if __name__ == "__main__":
    main()
