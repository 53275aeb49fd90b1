"""Published acceptance curves: tokens per target forward at several draft lengths, without a trace behind them.

A curve holds, for one draft length, how often each position of a round was accepted given that all before it were. Two
families of laws are fitted to some lengths and asked for others: by run length (`AcceptanceChain`: what a recorded
sequence can show), and by position in the round (`PositionLaw`: a drafter that reads its own guesses gets worse, or
better, with depth). The textbook's formula, from the first position's rate, stands beside them.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, logit

from traces.fits.acceptance.chain import AcceptanceChain, RoundLaw, request_nodes
from traces.schema import RequestTrace

Floats = NDArray[np.float64]
KNOTS = (0, 1, 2, 3, 4, 6, 9, 13, 18)  # ages and positions with a chance of their own; between them logits are straight


@dataclass(frozen=True, kw_only=True)
class AcceptanceCurve:
    """What was measured at one draft length. conditional: acceptance by position, all before it accepted."""

    draft_length: int
    num_rounds: int
    tokens_per_forward: float
    conditional: tuple[float, ...]
    published_iid: float | None = None

    @property
    def iid_tokens_per_forward(self) -> float:
        """(1 - a^(L + 1)) / (1 - a) with a the first position's rate: every token accepted independently."""
        rate = self.conditional[0]
        return float(sum(rate**power for power in range(self.draft_length + 1)))

    @property
    def iid_error(self) -> float:
        """Of the textbook's formula, relative to what was measured."""
        return self.iid_tokens_per_forward / self.tokens_per_forward - 1


class LawByLength(Protocol):
    """Predicts rounds of any draft length."""

    @property
    def name(self) -> str:
        """For reports."""
        ...

    def round_law(self, draft_length: int) -> RoundLaw:
        """Tokens a round, and acceptance by position."""
        ...


@dataclass(frozen=True, kw_only=True)
class PositionLaw:
    """Acceptance by position in the round, higher or lower by `start_shift` (logits, fading by half with each
    position) in rounds that follow a full acceptance, with a normal effect of the request.

    hazards: chance at each position of a round after a rejection; the last one for all further positions.
    """

    hazards: tuple[float, ...]
    start_shift: float
    request_sd: float
    name: str = "hazard by position in the round"

    def round_law(self, draft_length: int) -> RoundLaw:
        nodes, weights = request_nodes(self.request_sd)
        positions = np.minimum(np.arange(draft_length), len(self.hazards) - 1)
        logits = logit(np.clip(self.hazards, 1e-9, 1 - 1e-9))[positions] + self.request_sd * nodes[:, None]
        fading = self.start_shift * 0.5 ** np.arange(draft_length)
        after_miss, after_full = np.cumprod(expit(logits), axis=1), np.cumprod(expit(logits + fading), axis=1)
        # Two kinds of rounds follow one another: the share of those after a full acceptance is what it leads to.
        full = after_miss[:, -1] / np.maximum(1 - after_full[:, -1] + after_miss[:, -1], 1e-12)
        reach = (1 - full)[:, None] * after_miss + full[:, None] * after_full
        return pooled_law(reach, weights)


def pooled_law(reach: Floats, weights: Floats) -> RoundLaw:
    """Rounds of requests that emit equally many tokens. reach: (requests, draft_length) chance to accept so many."""
    rounds = weights / (1 + reach.sum(axis=1))
    pooled = np.concatenate(([1.0], rounds @ reach / rounds.sum()))
    return RoundLaw(
        draft_length=reach.shape[1],
        tokens_per_forward=float(weights.sum() / rounds.sum()),
        conditional=tuple((pooled[1:] / np.maximum(pooled[:-1], 1e-300)).tolist()),
    )


