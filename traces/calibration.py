"""From a recorded run to fitted models: how long each operation takes, with the error of the fit.

calibration = calibrate(read_run(folder))
print(calibration.report())
calibration.save("calibration.json")
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from traces.cold_start import ColdStart, fit_cold_start
from traces.joint_acceptance import JointAcceptance, fit_acceptance
from traces.latency_fit import TERMS, LatencyFit, draw_ratios, fit_latency
from traces.runs import Run
from traces.schema import SCHEMA_VERSION

__all__ = [
    "Calibration",
    "JointAcceptance",
    "LatencyFit",
    "RoundCheck",
    "calibrate",
    "fit_acceptance",
    "group_of",
]

GROUPS = ("draft", "read", "verify", "draft_prefill", "target_prefill", "host")
_GROUP_OF = {
    ("draft", "draft"): "draft",
    ("draft", "look"): "draft",
    ("draft", "branch"): "draft",
    ("draft", "read"): "read",
    ("draft", "read_ahead"): "read",
    ("target", "verify"): "verify",
    ("target", "verify_beside"): "verify",
    ("draft", "prefill"): "draft_prefill",
    ("target", "prefill"): "target_prefill",
    ("host", "host"): "host",
}


AHEAD_KINDS = ("look", "branch")  # the draft's forwards during a verification
NUM_COLD = 2  # draft forwards of a round that a wait slows down
LEAST_WARM = 50  # draft forwards beyond a round's first two, for a law of their own


def group_of(actor: str, kind: str) -> str:
    """The group that an operation is fitted in: every forward of the draft that is no prefill is one law."""
    try:
        return _GROUP_OF[actor, kind]
    except KeyError:
        raise ValueError(f"no latency is fitted for {actor!r} {kind!r}; known are {sorted(_GROUP_OF)}.") from None


@dataclass(frozen=True, kw_only=True)
class RoundCheck:
    """Whole rounds: drafting, then the longer of verification and drafting ahead, then the host; mean seconds."""

    predicted_s: float
    measured_s: float
    num_rounds: int

    @property
    def error(self) -> float:
        """Predicted over measured, minus 1."""
        return self.predicted_s / self.measured_s - 1 if self.measured_s else 0.0


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Fitted latencies of one pair on one machine. fits: of GROUPS, those that the run has operations of.

    cold_start: what the first draft forwards of a round take more than later ones.
    beside: how much longer a verification takes while the draft works, on shared memory and caches; 1 when not recorded.
    draft_beside: likewise, how much longer a forward of the draft takes while the target verifies.
    """

    fits: Mapping[str, LatencyFit]
    round_check: RoundCheck | None
    num_requests: int
    num_unclean: int
    cold_start: ColdStart = field(default_factory=ColdStart)
    beside: float = 1.0
    draft_beside: float = 1.0
    schema_version: int = SCHEMA_VERSION

    def fit_of(self, group: str) -> LatencyFit:
        """The law of one group, with a clear refusal when nothing of it was recorded."""
        if group not in self.fits:
            raise ValueError(
                f"this calibration saw no {group} operation (it has {', '.join(self.fits) or 'none'}); "
                "calibrate from a run that has some."
            )
        return self.fits[group]

    def save(self, path: str | Path) -> None:
        """Write as JSON."""
        Path(path).write_bytes(TypeAdapter(Calibration).dump_json(self, indent=1) + b"\n")

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Read what `save` wrote."""
        try:
            found = TypeAdapter(Calibration).validate_json(Path(path).read_bytes())
        except (OSError, ValidationError) as error:
            reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error.strerror
            raise ValueError(f"{path} is no calibration: {reason}; write one with Calibration.save.") from error
        if found.schema_version != SCHEMA_VERSION:
            raise ValueError(
                f"{path} has schema version {found.schema_version}, this code reads {SCHEMA_VERSION}; calibrate again."
            )
        return found

    def report(self) -> str:
        """The fit as a small table, in milliseconds: coefficients with their 95% intervals, and how well they fit."""
        lines = [f"{'operation':<16}{'n':>7}{'R2':>7}{'error':>8}   ms [95%]"]
        for group, fit in self.fits.items():
            r2 = "-" if fit.r2 is None else f"{fit.r2:.3f}"
            lines.append(f"{group:<16}{fit.num_ops:>7}{r2:>7}{fit.error:>8.1%}")
            for term, value, (low, high) in zip(TERMS, fit.coefficients, fit.intervals, strict=True):
                if term not in fit.left_out:
                    lines.append(f"  {term:<36}   {1e3 * value:.5g} [{1e3 * low:.5g}, {1e3 * high:.5g}]")
            if fit.left_out:
                lines.append(f"  not identified, left out: {', '.join(fit.left_out)}")
        if self.cold_start:
            first, second = (1e3 * seconds for seconds in self.cold_start.after(math.inf))
            lines.append(
                f"cold start of a round's drafting: first forward +{first:.3g} ms, second +{second:.3g} ms"
                + (f" after waits from {1e3 * full_s:.3g} ms on" if (full_s := self.cold_start.full_s) else "")
            )
        if self.beside != 1:
            lines.append(f"verification beside a working draft: {self.beside:.3f} of one alone")
        if self.draft_beside != 1:
            lines.append(f"draft forward beside a verification: {self.draft_beside:.3f} of one alone")
        if self.round_check:
            check = self.round_check
            lines.append(
                f"round: predicted {1e3 * check.predicted_s:.4g} ms, measured {1e3 * check.measured_s:.4g} ms "
                f"({check.error:+.1%}), n = {check.num_rounds}"
            )
        lines.append(f"{self.num_requests} requests; {self.num_unclean} more were disturbed and left out")
        return "\n".join(lines)


def calibrate(run: Run, *, seed: int = 0) -> Calibration:
    """Fit every group of operations of a run. Requests that were not clean (contention, throttling) are left out.

    seed: of the bootstrap and of the draws in the round check.
    """
    requests, ops = run.requests, run.ops
    unclean = requests.loc[~requests["is_clean"].astype(bool), "request_id"]
    groups = np.array([group_of(actor, kind) for actor, kind in zip(ops["actor"], ops["kind"], strict=True)])
    is_clean = ~ops["request_id"].isin(unclean).to_numpy()
    if missing := sorted(set(groups.tolist()) - set(groups[is_clean].tolist())):
        # Better a calibration that says so than none: the report counts the disturbed requests.
        which = (
            "every request" if len(unclean) == len(requests) else f"every request with {', '.join(missing)} operations"
        )
        warnings.warn(f"{run.folder}: {which} was disturbed by other load; fitted all the same.", stacklevel=2)
        unclean, is_clean = unclean.iloc[:0], np.ones(len(ops), bool)
    elif len(unclean):
        warnings.warn(
            f"{run.folder}: {len(unclean)} of {len(requests)} requests were disturbed and are left out.", stacklevel=2
        )
    ops, groups = ops[is_clean].reset_index(drop=True), groups[is_clean]
    rounds = run.rounds[~run.rounds["request_id"].isin(unclean)]
    if ops.empty:
        raise ValueError(f"{run.folder} holds no operation of an undisturbed request; record it again on free cores.")
    rng = np.random.default_rng(seed)
    fits = {}
    order = _order_in_round(ops, groups == "draft")
    is_cold = (groups == "draft") & (order < NUM_COLD)
    beside, draft_beside = _beside_factor(ops), _draft_beside_factor(ops[~is_cold])
    slowed = _slowed(ops, beside, draft_beside)
    has_warm = int((groups == "draft").sum() - is_cold.sum()) >= LEAST_WARM
    for group in GROUPS:
        part = ops[(groups == group) & ~(is_cold & has_warm)]
        if len(part):
            fits[group] = fit_latency(
                (part["end_s"] - part["start_s"]) / slowed[part.index],
                part["num_tokens"],
                part["num_branches"],
                part["context_tokens"],
                part["request_id"],
                least=0 if group == "host" else 1,
                rng=rng,
            )
    mean_s = _mean_seconds(fits, ops, groups) * slowed
    wait_s = _waits(ops, mean_s)
    cold_start = _cold_start(ops, mean_s, wait_s, [is_cold & (order == index) for index in range(NUM_COLD)], has_warm)
    return Calibration(
        fits=fits,
        round_check=check_rounds(fits, ops, groups, rounds, rng, cold_start, slowed, wait_s),
        num_requests=int(ops["request_id"].nunique()),
        num_unclean=len(unclean),
        cold_start=cold_start,
        beside=beside,
        draft_beside=draft_beside,
    )


def _slowed(ops: pd.DataFrame, beside: float, draft_beside: float) -> NDArray[np.float64]:
    """How much longer each operation took than it would have alone."""
    of_draft = ops["kind"].isin(AHEAD_KINDS)
    return np.where(ops["kind"] == "verify_beside", beside, np.where(of_draft, draft_beside, 1.0))


def _draft_beside_factor(ops: pd.DataFrame) -> float:
    """Mean one-row draft forward during a verification over one while the target waits, both warm."""
    single = ops[(ops["actor"] == "draft") & (ops["num_branches"] == 1) & (ops["num_tokens"] == 1)]
    seconds = single["end_s"] - single["start_s"]
    ahead, alone = seconds[single["kind"].isin(AHEAD_KINDS)], seconds[single["kind"] == "draft"]
    if min(len(ahead), len(alone)) < LEAST_WARM:
        return 1.0
    return max(1.0, float(ahead.mean() / alone.mean()))


def _beside_factor(ops: pd.DataFrame) -> float:
    """Mean verification beside a working draft over one alone, at the widths that were measured both ways."""
    verify = ops[ops["kind"].isin(["verify", "verify_beside"])]
    seconds = verify.assign(seconds=verify["end_s"] - verify["start_s"])
    table = seconds.pivot_table(index="num_tokens", columns="kind", values="seconds", aggfunc=["mean", "size"])
    if ("mean", "verify_beside") not in table or ("mean", "verify") not in table:
        return 1.0
    enough = table[(pd.DataFrame(table["size"]) >= LEAST_WARM).all(axis=1)]
    if enough.empty:
        return 1.0
    weights = pd.DataFrame(enough["size"]).min(axis=1)
    factors = enough["mean", "verify_beside"] / enough["mean", "verify"]
    return max(1.0, float((factors * weights).sum() / weights.sum()))


def _order_in_round(ops: pd.DataFrame, chosen: NDArray[np.bool_]) -> NDArray[np.intp]:
    """How many of the chosen operations of its round came before each operation."""
    order = np.zeros(len(ops), np.intp)
    part = ops[chosen].sort_values("start_s", kind="stable")
    order[part.index] = part.groupby(["request_id", "round"]).cumcount()
    return order


def _mean_seconds(fits: Mapping[str, LatencyFit], ops: pd.DataFrame, groups: NDArray[np.str_]) -> NDArray[np.float64]:
    """(ops,) by the law of each operation's group, working alone."""
    seconds = np.zeros(len(ops))
    for group, fit in fits.items():
        chosen = np.flatnonzero(groups == group)
        part = ops.iloc[chosen]
        seconds[chosen] = fit.mean_array(part["num_tokens"], part["num_branches"], part["context_tokens"])
    return seconds


