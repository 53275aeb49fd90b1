"""Where outcomes come from when nothing was recorded, or more is wanted than was: samplers of `RequestTrace`.

A sampled trace is a trace like any other, so that replay and the SimPy engine run the same rounds on it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from traces.fits.acceptance.chain import AcceptanceChain
from traces.fits.acceptance.joint import JointAcceptance, Positions, TemperatureLaw
from traces.schema import UNKNOWN_SIGNAL, FinishReason, RequestTrace, Signal


class AcceptanceModel(Protocol):
    """Samples what an outcome depends on."""

    def sample(self, num_tokens: int, request_id: int, rng: np.random.Generator) -> RequestTrace:
        """A request that emits exactly `num_tokens` tokens."""
        ...


def sample_requests(model: AcceptanceModel, num_requests: int, num_tokens: int, *, seed: int) -> list[RequestTrace]:
    """Requests of one length, each from a stream of its own: the same seed gives other models the same luck."""
    rngs = np.random.default_rng(seed).spawn(num_requests)
    return [model.sample(num_tokens, index, rng) for index, rng in enumerate(rngs)]


def parse_acceptance(label: str, kinds: Mapping[str, Collection[str]]) -> tuple[str, dict[str, Any]]:
    """Kind and numbers (floats) of a label such as geometric:alpha=0.8,rank_decay=0.5.

    kinds: the settings that each kind knows. Raises ValueError for another kind or setting, and for what is not a number.

    >>> parse_acceptance("geometric:alpha=0.8", {"geometric": ["alpha", "rank_decay"]})
    ('geometric', {'alpha': 0.8})
    """
    kind, _, text = label.strip().partition(":")
    if kind not in kinds:
        raise ValueError(f"unknown acceptance {kind!r:.80}; known are {', '.join(kinds)}.")
    numbers: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        key, _, value = (piece.strip() for piece in part.partition("="))
        if key not in kinds[kind]:
            known = f"it has only {', '.join(kinds[kind])}" if kinds[kind] else "it has none"
            raise ValueError(f"acceptance {label!r:.80}: {key!r:.80} is not a setting of {kind}; {known}.")
        if key in numbers:
            raise ValueError(f"acceptance {label!r:.80}: {key} is given twice; give it once.")
        try:
            numbers[key] = float(value)
        except ValueError:
            raise ValueError(f"acceptance {label!r:.80}: {value!r:.80} is not a number; write {key}=0.7.") from None
    if kind == "geometric" and "alpha" not in numbers:
        raise ValueError(f"acceptance {label!r:.80} needs its acceptance: write geometric:alpha=0.8.")
    alpha = numbers.get("alpha", 0.5)
    if not 0 <= alpha <= 1 or (kind != "geometric" and alpha in (0, 1)):  # no chain can be shifted to certainty
        raise ValueError(f"acceptance {label!r:.80}: alpha must lie between 0 and 1; write {kind}:alpha=0.8.")
    return kind, numbers


GEOMETRIC_SETTINGS = ("alpha", "rank_decay")


@dataclass(frozen=True, kw_only=True)
class Geometric:
    """The textbook's: each draft token is accepted with the same chance, independently of all else.

    alpha:      that chance (Leviathan et al. 2023, arXiv:2211.17192, section 3.1).
    rank_decay: a rejected position's target token has rank r >= 1 in the draft's order with chance
                (1 - rank_decay) rank_decay^(r - 1); 0 means that the draft's second choice is always right.
    Signals tell nothing: each is the same, with alpha as the largest probability. Real acceptance is neither
    independent nor alike between requests.

    >>> Geometric(alpha=1.0).sample(3, 0, np.random.default_rng(0)).ranks
    (0, 0, 0)
    """

    alpha: float
    rank_decay: float = 0.5
    tail_depth: int = 32
    num_prompt_tokens: int = 128
    temperature: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha must lie in [0, 1], but got {self.alpha}; it is a chance of acceptance.")
        if not 0 <= self.rank_decay < 1:
            raise ValueError(
                f"rank_decay must lie in [0, 1), but got {self.rank_decay}; 0 is always the second choice."
            )
        if self.tail_depth < 0:
            raise ValueError(f"tail_depth must be at least 0, but got {self.tail_depth}.")

    @property
    def signal(self) -> Signal:
        """Of every position: entropy and margin are those of a law with two tokens, alpha on one of them."""
        best = min(max(self.alpha, 1 - self.alpha), 1 - 1e-12)
        entropy = -best * math.log(best) - (1 - best) * math.log1p(-best)
        return Signal(self.alpha, entropy, math.log(best) - math.log1p(-best))

    def sample(self, num_tokens: int, request_id: int, rng: np.random.Generator) -> RequestTrace:
        _check_length(num_tokens)
        is_rejected = rng.random(num_tokens) >= self.alpha
        ranks = np.where(is_rejected, rng.geometric(1 - self.rank_decay, num_tokens), 0)
        tail = (self.signal,) * self.tail_depth
        return RequestTrace(
            request_id=request_id,
            prompt_id=f"geometric-{request_id}",
            num_prompt_tokens=self.num_prompt_tokens,
            max_new_tokens=num_tokens,
            temperature=self.temperature,
            finish_reason=FinishReason.MAX_TOKENS,
            ranks=tuple(ranks.tolist()),
            signals=(self.signal,) * num_tokens,
            tails={position: tail for position in [*np.flatnonzero(ranks).tolist(), num_tokens]},
            tail_depth=self.tail_depth,
        )


class JointEmpirical:
    """Resamples recorded (rank, signal) pairs given the request's level and the previous outcome.

    See `traces.fits.acceptance.joint` for what survives this and what does not. It has no H-RAD classes.
    tail_depth: of the sampled traces; all that was recorded when not given.
    """

    def __init__(
        self,
        fitted: JointAcceptance,
        *,
        temperature: float,
        tail_depth: int | None = None,
        num_prompt_tokens: int = 128,
    ) -> None:
        self.law: TemperatureLaw = fitted.law_at(temperature)
        self.tail_depth = self.law.tail_depth if tail_depth is None else tail_depth
        self.num_prompt_tokens = num_prompt_tokens
        if not 0 <= self.tail_depth <= self.law.tail_depth:
            raise ValueError(
                f"tail_depth must lie in 0 to {self.law.tail_depth} (what was recorded), but got {self.tail_depth}."
            )
        self._shares = np.array([level.share for level in self.law.levels])
        # A tail of one kind stands in for the other where only one was seen.
        wrong = self.law.wrong_tails or self.law.end_tails
        end = self.law.end_tails or self.law.wrong_tails
        if self.tail_depth and not wrong:
            raise ValueError(f"no tail of {self.tail_depth} tokens was recorded; ask for tail_depth=0 or record again.")
        self._wrong = [tail[: self.tail_depth] for tail in wrong]
        self._end = [tail[: self.tail_depth] for tail in end]

    def sample(self, num_tokens: int, request_id: int, rng: np.random.Generator) -> RequestTrace:
        _check_length(num_tokens)
        level = self.law.levels[int(rng.choice(len(self._shares), p=self._shares / self._shares.sum()))]
        ranks, signals = _walk(level.after, num_tokens, rng)
        tails: dict[int, tuple[Signal, ...]] = {}
        if self.tail_depth:
            wrong = [position for position, rank in enumerate(ranks) if rank]
            chosen = rng.integers(len(self._wrong), size=len(wrong)).tolist()
            tails = {position: self._wrong[index] for position, index in zip(wrong, chosen, strict=True)}
            tails[num_tokens] = self._end[int(rng.integers(len(self._end)))]
        return RequestTrace(
            request_id=request_id,
            prompt_id=f"resampled-{request_id}",
            num_prompt_tokens=self.num_prompt_tokens,
            max_new_tokens=num_tokens,
            temperature=self.law.temperature,
            finish_reason=FinishReason.MAX_TOKENS,
            ranks=tuple(ranks),
            signals=tuple(signals),
            tails=tails,
            tail_depth=self.tail_depth,
        )


def _walk(after: tuple[Positions, Positions], num: int, rng: np.random.Generator) -> tuple[list[int], list[Signal]]:
    """A chain of positions, each drawn from the cell that the last outcome points to."""
    draws = [rng.integers(len(cell.ranks), size=num).tolist() for cell in after]
    ranks: list[int] = []
    signals: list[Signal] = []
    was_accepted = True
    for position in range(num):
        cell, index = after[was_accepted], draws[was_accepted][position]
        ranks.append(cell.ranks[index])
        signals.append(cell.signals[index])
        was_accepted = cell.ranks[index] == 0
    return ranks, signals


class Chained:
    """Outcomes of a fitted chain (hazard by run length, or Markov, with or without a request effect), and signals to
    them.

    A position's rank and signal are drawn together from the recorded positions with the same outcome (right or wrong),
    its tail from the recorded tails: what the signal tells of the outcome survives, the order of signals does not.
    """

    def __init__(self, chain: AcceptanceChain, traces: Sequence[RequestTrace], *, num_prompt_tokens: int = 128) -> None:
        if not traces:
            raise ValueError("a chained model takes ranks and signals from recorded traces, but got none.")
        self.chain, self.num_prompt_tokens = chain, num_prompt_tokens
        self.temperature = traces[0].temperature
        self.tail_depth = min(trace.tail_depth for trace in traces)
        has_signals = all(trace.signals for trace in traces)
        self._pools: tuple[list[tuple[int, Signal]], list[tuple[int, Signal]]] = ([], [])
        self._tails: tuple[list[tuple[Signal, ...]], list[tuple[Signal, ...]]] = (
            [],
            [],
        )  # after a wrong token, at the end
        for trace in traces:
            signals = trace.signals if has_signals else (UNKNOWN_SIGNAL,) * trace.num_tokens
            for rank, signal in zip(trace.ranks, signals, strict=True):
                self._pools[rank == 0].append((rank, signal))
            for position, tail in trace.tails.items():
                self._tails[position == trace.num_tokens].append(tail[: self.tail_depth])
        self.has_signals = has_signals
        if not all(self._pools):
            raise ValueError("the traces hold only right or only wrong draft tokens: nothing to draw the others from.")

    def sample(self, num_tokens: int, request_id: int, rng: np.random.Generator) -> RequestTrace:
        _check_length(num_tokens)
        is_right = self.chain.sample(num_tokens, rng).tolist()
        draws = [rng.integers(len(pool), size=num_tokens).tolist() for pool in self._pools]
        drawn = [self._pools[right][draws[right][index]] for index, right in enumerate(is_right)]
        tails: dict[int, tuple[Signal, ...]] = {}
        if self.tail_depth:
            positions = [position for position, right in enumerate(is_right) if not right] + [num_tokens]
            for position in positions:
                pool = self._tails[position == num_tokens] or self._tails[position != num_tokens]
                tails[position] = pool[int(rng.integers(len(pool)))]
        return RequestTrace(
            request_id=request_id,
            prompt_id=f"chained-{request_id}",
            num_prompt_tokens=self.num_prompt_tokens,
            max_new_tokens=num_tokens,
            temperature=self.temperature,
            finish_reason=FinishReason.MAX_TOKENS,
            ranks=tuple(rank for rank, _ in drawn),
            signals=tuple(signal for _, signal in drawn) if self.has_signals else (),
            tails=tails,
            tail_depth=self.tail_depth,
        )


class Recorded:
    """Recorded requests themselves, drawn with equal chance and cut to the wanted length.

    A request longer than the one drawn is continued by another one; the seam between them is its only invention.
    """

    def __init__(self, traces: Sequence[RequestTrace]) -> None:
        if not traces:
            raise ValueError("a model of recorded requests needs at least one trace, but got none.")
        kinds = {(each.temperature, bool(each.signals), bool(each.class_probs), each.class_window) for each in traces}
        if len(kinds) > 1:
            raise ValueError("the traces differ in temperature or in what was recorded; give traces of one kind.")
        self.traces = tuple(traces)
        self.tail_depth = min(trace.tail_depth for trace in traces)

    def sample(self, num_tokens: int, request_id: int, rng: np.random.Generator) -> RequestTrace:
        _check_length(num_tokens)
        first = self.traces[int(rng.integers(len(self.traces)))]
        ranks, signals, classes = list(first.ranks), list(first.signals), list(first.class_probs)
        tails = dict(first.tails)
        while len(ranks) < num_tokens:
            another = self.traces[int(rng.integers(len(self.traces)))]
            offset = len(ranks)
            tails.pop(offset, None)  # what follows is known now
            tails |= {offset + position: tail for position, tail in another.tails.items()}
            ranks += another.ranks
            signals += another.signals
            classes = classes[:offset] + list(another.class_probs)
        end = continuation(ranks, signals, tails, num_tokens, self.tail_depth) if signals and self.tail_depth else None
        kept = {position: tail[: self.tail_depth] for position, tail in tails.items() if position < num_tokens}
        return RequestTrace(
            request_id=request_id,
            prompt_id=first.prompt_id,
            num_prompt_tokens=first.num_prompt_tokens,
            max_new_tokens=num_tokens,
            temperature=first.temperature,
            finish_reason=FinishReason.MAX_TOKENS,
            ranks=tuple(ranks[:num_tokens]),
            signals=tuple(signals[:num_tokens]),
            tails=kept if end is None else {**kept, num_tokens: end},
            tail_depth=self.tail_depth,
            class_probs=tuple(classes[: num_tokens + 1]),
            class_window=first.class_window,
        )


def continuation(
    ranks: Sequence[int], signals: Sequence[Signal], tails: Mapping[int, tuple[Signal, ...]], start: int, depth: int
) -> tuple[Signal, ...]:
    """Signals of the `depth` tokens that the draft proposes from `start` on: along the path, then along a tail."""
    ahead: list[Signal] = []
    for position in range(start, len(ranks)):
        if len(ahead) >= depth:
            break
        ahead.append(signals[position])
        if ranks[position]:  # the draft left the path here
            return (*ahead, *tails[position])[:depth]
    if len(ahead) < depth:
        ahead += tails[len(ranks)]
    return tuple(ahead[:depth])


def _check_length(num_tokens: int) -> None:
    if num_tokens < 1:
        raise ValueError(f"num_tokens must be at least 1, but got {num_tokens}; a request emits at least one token.")
