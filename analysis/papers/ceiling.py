"""What a predictor of acceptance could bring at most, before any is trained: oracles at the measured costs.

Two oracles over a recorded run, of classes and of positions (`analysis.tuning.oracles`). Between no knowledge and the class
oracle lies what a real predictor tells, in nats of mutual information: at how many of them SpecBranch with classes overtakes
the best SpecBranch without is the information that is needed to pay. Beside them stands what there is to know from: how well
the target's entropy, and the draft's own signals, tell accepted from rejected tokens (area under the curve, 0.5 is nothing);
and what expected-value windows (outcome hedging) reach today with the margin alone, and with hazards from all of the draft's
scalars, on requests that neither curve nor settings were chosen on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from analysis.tuning.choosing import AUTO_TRIED, WITH_CLASSES, WITHOUT_CLASSES, choose_policies
from analysis.tuning.families import grid
from analysis.tuning.oracles import CLASSES, POSITIONS, oracle_windows, oracles, told_classes
from sim.decoding.informed import ClassConfusion, window_classes
from sim.decoding.policies.base import Policy
from sim.decoding.policies.overlapped.outcome_hedging import OutcomeHedging
from sim.decoding.policies.serial.autoregressive import Autoregressive
from sim.latency.base import LatencyModel
from sim.sweep.sweep import sweep
from traces.fits.hazards import fit_hazards, with_hazards
from traces.fits.signals import area_under_curve, fit_signal, signal_and_acceptance
from traces.folder.run import Run
from traces.schema import RequestTrace, num_tokens, without_repeats

MAX_WINDOW = 8  # of expected-value windows
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
    windows = [window for window in oracle_windows(traces) if window <= MAX_WINDOW]
    if not windows:
        raise ValueError(
            "oracles need signals and tails of at least two tokens; record with alignment and --tail-depth."
        )
    base = _speeds([Autoregressive()], traces, latency)[0]
    chosen = choose_policies(traces, latency, max_tried=AUTO_TRIED, names=["fixed_length", "pearl", WITHOUT_CLASSES])
    families = {FIXED: "fixed_length", PEARL: "pearl", WITHOUT: WITHOUT_CLASSES}
    speedups = {name: float(chosen[family].tokens_per_s / base) for name, family in families.items()}
    if len(traces) >= MIN_HELD_OUT:
        speeds = _held_out(traces, latency, windows)
        speedups |= {name: speed / float(base) for name, speed in speeds.items()}
    found = oracles(traces, latency, seed=seed)
    speedups |= {oracle.name: float(oracle.choice.tokens_per_s / base) for oracle in found}
    window = found[0].window

    true = np.concatenate([window_classes(trace.ranks, window) for trace in traces])
    shares = np.bincount(true, minlength=3) / len(true)
    by_nats = []
    for share in SHARES_KNOWN:
        told = told_classes(traces, window, share, seed=seed)
        choice = choose_policies(told, latency, max_tried=AUTO_TRIED, names=[WITH_CLASSES])[WITH_CLASSES]
        by_nats.append((ClassConfusion.knowing(share).nats(shares), float(choice.tokens_per_s / base)))
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
