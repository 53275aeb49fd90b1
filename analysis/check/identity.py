"""Executed rounds against replayed ones, every field.

A policy that reads signals decides by numbers whose last digits depend on the width of the forward that they came from (float
arithmetic does not add up alike in rows of different length). Where two hedges weigh the same up to these digits, replay
may choose the other one; and where the draft's two best tokens do, the draft itself may. So rounds that differ are replayed
once more with laws moved by as much as rounding moves them: if some such trace gives the executed rounds, the request is
counted apart, as one within rounding.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from executor.recording.settings import read_settings
from sim.decoding.policies.base import Policy
from sim.decoding.policies.catalog import parse_policy
from sim.decoding.replay import replay
from traces.folder.run import Run
from traces.schema import UNKNOWN_SIGNAL, RequestTrace, Round, Signal

ROUNDING: Mapping[str, float] = {"float64": 1e-12, "float32": 2e-5, "float16": 1e-2, "bfloat16": 6e-2}  # of a logit
NUM_TRIES = 200


@dataclass(frozen=True)
class RoundComparison:
    """mismatches: (policy, temperature) with any difference that rounding does not explain. num_within_rounding: requests
    with one that it does."""

    num_rounds: int
    mismatches: frozenset[tuple[str, float]]
    num_within_rounding: int = 0

    @property
    def is_identical(self) -> bool:
        """Whether every round of every policy was the replayed one, but for those within rounding."""
        return not self.mismatches

    def is_same(self, policy: str, temperature: float) -> bool:
        """Whether one policy's rounds were."""
        return (policy, temperature) not in self.mismatches


def compare_rounds(measured: Run) -> RoundComparison:
    """Replay every request of a run from its alignment trace and compare."""
    traces = {(trace.prompt_id, trace.temperature): trace for trace in measured.traces()}
    settings = read_settings(measured.config, where=measured.folder)
    rounding = ROUNDING[settings.pair.engine.dtype if settings else "float32"]
    num_rounds, num_within_rounding, mismatches = 0, 0, set()
    columns = measured.requests[["request_id", "prompt_id", "temperature", "policy"]]
    for request_id, prompt_id, temperature, label in columns.itertuples(index=False):
        executed = measured.rounds_of(request_id)
        num_rounds += len(executed)
        policy, trace = parse_policy(label), replace(traces[prompt_id, temperature], request_id=request_id)
        if executed == replay(policy, trace, executed=executed):
            continue
        if is_within_rounding(executed, policy, trace, rounding):
            num_within_rounding += 1
        else:
            mismatches.add((label, float(temperature)))
    return RoundComparison(num_rounds, frozenset(mismatches), num_within_rounding)


def policies_with_other_tokens(requests: pd.DataFrame) -> set[tuple[str, float]]:
    """(policy, temperature) whose tokens are not those of autoregressive decoding on some prompt. requests: of one run."""
    keys = ["prompt_id", "temperature"]
    plain = requests[requests.policy == "autoregressive"].drop_duplicates(keys)
    joined = requests.merge(plain[[*keys, "tokens_sha256"]], on=keys, suffixes=("", "_plain"))
    other = joined[joined.tokens_sha256 != joined.tokens_sha256_plain]
    return {
        (str(policy), float(temperature)) for policy, temperature in zip(other.policy, other.temperature, strict=True)
    }


def why_tokens_differ(requests: pd.DataFrame, dtype: str) -> str:
    """In a sentence, where tokens are not those of plain decoding, and what that may come from; empty where they all are.

    requests: of one run. Without plain decoding the first policy stands for it. dtype: of the engines.
    """
    keys = ["prompt_id", "temperature", "seed", "max_new_tokens"]
    labels = requests.policy.unique().tolist()
    base = "autoregressive" if "autoregressive" in labels else labels[0]
    plain = requests[requests.policy == base].drop_duplicates(keys)
    joined = requests.merge(plain[[*keys, "tokens_sha256"]], on=keys, suffixes=("", "_plain"))
    other = joined[joined.tokens_sha256 != joined.tokens_sha256_plain]
    if other.empty:
        return ""
    first = other.iloc[0]
    more = f" ({len(other) - 1} more requests differ)" if len(other) > 1 else ""
    return (
        f"the tokens of {first.policy} at T = {first.temperature:g} are not those of {base} on prompt {first.prompt_id}{more}"
        f": {_cause(dtype)}"
    )


def why_rounds_differ(mismatches: Collection[tuple[str, float]], dtype: str) -> str:
    """The same of rounds that are not the replayed ones. mismatches: (policy, temperature)."""
    if not mismatches:
        return ""
    label, temperature = min(mismatches)
    more = f" ({len(mismatches) - 1} more policies differ)" if len(mismatches) > 1 else ""
    return f"the rounds of {label} at T = {temperature:g} are not the replayed ones{more}: {_cause(dtype)}"


def _cause(dtype: str) -> str:
    if dtype in ("float32", "float64"):
        return f"in {dtype} that is a fault of the model's engine or of the policy, not rounding; please report it"
    return (
        f"in {dtype} a near tie may fall either way, since a forward of several tokens rounds in another way than one of one "
        "token; a recording in float32 tells whether it is more than that"
    )


def is_within_rounding(executed: list[Round], policy: Policy, trace: RequestTrace, rounding: float) -> bool:
    """Whether some trace whose laws differ by rounding gives these rounds. rounding: standard deviation of logits."""
    return any(
        executed == replay(policy, _moved(trace, rounding, np.random.default_rng(seed)), executed=executed)
        for seed in range(NUM_TRIES)
    )


def _moved(trace: RequestTrace, rounding: float, rng: np.random.Generator) -> RequestTrace:
    """The trace with every rank, signal and class probability as if logits had moved."""

    def move(signal: Signal) -> Signal:
        max_prob, entropy, margin = (rounding * rng.standard_normal(3)).tolist()
        return Signal(
            min(1.0, signal.max_prob * (1 + max_prob)), max(0.0, signal.entropy + entropy), signal.margin + margin
        )

    signals = tuple(map(move, trace.signals))
    tails = {position: tuple(map(move, tail)) for position, tail in trace.tails.items()}
    ranks = list(trace.ranks)
    for position, signal in enumerate(signals):
        if signal.margin < 0 and ranks[position] < 2:  # the second token has come before the first
            ranks[position] = 1 - ranks[position]
            # What the draft would have gone on with was not recorded; its path from here on is the best guess.
            tails.setdefault(position, _padded(signals[position + 1 :], trace.tail_depth))
    return replace(
        trace,
        ranks=tuple(ranks),
        signals=tuple(signal._replace(margin=abs(signal.margin)) for signal in signals),
        tails=tails,
        class_probs=tuple(
            (a * (1 + rounding * rng.standard_normal()), b * (1 + rounding * rng.standard_normal()), c)
            for a, b, c in trace.class_probs
        ),
    )


def _padded(signals: tuple[Signal, ...], length: int) -> tuple[Signal, ...]:
    """The first `length` signals, unknown ones behind them."""
    return (*signals[:length], *[UNKNOWN_SIGNAL] * (length - len(signals)))
