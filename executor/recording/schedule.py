"""What is decoded in a run, in which order: small pure functions from settings to a plain sequence."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from executor.models.loading import load_tokenizer
from executor.models.names import resolve_model
from executor.pair import Session
from executor.recording.prompts import PromptText, encode_prompt, load_prompts, settled_form
from executor.recording.settings import PromptForm, RecordSettings
from executor.request import Request
from sim.decoding.policies.base import Policy
from traces.schema import Sampling


class Decoding(NamedTuple):
    """One request to decode under one policy; repeat: how often the same was decoded before."""

    request: Request
    policy: Policy
    repeat: int


Blocks: TypeAlias = Sequence[Sequence[Decoding]]


def check_prompts(settings: RecordSettings) -> RecordSettings:
    """Refuse prompts that cannot be read, encoded or held, before any weights are loaded. Raises ValueError.

    Returns the settings with the form of the prompts settled.
    """
    pair, prompts = settings.pair, settings.prompts
    found = load_prompts(prompts.source, prompts.num, skip=prompts.skip)
    tokenizer = load_tokenizer(resolve_model(pair.target, "target"), trusts_remote_code=pair.engine.trusts_remote_code)
    settings = _settled(settings, tokenizer, found)
    for prompt in found:
        tokens = encode_prompt(tokenizer, prompt, settings.prompts.form)
        if pair.engine.capacity is not None:
            _check_length(prompt, len(tokens), settings, pair.engine.capacity)
    return settings


def settled(settings: RecordSettings, tokenizer: Any) -> RecordSettings:
    """The settings with the form of the prompts settled. Raises ValueError for prompts that cannot be read."""
    prompts = settings.prompts
    if prompts.form is not PromptForm.AUTO:
        return settings
    return _settled(settings, tokenizer, load_prompts(prompts.source, prompts.num, skip=prompts.skip))


def _settled(settings: RecordSettings, tokenizer: Any, found: Sequence[PromptText]) -> RecordSettings:
    form = settled_form(settings.prompts.form, tokenizer, found)
    return replace(settings, prompts=replace(settings.prompts, form=form))


def _check_length(prompt: PromptText, num_tokens: int, settings: RecordSettings, capacity: int) -> None:
    num_new = settings.decoding.max_new_tokens
    if num_tokens > capacity - num_new:
        raise ValueError(
            f"prompt {prompt.prompt_id} has {num_tokens} tokens; with max_new_tokens {num_new} a capacity of {capacity} holds "
            f"{max(0, capacity - num_new)}: use a larger capacity, fewer new tokens or a shorter prompt."
        )


def make_requests(settings: RecordSettings, session: Session) -> list[Request]:
    """One request a prompt and temperature. The noise key follows the prompt's name, so runs can be compared.

    Raises ValueError for a prompt that the session's cache cannot hold.
    """
    decoding, prompts = settings.decoding, settings.prompts
    requests = []
    found = load_prompts(prompts.source, prompts.num, skip=prompts.skip)
    form = settled_form(prompts.form, session.tokenizer, found)
    for prompt in found:
        tokens = encode_prompt(session.tokenizer, prompt, form)
        _check_length(prompt, len(tokens), settings, session.capacity)
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


def in_blocks(
    requests: Sequence[Request], policies_of: Callable[[Request], Sequence[Policy]], *, repeats: int = 1, seed: int = 0
) -> Blocks:
    """A block for each request: all of its policies in random order, so that what moves the machine's speed meets all of
    them alike and can be told from them (`traces.metrics.machine_speed`). All requests, `repeats` times.

    policies_of: of a request; one that is named twice runs twice, as two repeats, and tells how far two runs of one policy are
    apart.
    """
    rng = np.random.default_rng(seed)
    blocks = []
    for repeat in range(repeats):
        for request in requests:
            policies = policies_of(request)
            block = [
                Decoding(request, policy, repeat * policies.count(policy) + policies[:index].count(policy))
                for index, policy in enumerate(policies)
            ]
            blocks.append([block[index] for index in rng.permutation(len(block))])
    return blocks


def interleaved(first: Sequence[Request], second: Sequence[Request], *, num: int = 1) -> list[Request]:
    """`num` requests of the first, then one of the second, and so on; at the end what is left of the longer one."""
    groups = zip_longest(*(first[start::num] for start in range(num)), second)
    return [request for group in groups for request in group if request is not None]
