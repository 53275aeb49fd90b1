"""What is decoded in a run, in which order: small pure functions from settings to a plain sequence."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import NamedTuple, TypeAlias

from executor.pair import Session
from executor.recording.prompts import encode_prompt, load_prompts
from executor.recording.settings import RecordSettings
from executor.request import Request
from sim.decoding.policies.base import Policy
from traces.schema import Sampling


class Decoding(NamedTuple):
    """One request to decode under one policy; repeat: how often the same was decoded before."""

    request: Request
    policy: Policy
    repeat: int


Schedule: TypeAlias = Sequence[Decoding]


def make_requests(settings: RecordSettings, session: Session) -> list[Request]:
    """One request a prompt and temperature. The noise key follows the prompt's name, so runs can be compared.

    Raises ValueError for a prompt that the session's cache cannot hold.
    """
    decoding, prompts = settings.decoding, settings.prompts
    room = session.capacity - decoding.max_new_tokens
    requests = []
    for prompt in load_prompts(prompts.source, prompts.num, skip=prompts.skip):
        tokens = encode_prompt(session.tokenizer, prompt)
        if len(tokens) > room:
            raise ValueError(
                f"prompt {prompt.prompt_id} has {len(tokens)} tokens; with max_new_tokens {decoding.max_new_tokens} a "
                f"capacity of {session.capacity} holds {room}. Raise --capacity or shorten the prompt."
            )
        for temperature in decoding.temperatures:
            requests.append(
                Request(
                    prompt_id=prompt.prompt_id,
                    tokens=tokens,
                    max_new_tokens=decoding.max_new_tokens,
                    sampling=Sampling(temperature, decoding.top_k, decoding.top_p),
                    seed=decoding.seed,
                    noise_key=zlib.crc32(prompt.prompt_id.encode()),
                    stop_strings=decoding.stop_strings,
                    ignore_eos=decoding.ignore_eos,
                )
            )
    return requests


def rotated(requests: Sequence[Request], policies: Sequence[Policy], repeats: int) -> list[Decoding]:
    """Every request under every policy, `repeats` times. Policies take turns on each request, in an order that rotates, so
    that a drift of the machine meets all of them alike."""
    schedule = []
    for repeat in range(repeats):
        for index, request in enumerate(requests):
            shift = (index + repeat) % len(policies)
            schedule += [Decoding(request, policy, repeat) for policy in [*policies[shift:], *policies[:shift]]]
    return schedule


def interleaved(first: Iterable[Request], second: Iterable[Request]) -> list[Request]:
    """Requests of both in turns, and at the end what is left of the longer one."""
    pairs = zip_longest(first, second)
    return [request for pair in pairs for request in pair if request is not None]
