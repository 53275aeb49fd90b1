"""What crosses between the decision maker and a target in another process: settings, commands and answers.

Each pair of functions here is one layout: what `..._message` writes, `read_...` reads.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pydantic import TypeAdapter

from executor.models.settings import PairSettings
from executor.remote.channel import Message
from executor.request import Request
from executor.roles.target import Prefill, TargetVerdict
from sim.decoding.machine import ClassProbs
from traces.schema import Sampling


class Opcode(enum.IntEnum):
    """The kinds of messages."""

    BEGIN = 1
    VERIFY = 2
    SCORE = 3
    STOP = 4
    DONE = 10
    FAILED = 11


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """What a target's process is to serve.

    pair: with every name resolved and devices by their numbers. core: that the process is bound to; None leaves it free.
    meeting_place: folder in which the channel opens.
    """

    pair: PairSettings
    core: int | None
    meeting_place: Path


WORKER_SETTINGS = TypeAdapter(WorkerSettings)  # between the settings and what goes through the pipe


class Verify(NamedTuple):
    """A verification as it is asked for; see `Target.submit`."""

    num_cached: int
    last: int
    pending: list[int]


class Score(NamedTuple):
    """A scoring as it is asked for; see `Target.score`."""

    num_prompt: int
    sampling: Sampling
    tokens: list[int]


def begin_message(request: Request, *, predicts: bool) -> Message:
    """A request's start. What only the decision maker needs of it stays here: its name, its ends."""
    sampling = request.sampling
    settings = (request.seed, request.noise_key, request.max_new_tokens, predicts, sampling.top_k)
    return Message(Opcode.BEGIN, (*settings, *request.tokens), (sampling.temperature, sampling.top_p))


def read_begin(message: Message) -> tuple[Request, bool]:
    """The request, and whether H-RAD's classes are wanted."""
    seed, noise_key, max_new_tokens, predicts, top_k, *tokens = message.integers
    temperature, top_p = message.floats
    request = Request(
        prompt_id="",
        tokens=tuple(tokens),
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, top_k, top_p),
        seed=seed,
        noise_key=noise_key,
    )
    return request, bool(predicts)


def verify_message(pending: Sequence[int], *, last: int, num_cached: int) -> Message:
    """Pending tokens to verify."""
    return Message(Opcode.VERIFY, (num_cached, last, *pending[:]))  # a slice: a device's tokens are fetched at once


def read_verify(message: Message) -> Verify:
    """What to verify."""
    num_cached, last, *pending = message.integers
    return Verify(num_cached, last, pending)


def score_message(tokens: Sequence[int], num_prompt: int, sampling: Sampling) -> Message:
    """A finished sequence to score."""
    return Message(Opcode.SCORE, (num_prompt, sampling.top_k, *tokens), (sampling.temperature, sampling.top_p))


def read_score(message: Message) -> Score:
    """What to score."""
    num_prompt, top_k, *tokens = message.integers
    temperature, top_p = message.floats
    return Score(num_prompt, Sampling(temperature, top_k, top_p), tokens)


def prefill_message(prefill: Prefill, num_captures: int) -> Message:
    """The answer to a request's start."""
    num_cached, start_s, end_s, classes = prefill
    return Message(Opcode.DONE, (num_cached, num_captures), (start_s, end_s, *(classes or ())))


def read_prefill(message: Message) -> tuple[Prefill, int]:
    """The finished prefill, and the target's number of captures."""
    num_cached, num_captures = message.integers
    start_s, end_s, *classes = message.floats
    return Prefill(num_cached, start_s, end_s, _class_probs(classes)), num_captures


def verdict_message(verdict: TargetVerdict, num_captures: int) -> Message:
    """The answer to a verification."""
    num_accepted, next_token, start_s, end_s, predict_s, classes = verdict
    floats = (start_s, end_s, predict_s, *(classes or ()))
    return Message(Opcode.DONE, (num_accepted, next_token, num_captures), floats)


def read_verdict(message: Message) -> tuple[TargetVerdict, int]:
    """The verdict, and the target's number of captures."""
    num_accepted, next_token, num_captures = message.integers
    start_s, end_s, predict_s, *classes = message.floats
    return TargetVerdict(num_accepted, next_token, start_s, end_s, predict_s, _class_probs(classes)), num_captures


def _class_probs(floats: Sequence[float]) -> ClassProbs | None:
    """Three probabilities, if they came."""
    return (floats[0], floats[1], floats[2]) if floats else None
