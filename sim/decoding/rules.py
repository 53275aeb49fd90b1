"""Verification rules of serving engines, as traces: what a recorded sequence says about rules that share no noise.

Under shared noise the draft is right where its noisy best token is the target's. Engines verify otherwise, and emit other
tokens of the same law:

ratio       the draft's token x is drawn from q and kept with min(1, p(x) / q(x)), else the target's token is drawn from the
            residual (Leviathan et al., arXiv:2211.17192). Given that y is emitted, the draft had drawn and kept it with

                P(kept | y) = q(y) min(1, p(y) / q(y)) / p(y) = min(1, q(y) / p(y)),

            for y has the law p; what was drawn elsewhere does not matter. So along a recorded sequence, whose tokens have the
            law p given the ones before them, acceptances are independent Bernoulli trials with these chances.
point_mass  the draft proposes its most probable tokens, the target draws y from p and keeps what equals it (a greedy draft
            at a temperature above 0, as engines have it). Given y nothing is random: the rank is that of y in q's order.

At temperature 0 all rules are one. A policy must not look at a signal that sees the draft's own draw under the ratio rule, and
no signal was recorded of what follows a token that only this rule rejects: replay refuses policies that read signals.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from sim.decoding.policies.base import Policy
from sim.decoding.policies.serial.confidence_stop import ConfidenceSignal
from traces.schema import RequestTrace, Rule


def parse_rule(text: str) -> Rule:
    """The rule of this name. Raises ValueError for another one."""
    try:
        return Rule(text)
    except ValueError:
        raise ValueError(f"unknown verification rule {text!r:.80}; known are {', '.join(Rule)}.") from None


def check_rule(policy: Policy, rule: Rule) -> None:
    """Refuse a policy that reads the draft's own draw under the ratio rule: which drafted tokens are tested may hang on what
    was known before they were drawn, never on the draw. Raises ValueError."""
    if rule is not Rule.RATIO or not dataclasses.is_dataclass(policy):
        return
    for field in dataclasses.fields(policy):
        if getattr(policy, field.name) is ConfidenceSignal.MARGIN and policy.needs.signals:
            raise ValueError(
                f"{type(policy).__name__}({field.name}=margin) reads the noise that the draft's tokens were drawn with, "
                f"which the ratio rule does not allow; use {field.name}=max_prob, or shared noise."
            )


def under_rule(trace: RequestTrace, rule: Rule, rng: np.random.Generator) -> RequestTrace:
    """A recorded request as if it had been verified by another rule: ranks drawn or read by that rule, no signals.

    Replayed under a policy that reads none, its rounds have exactly the law of that rule's rounds on the recorded
    sequence. Ranks of the ratio rule tell only right from wrong. rng: of the ratio rule's draws. Raises ValueError for a
    trace without chances.
    """
    if rule is Rule.SHARED or trace.temperature == 0:
        return trace
    if not trace.chances:
        raise ValueError(
            f"request {trace.request_id} ({trace.prompt_id}) holds no probabilities of its tokens under both models, which "
            f"the rule {rule.value} asks for; record it again (they came with schema version 3)."
        )
    if rule is Rule.POINT_MASS:
        ranks, known = [chances.plain_rank for chances in trace.chances], trace.known_ranks
    else:
        kept = np.array([acceptance(chances.target, chances.draft) for chances in trace.chances])
        ranks, known = np.where(rng.random(len(kept)) < kept, 0, 1).tolist(), 1
    return dataclasses.replace(
        trace, ranks=tuple(ranks), signals=(), tails={}, tail_depth=0, class_probs=(), known_ranks=known
    )


def under_rules(traces: Sequence[RequestTrace], rule: Rule, *, seed: int = 0, copies: int = 1) -> list[RequestTrace]:
    """`under_rule` of many requests, each drawn `copies` times (of use where draws are random)."""
    rngs = np.random.default_rng(seed).spawn(copies * len(traces))
    return [under_rule(trace, rule, rng) for trace, rng in zip([*traces] * copies, rngs, strict=True)]


def acceptance(target_prob: float, draft_prob: float) -> float:
    """Chance that the ratio rule had drawn and kept the emitted token, min(1, q / p).

    >>> acceptance(target_prob=0.5, draft_prob=0.2)
    0.4
    """
    return min(1.0, draft_prob / target_prob) if target_prob > 0 else 0.0
