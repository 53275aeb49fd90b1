"""What a predictor of acceptance could bring at most, before any is trained: oracles at the measured costs.

Two oracles over a recorded run. That of the *classes* knows of each window whether none, some or all of it will be
accepted, which is what H-RAD predicts, and SpecBranch acts on it as it acts on H-RAD. That of the *positions* knows the
first wrong token itself. Between no knowledge and the class oracle lies what a real predictor tells, in nats of mutual
information: at how many of them SpecBranch with classes overtakes the best SpecBranch without is the information that is
needed to pay. Beside them stands what there is to know from: how well the target's entropy, and the draft's own signals, tell
accepted from rejected tokens (area under the curve, 0.5 is nothing); and what expected-value windows (outcome hedging)
reach today with the margin alone, and with hazards from all of the draft's scalars, on requests that neither curve nor
settings were chosen on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from analysis.papers.bounds import clairvoyant
from analysis.tuning.families import grid
from sim.decoding.informed import ClassConfusion, said_classes, window_classes
from sim.decoding.policies.base import Policy
from sim.decoding.policies.overlapped.outcome_hedging import OutcomeHedging
from sim.decoding.policies.overlapped.pearl import Pearl
from sim.decoding.policies.overlapped.specbranch import OnMiss, SpecBranch
from sim.decoding.policies.serial.autoregressive import Autoregressive
from sim.decoding.policies.serial.fixed_length import FixedLength
from sim.latency.base import LatencyModel
from sim.sweep.sweep import sweep
from traces.fits.hazards import fit_hazards, with_hazards
from traces.fits.signals import area_under_curve, fit_signal, signal_and_acceptance
from traces.folder.run import Run
from traces.schema import RequestTrace, num_tokens, without_repeats

WINDOWS = (1, 2, 3, 4, 6, 8)
MAX_BRANCHES = 4
MIN_HELD_OUT = 4  # requests: two to choose on, two to judge on
SHARES_KNOWN = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


@dataclass(frozen=True, kw_only=True)
class Ceiling:
    """One temperature. speedups: over autoregressive decoding, by what steers. window: draft_length of the class oracle's best
    setting; class_shares, class_nats: of its true classes, and how much there is to tell. by_nats: (nats told, speed-up) at
    that window. needed_nats: None where not even the oracle overtakes the best without classes. auc: by signal."""

    temperature: float
    speedups: dict[str, float]
    window: int
    class_shares: tuple[float, float, float]
    class_nats: float
    by_nats: tuple[tuple[float, float], ...]
    needed_nats: float | None
    auc: dict[str, float]

    @property
    def verdict(self) -> str:
        """One sentence."""
        best, others = self.speedups[WITHOUT], max(self.speedups[name] for name in (FIXED, PEARL, WITHOUT))
        text = (
            f"T = {self.temperature:g}: knowing every class brings {self.speedups[CLASSES] / best - 1:+.1%} over SpecBranch "
            f"without H-RAD and {self.speedups[CLASSES] / others - 1:+.1%} over the best of the others, knowing every first "
            f"wrong token {self.speedups[POSITIONS] / best - 1:+.1%} and {self.speedups[POSITIONS] / others - 1:+.1%}; "
        )
        if self.needed_nats is None:
            return text + "no predictor of classes can pay at these costs."
        return text + f"SpecBranch gains from {self.needed_nats:.2f} of {self.class_nats:.2f} nats on."


FIXED, PEARL, WITHOUT = "best fixed length", "PEARL", "SpecBranch without H-RAD"
MARGIN, HAZARDS = "outcome hedging, margin (held out)", "outcome hedging, hazards (held out)"
CLASSES, POSITIONS = "SpecBranch, oracle of classes", "SpecBranch, oracle of positions"


def ceilings(run: Run, latency: LatencyModel, *, seed: int = 0) -> list[Ceiling]:
    """A ceiling for each recorded temperature. Raises ValueError for a run without signals or alignment."""
    by_temperature: dict[float, list[RequestTrace]] = {}
    for trace in without_repeats(run.traces()):
        by_temperature.setdefault(trace.temperature, []).append(trace)
    if not by_temperature:
        raise ValueError(f"{run.folder} holds no alignment; record with alignment on.")
    entropies = _entropies(run)
    found = []
    for _, traces in sorted(by_temperature.items()):
        auc = {name: area_under_curve(*signal_and_acceptance(traces, name)) for name in ("margin", "max_prob")}
        values = np.concatenate([entropies[trace.request_id] for trace in traces])
        right = np.concatenate([np.array(trace.ranks) == 0 for trace in traces])
        auc["target's entropy"] = area_under_curve(-values, right) if np.isfinite(values).all() else float("nan")
        found.append(ceiling_of(traces, latency, auc=auc, seed=seed))
    return found


def ceiling_of(
    traces: Sequence[RequestTrace], latency: LatencyModel, *, auc: dict[str, float], seed: int = 0
) -> Ceiling:
    """The ceiling of traces of one temperature."""
    depth = min(trace.tail_depth for trace in traces)
    windows = [window for window in WINDOWS if window < depth]
    if not windows or not all(trace.signals for trace in traces):
        raise ValueError(
            "oracles need signals and tails of at least two tokens; record with alignment and --tail-depth."
        )
    plain: dict[str, list[Policy]] = {
        FIXED: [*map(FixedLength, range(1, 9))],
        PEARL: [*map(Pearl, range(2, 13))],
        WITHOUT: [policy for window in windows for policy in _settings(window, uses_hrad=False)],
    }
    base = _speeds([Autoregressive()], traces, latency)[0]
    speedups = {name: float(_speeds(policies, traces, latency).max() / base) for name, policies in plain.items()}
    if len(traces) >= MIN_HELD_OUT:
        speeds = _held_out(traces, latency, windows)
        speedups |= {name: speed / float(base) for name, speed in speeds.items()}
    by_window = {}
    for window in windows:
        policies = _settings(window, uses_hrad=True)
        by_window[window] = _speeds(policies, _told(traces, window, 1.0, seed), latency).max() / base
    window = max(by_window, key=lambda each: float(by_window[each]))
    known = [clairvoyant(trace) for trace in traces]
    knowing = [policy for each in windows for policy in _settings(each, uses_hrad=False, epsilons=(0.5,))]
    speedups |= {CLASSES: float(by_window[window]), POSITIONS: float(_speeds(knowing, known, latency).max() / base)}

    true = np.concatenate([window_classes(trace.ranks, window) for trace in traces])
    shares = np.bincount(true, minlength=3) / len(true)
    by_nats = []
    for share in SHARES_KNOWN:
        told = _speeds(_settings(window, uses_hrad=True), _told(traces, window, share, seed), latency).max() / base
        by_nats.append((ClassConfusion.knowing(share).nats(shares), float(told)))
    return Ceiling(
        temperature=traces[0].temperature,
        speedups=speedups,
        window=window,
        class_shares=(float(shares[0]), float(shares[1]), float(shares[2])),
        class_nats=by_nats[-1][0],
        by_nats=tuple(by_nats),
        needed_nats=_crossing(by_nats, speedups[WITHOUT]),
        auc=auc,
    )


def _settings(window: int, *, uses_hrad: bool, epsilons: Sequence[float] = (0.0, 0.3, 0.5)) -> list[Policy]:
    misses = [(OnMiss.OVERLAP, 0), (OnMiss.SERIAL, 2), (OnMiss.SERIAL, window)]
    return [
        SpecBranch(window, MAX_BRANCHES, epsilon, uses_hrad=uses_hrad, on_miss=on_miss, prior_length=min(prior, window))
        for epsilon in epsilons
        for on_miss, prior in misses
    ]


def _held_out(traces: Sequence[RequestTrace], latency: LatencyModel, windows: Sequence[int]) -> dict[str, float]:
    """Tokens/s of expected-value windows, each half of the requests judged by what was fitted and chosen on the other."""
    seconds, tokens = dict.fromkeys((MARGIN, HAZARDS), 0.0), num_tokens(traces)
    for half in (0, 1):
        fitted, judged = list(traces[half::2]), list(traces[1 - half :: 2])
        curve, hazards = fit_signal(fitted, "margin"), fit_hazards(fitted)
        told = [[with_hazards(trace, hazards) for trace in part] for part in (fitted, judged)]
        forms: list[tuple[str, float, float, list[RequestTrace], list[RequestTrace]]] = [
            (MARGIN, curve.intercept, curve.slope, fitted, judged),
            (HAZARDS, 0.0, 1.0, told[0], told[1]),
        ]
        for name, intercept, slope, seen, unseen in forms:
            policies = grid(
                OutcomeHedging,
                intercept=(intercept,),
                slope=(slope,),
                draft_length=windows,
                max_branches=(1, 4, 12),
                serial_length=(0, min(2, windows[-1])),
                least_reach=(0.0, 0.15, 0.3),
            )
            best = policies[int(np.argmax(_speeds(policies, seen, latency)))]
            seconds[name] += float(sweep([best], unseen, latency).decode_s.sum())
    return {name: tokens / spent for name, spent in seconds.items()}


def _told(traces: Sequence[RequestTrace], window: int, known: float, seed: int) -> list[RequestTrace]:
    """The traces with a predictor that knows the class so often, and leaves the rest to confidence."""
    confusion, rngs = ClassConfusion.knowing(known), np.random.default_rng(seed).spawn(len(traces))
    return [
        replace(trace, class_probs=said_classes(trace.ranks, window, confusion, rng), class_window=window)
        for trace, rng in zip(traces, rngs, strict=True)
    ]


def _speeds(policies: Sequence[Policy], traces: Sequence[RequestTrace], latency: LatencyModel) -> NDArray[np.float64]:
    return sweep(policies, traces, latency).decode_tokens_per_s


def _crossing(by_nats: Sequence[tuple[float, float]], wanted: float) -> float | None:
    """Nats at which the speed-up first reaches the wanted one, along straight lines."""
    if by_nats[0][1] >= wanted:
        return 0.0
    for (nats, speed), (more, faster) in pairwise(by_nats):
        if speed < wanted <= faster:
            return nats + (more - nats) * (wanted - speed) / (faster - speed)
    return None


def _entropies(run: Run) -> dict[int, NDArray[np.float64]]:
    """Of the target's laws along each request; at temperature 0 those at temperature 1."""
    rows = run.alignment.sort_values(["request_id", "position"])
    ids, values = rows.request_id.to_numpy(), rows.target_entropy.to_numpy(float)
    return {request_id: values[ids == request_id] for request_id in np.unique(ids).tolist()}
