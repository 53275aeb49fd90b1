"""What settings follow from: a pair's costs by width, and what its traces say of acceptance, ranks and signals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sim.decoding.closed_forms import expected_emitted_tokens
from sim.decoding.policies.base import Policy, why_other_window
from sim.decoding.policies.serial.confidence_stop import ConfidenceSignal
from sim.latency.base import Conditions, LatencyModel
from traces.fits.signals import fit_ranks, fit_signal, signal_and_acceptance
from traces.schema import Actor, OpKind, OpShape, RequestTrace

MAX_LENGTH = 256  # of a draft; far beyond what pays at any cost ratio seen
MAX_BRANCHES = 64
MIN_ALPHA = 0.01  # with its complement: no acceptance is certain
_SHARES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # of tokens below a threshold


def first_requests(traces: Sequence[RequestTrace], max_tokens: int) -> list[RequestTrace]:
    """The first requests that hold about so many tokens, at least one."""
    before = np.cumsum([0, *(trace.num_tokens for trace in traces)])
    return [trace for trace, start in zip(traces, before, strict=False) if start < max_tokens]


def typical_context(traces: Sequence[RequestTrace]) -> int:
    """Tokens in the cache half-way through a mean request."""
    return int(sum(trace.num_prompt_tokens + trace.num_tokens / 2 for trace in traces) / len(traces))


@dataclass(frozen=True, kw_only=True)
class Measured:
    """draft_s: of one draft forward. verify_s: (MAX_LENGTH + 1,) of verifying so many pending tokens beside a working draft.
    branch_s: seconds of a draft forward by its rows, from 1 to MAX_BRANCHES. serial_verify_s: as verify_s, alone. host_s: of a
    round.

    alpha: share of draft tokens that were right. rank_decay: the law of the target's rank after a wrong one. curve: intercept
    and slope of acceptance over the noisy margin. thresholds: by signal, values below which so many tokens are; empty without
    signals. tail_depth: draft tokens known after a wrong one; 0 without signals. known_ranks: how many of the draft's best
    tokens the traces tell apart; None for all. class_window: of how many draft tokens H-RAD's classes speak; 0 for any.
    """

    draft_s: float
    host_s: float
    verify_s: tuple[float, ...]
    serial_verify_s: tuple[float, ...]
    branch_s: tuple[float, ...]
    alpha: float
    rank_decay: float
    curve: tuple[float, float]
    thresholds: Mapping[ConfidenceSignal, tuple[float, ...]]
    tail_depth: int
    known_ranks: int | None
    has_classes: bool
    class_window: int

    @classmethod
    def of(cls, traces: Sequence[RequestTrace], latency: LatencyModel) -> Measured:
        """From traces of one temperature, or of several as one. Raises ValueError without traces."""
        if not traces:
            raise ValueError("settings follow from recorded requests, but there is none.")
        context = typical_context(traces)
        has_signals = all(trace.signals for trace in traces)
        alone = latency.under(Conditions(drafts=True, reads_signals=has_signals))
        widths, rows = np.arange(1, MAX_LENGTH + 2), np.arange(1, MAX_BRANCHES + 1)
        verify_s = alone.mean_array(OpKind.VERIFY, widths, 1, context)
        branch_s = alone.mean_array(OpKind.BRANCH, 1, rows, context)
        while_both = alone.interference
        right = float(np.mean([rank == 0 for trace in traces for rank in trace.ranks]))
        alpha = min(1 - MIN_ALPHA, max(MIN_ALPHA, right))
        is_varied = has_signals and 0 < right < 1
        fit = fit_signal(traces, ConfidenceSignal.MARGIN) if is_varied else None
        known_ranks = min((trace.known_ranks for trace in traces if trace.known_ranks is not None), default=None)
        return cls(
            draft_s=alone.mean_s(OpShape(Actor.DRAFT, OpKind.DRAFT, 1, 1, context)),
            host_s=alone.mean_s(OpShape(Actor.HOST, OpKind.HOST, 1, 1, context)),
            verify_s=tuple((verify_s / while_both.target.at(widths, 1)).tolist()),
            serial_verify_s=tuple(verify_s.tolist()),
            branch_s=tuple((branch_s / while_both.draft.at(1, rows)).tolist()),
            alpha=round(alpha, 4),
            rank_decay=round(float(fit_ranks(traces).decay), 3) if right < 1 and known_ranks is None else 0.5,
            curve=(round(fit.intercept, 4), round(fit.slope, 4)) if fit is not None else (_logit(alpha), 0.0),
            thresholds=_thresholds(traces) if has_signals else {},
            tail_depth=min(trace.tail_depth for trace in traces) if has_signals else 0,
            known_ranks=known_ranks,
            has_classes=all(trace.class_probs for trace in traces),
            class_window=max(trace.class_window for trace in traces),
        )

    @property
    def num_ranks(self) -> int:
        """How many of the draft's best tokens may be hedged."""
        return MAX_BRANCHES if self.known_ranks is None else self.known_ranks

    def answers(self, policy: Policy) -> bool:
        """Whether the traces can answer a policy's questions (`sim.decoding.replay.check_answers`, without its words)."""
        needs = policy.needs
        return (
            (not needs.signals or needs.tail_depth <= self.tail_depth)
            and (not needs.classes or self.has_classes)
            and not why_other_window(needs, self.class_window)
            and (self.known_ranks is None or needs.num_alternatives <= self.known_ranks)
        )

    @property
    def constant_curve(self) -> tuple[float, float]:
        """Intercept and slope that give alpha whatever the signal."""
        return _logit(self.alpha), 0.0

    @property
    def cost_ratio(self) -> float:
        """c: a verification of one token in draft forwards."""
        return self.serial_verify_s[0] / max(self.draft_s, 1e-12)

    @property
    def marginal_verify(self) -> float:
        """What a further verified token costs at the margin, in target forwards."""
        return max(0.0, (self.serial_verify_s[8] - self.serial_verify_s[3]) / 5 / self.serial_verify_s[0])

    @property
    def longest(self) -> int:
        """The longest draft that is tried."""
        return int(min(MAX_LENGTH, max(64, 4 * self.reach(1))))

    def reach(self, num_rows: int) -> int:
        """Steps of so many rows, a look among them, that fit beside the verification of as many tokens. At least 1.

        Where verification is flat this is floor(c / t'(k)) of arXiv:2506.01979, t'(k) being how much k rows slow a step down.
        """
        step_s = max(self.branch_s[min(num_rows, MAX_BRANCHES) - 1], 1e-12)
        fits = [steps for steps in range(1, MAX_LENGTH + 1) if steps * step_s <= self.verify_s[steps] * (1 + 1e-9)]
        return max(fits, default=1)

    @property
    def serial_length(self) -> int:
        """The draft length of speculative sampling with the most tokens a second, if acceptance were geometric
        (`sim.decoding.closed_forms.sps_speedup`, with verification as it widens)."""
        lengths = np.arange(1, MAX_LENGTH + 1)
        seconds = lengths * self.draft_s + np.array(self.serial_verify_s[1:]) + self.host_s
        return int(lengths[np.argmax(expected_emitted_tokens(self.alpha, lengths) / seconds)])


def _logit(chance: float) -> float:
    return round(math.log(chance / (1 - chance)), 4)


def _thresholds(traces: Sequence[RequestTrace]) -> dict[ConfidenceSignal, tuple[float, ...]]:
    """Values of each signal that leave some shares of the tokens below."""
    found = {}
    for signal in (ConfidenceSignal.MAX_PROB, ConfidenceSignal.MARGIN):
        values, _ = signal_and_acceptance(traces, signal)
        found[signal] = tuple(dict.fromkeys(round(float(np.quantile(values, share)), 3) for share in _SHARES))
    return found