def fit_curves(curves: Sequence[AcceptanceCurve]) -> dict[str, LawByLength]:
    """The laws that fit some draft lengths best, by name: geometric, Markov, hazard by run length and by position.

    Raises ValueError without curves.
    """
    if not curves:
        raise ValueError("there is no curve to fit.")

    def spread(values: Floats) -> tuple[float, ...]:
        return tuple(expit(np.interp(np.arange(KNOTS[-1] + 1), KNOTS, values)).tolist())

    def hazard(parameters: Floats) -> AcceptanceChain:
        return AcceptanceChain(
            name="hazard by run length", hazards=spread(parameters[:-1]), request_sd=_positive(parameters[-1])
        )

    def position(parameters: Floats) -> PositionLaw:
        return PositionLaw(
            hazards=spread(parameters[:-2]), start_shift=float(parameters[-2]), request_sd=_positive(parameters[-1])
        )

    def markov(parameters: Floats) -> AcceptanceChain:
        hazards = tuple(expit(parameters[:2]).tolist())
        return AcceptanceChain(
            name="Markov with a request effect", hazards=hazards, request_sd=_positive(parameters[2])
        )

    def geometric(parameters: Floats) -> AcceptanceChain:
        return AcceptanceChain(name="geometric", hazards=tuple(expit(parameters).tolist()))

    start = float(logit(np.clip(curves[0].conditional[0], 0.02, 0.98)))
    knots = np.full(len(KNOTS), start)
    return {
        "geometric": geometric(_fitted(geometric, curves, np.array([start]), 0)),
        "markov": markov(_fitted(markov, curves, np.array([start, start, -1.0]), 0)),
        "hazard": hazard(_fitted(hazard, curves, np.r_[knots, -1.0], len(KNOTS))),
        "position": position(_fitted(position, curves, np.r_[knots, 0.0, -1.0], len(KNOTS))),
    }


def log_likelihood(law: LawByLength, curves: Sequence[AcceptanceCurve]) -> float:
    """Of the acceptances counted in some curves (each position of each round that reached it)."""
    total = 0.0
    for curve in curves:
        seen = np.array(curve.conditional)
        reached = curve.num_rounds * np.concatenate(([1.0], np.cumprod(seen)[:-1]))
        chance = np.clip(law.round_law(curve.draft_length).conditional, 1e-9, 1 - 1e-9)
        total += float((reached * (seen * np.log(chance) + (1 - seen) * np.log1p(-chance))).sum())
    return total


def best_law(laws: Mapping[str, LawByLength], curves: Sequence[AcceptanceCurve]) -> str:
    """The name of the law under which the curves are likeliest; choose with those it was fitted to."""
    return max(laws, key=lambda name: log_likelihood(laws[name], curves))


def read_curves(path: str | Path) -> dict[tuple[str, str], list[AcceptanceCurve]]:
    """Curves by (dataset, method) from a CSV with the columns dataset, method, draft_len, rounds, tokens_per_round,
    conditional_acceptance_by_position (blanks between) and, if known, iid_tokens_per_round."""
    curves: dict[tuple[str, str], list[AcceptanceCurve]] = {}
    with Path(path).open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            curve = AcceptanceCurve(
                draft_length=int(row["draft_len"]),
                num_rounds=int(row["rounds"]),
                tokens_per_forward=float(row["tokens_per_round"]),
                conditional=tuple(float(value) for value in row["conditional_acceptance_by_position"].split()),
                published_iid=float(row["iid_tokens_per_round"]) if row.get("iid_tokens_per_round") else None,
            )
            curves.setdefault((row["dataset"], row["method"]), []).append(curve)
    return curves


def _positive(value: float) -> float:
    """A standard deviation from an unbounded parameter."""
    return float(np.exp(min(value, 1.5)))


def _fitted(
    build: Callable[[Floats], LawByLength], curves: Sequence[AcceptanceCurve], start: Floats, num_smooth: int
) -> Floats:
    """Maximum likelihood; the first num_smooth parameters are held together where little was seen."""
    scale = sum(curve.num_rounds for curve in curves)

    def loss(parameters: Floats) -> float:
        law = build(parameters)
        rough = float((np.diff(parameters[:num_smooth]) ** 2).sum())
        return -log_likelihood(law, curves) / scale + 1e-5 * rough + 1e-7 * float((parameters**2).sum())

    best: Floats = minimize(loss, start, method="L-BFGS-B", options={"maxiter": 300}).x
    return best


def curve_of(traces: Sequence[RequestTrace], draft_length: int) -> AcceptanceCurve:
    """The curve that replay of recorded traces gives at one draft length; rounds that the request's end could cut short
    are left out. Raises ValueError where no request is long enough."""
    reached = np.zeros(draft_length + 1, dtype=np.int64)
    for trace in traces:
        position, run = 0, 0
        while position + draft_length < trace.num_tokens:
            run = 0
            while run < draft_length and trace.ranks[position + run] == 0:
                run += 1
            reached[: run + 1] += 1
            position += run + 1
    if not reached[0]:
        raise ValueError(f"no request is longer than {draft_length} tokens; take a shorter draft length.")
    counted = np.flatnonzero(reached[:-1])
    return AcceptanceCurve(
        draft_length=draft_length,
        num_rounds=int(reached[0]),
        tokens_per_forward=float(reached.sum() / reached[0]),
        conditional=tuple((reached[counted + 1] / reached[counted]).tolist()),
    )