def _waits(ops: pd.DataFrame, mean_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """(ops,) how long the draft waited in the round before each operation's, as `ColdStart` counts it.

    Before a request's first round lies the target's prefill: infinity.
    """
    ahead = ops["kind"].isin([*AHEAD_KINDS, "read_ahead"])
    verify = ops["kind"].isin(["verify", "verify_beside"])
    sides = ops[["request_id", "round"]].assign(wait_s=mean_s * (verify.to_numpy() * 1.0 - ahead.to_numpy()))
    waits = sides[ahead | verify].groupby(["request_id", "round"])["wait_s"].sum().clip(lower=0)
    before = pd.MultiIndex.from_arrays([ops["request_id"], ops["round"] - 1])
    found: NDArray[np.float64] = waits.reindex(before).fillna(np.inf).to_numpy(float)
    return found


def _cold_start(
    ops: pd.DataFrame,
    mean_s: NDArray[np.float64],
    wait_s: NDArray[np.float64],
    cold: Sequence[NDArray[np.bool_]],
    has_warm: bool,
) -> ColdStart:
    """cold: which operations are the first, and which the second forward of the draft in their rounds."""
    if not has_warm:
        return ColdStart()
    excess = (ops["end_s"] - ops["start_s"]).to_numpy() - mean_s
    first, second = ((wait_s[chosen], excess[chosen]) for chosen in cold)
    return fit_cold_start(first, second)


def check_rounds(
    fits: Mapping[str, LatencyFit],
    ops: pd.DataFrame,
    groups: NDArray[np.str_],
    rounds: pd.DataFrame,
    rng: np.random.Generator,
    cold_start: ColdStart,
    slowed: NDArray[np.float64],
    wait_s: NDArray[np.float64],
) -> RoundCheck | None:
    """Predicted and measured mean time of whole rounds; None without rounds.

    Drawn, not composed of means: the mean of the longer of two is more than the longer of two means.
    """
    if rounds.empty:
        return None
    seconds = np.zeros(len(ops))
    for group, fit in fits.items():
        of_group = np.flatnonzero(groups == group)
        part = ops.iloc[of_group]
        mean = fit.mean_array(part["num_tokens"], part["num_branches"], part["context_tokens"])
        seconds[of_group] = mean * draw_ratios(fit.ratios, len(of_group), rng) * slowed[of_group]
    order = _order_in_round(ops, groups == "draft")
    share = cold_start.share_after(wait_s)
    for index, extra_s in enumerate((cold_start.first_s, cold_start.second_s)):
        chosen = (groups == "draft") & (order == index)
        seconds[chosen] += extra_s * share[chosen]
    lanes = ops["kind"].map(
        {
            **{"draft": "serial", "read": "serial", "look": "ahead", "branch": "ahead", "read_ahead": "ahead"},
            **{"verify": "verify", "verify_beside": "verify", "host": "host"},
        }
    )
    drawn = ops[["request_id", "round"]].assign(lane=lanes, seconds=seconds)
    sums = drawn.pivot_table(index=["request_id", "round"], columns="lane", values="seconds", aggfunc="sum")
    sums = sums.reindex(columns=["serial", "ahead", "verify", "host"]).fillna(0.0)
    predicted = sums["serial"] + sums[["ahead", "verify"]].max(axis=1) + sums["host"]
    measured = rounds.set_index(["request_id", "round"])
    both = predicted.index.intersection(measured.index)
    if not len(both):
        return None
    times = (measured["end_s"] - measured["start_s"]).loc[both]
    return RoundCheck(
        predicted_s=float(predicted.loc[both].mean()), measured_s=float(times.mean()), num_rounds=len(both)
    )
